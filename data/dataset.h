// A file of preference pairs, read, rendered, tokenised and cut to length: what the trainer and the evaluation run on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/options.h"
#include "data/pair.h"
#include "data/report.h"

namespace orpo {

struct Dataset {
    std::string name;                   // the path, "standard input" for "-"
    std::string fingerprint;            // SHA-256 of the file's bytes, 64 hex digits
    std::vector<PreferencePair> pairs;  // in file order
    std::vector<uint64_t> prompt_keys;  // per pair: the same for the same prompt, before any cut
    std::vector<Remarks> remarks;       // per pair: what was done to it or noticed
    DataReport report;
};

// path: JSON Lines or one JSON array; "-" reads standard input.
// Error(kIo): cannot be read. Error(kBadData): not such a file, a bad row under BadRow::kFail (file:line:field), a pair
// too long under Truncation::kError, or no pair left. Error(kUsage): max_length below 2.
// Every pair keeps: a prompt of at least one token, at least one response token in each answer, and
// prompt + chosen and prompt + rejected at most max_length tokens.
Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options);
// The same for bytes at hand.
Dataset parse_dataset(std::string bytes, const std::string& name, const Tokenizer& tokenizer,
                      const DataOptions& options);

struct Split {
    Dataset train, eval;
};
// Holds out whole prompts: 5 % of the pairs, at most 200, chosen by the seed. Fewer than 100 pairs, or a single prompt:
// eval is empty. Both keep file order, name and fingerprint; reports are recounted, the file-wide part stays with
// train.
Split hold_out(Dataset all, uint64_t seed);

// Remarks kPromptInEval on every training pair whose prompt is also in `eval`. Returns how many.
int64_t mark_leaks(Dataset& train, const Dataset& eval);

// A permutation of 0..n-1 that depends on nothing but its arguments: position i of epoch `epoch` trains pair order[i].
std::vector<int32_t> epoch_order(int64_t n, uint64_t seed, int64_t epoch);

}  // namespace orpo
