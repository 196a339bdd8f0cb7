// Everything that is known before the first step: model, tokenizer, pairs, resolved configuration, start of the
// adapter, fingerprints.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/pack.h"
#include "model/lora.h"
#include "model/peft_adapter.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "src/command.h"
#include "src/config.h"
#include "src/metrics_log.h"

namespace orpo {

struct TrainSetup {
    TrainConfig config;  // every "auto" but micro-batch-tokens is resolved, paths are absolute
    Model model;
    Tokenizer tokenizer;
    Dataset train, eval;  // eval may have no pairs
    Objective objective;
    int64_t steps = 0;
    std::optional<PeftAdapter> start;  // --adapter
    std::vector<std::string> choices;  // one line a default that was resolved, for the log

    int64_t tokens() const;  // of one epoch
};

// Error with the code of what is wrong.
TrainSetup load_train_setup(TrainConfig config, Call& call);

// config.data, eval and adapter as absolute paths: a run is resumed from wherever the user stands.
void make_paths_absolute(TrainConfig& config);

// Differences of the mathematics, a line each; files may have moved, for their contents are compared by themselves.
std::vector<std::string> mathematical_differences(const TrainConfig& before, const TrainConfig& now);

// What a checkpoint is tied to. fingerprint: of the model's weights.
Json run_identity(const TrainSetup& setup, const std::string& fingerprint, const std::string& engine, int threads);

// Differences that forbid to go on, each a line for people; empty: none. Other builds and devices are handed to `note`.
// (A configuration file that was edited since shows here too.)
std::vector<std::string> identity_differences(const Json& before, const Json& now,
                                              const std::function<void(const std::string&)>& note);

}  // namespace orpo
