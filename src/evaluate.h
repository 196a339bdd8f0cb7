// The log-probabilities of preference pairs under a model: packed, forward only, deterministic.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/pack.h"
#include "data/pair.h"
#include "model/engine.h"
#include "model/orpo_loss.h"

namespace orpo {

struct EvaluateOptions {
    Objective objective;
    double beta = 0;            // for TRL's names; the beta-free metrics do not read it
    int max_tokens = 2048;      // of a micro-batch: at least the longest pair's packed_rows()
    bool score_prompt = false;  // prompt_logp of every record, also where the loss does not count it
};

// One record a pair, in the order given, whatever max_tokens is. progress(pairs done) may return false to stop: the
// result is then empty.
std::vector<PairRecord> evaluate_pairs(Engine& engine, std::span<const PreferencePair> pairs,
                                       const EvaluateOptions& options,
                                       const std::function<bool(int64_t done)>& progress = {});

// Tokens that the longest pair takes in a micro-batch, and the most tokens of one sequence.
struct PairSizes {
    int64_t rows = 0, positions = 0;
};
PairSizes largest_pair(std::span<const PreferencePair> pairs, const Objective& objective);

}  // namespace orpo
