// From flags to a model, its tokenizer and an adapter in memory: what evaluation, generation and training begin with.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/options.h"
#include "data/pack.h"
#include "model/engine.h"
#include "model/peft_adapter.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "src/command.h"
#include "src/config.h"

namespace orpo {

struct LoadedModel {
    Model model;
    Tokenizer tokenizer;
    std::optional<PeftAdapter> adapter;
    std::string adapter_path;  // "" without one
};

// model: as typed; "" takes the adapter's base where it is found, else the first official model found. adapter: a PEFT
// directory or a run directory that holds adapter/; "" for none. Says in the log which model was taken, and warns when
// the adapter was trained on another base.
LoadedModel load_model(const std::string& model, const std::string& adapter, Call& call);

// What is odd about putting an adapter on a model, a line each: it was trained on other weights, on a base of another
// name, or its ranks differed by module. fingerprint: of the model's weights, asked for when the adapter records one.
// path: of the adapter. training: it is trained on.
std::vector<std::string> adapter_warnings(const PeftAdapter& adapter, const std::string& path, const Model& model,
                                          const std::function<std::string()>& fingerprint, bool training);

// An engine that cannot train: the base, with the adapter when there is one. sizes.keep is set here.
// Error(kMemory) when it does not fit.
std::unique_ptr<Engine> make_inference_engine(const LoadedModel& loaded, const std::string& dtype, const Call& call,
                                              TransformerSizes sizes);

DataOptions data_options(const TrainConfig& config, const Model& model, int threads);
Objective objective_of(const TrainConfig& config, const Tokenizer& tokenizer);

}  // namespace orpo
