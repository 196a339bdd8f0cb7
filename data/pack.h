// From preference pairs to micro-batches: whole pairs end to end, no padding, and for every scored row its share of the
// loss. The normalisers belong to the optimizer batch, so the result does not depend on where the batch is cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/options.h"
#include "data/pair.h"
#include "kernels/batch.h"

namespace orpo {

// Which tokens the likelihood term counts: prompt and chosen, or the chosen response alone.
enum class NllScope { kFull, kResponse };

// Whose loss (reference: TRL's ORPOTrainer; the papers' code; LLaMA-Factory). What differs is which rows are scored and
// with what weight:
//   orpo, trl      NLL pooled over the batch's tokens; odds over response tokens
//   paper          the same, but no end-of-turn target anywhere in the NLL (the authors pad with it and mask padding),
//                  and the odds' means count one token more: the first padding after an answer, where there is room;
//                  scope response: no target of id 0 either (there, masking goes through zeros)
//   llamafactory   NLL is the mean over pairs of the mean over the chosen response; the scope is always the response
struct Objective {
    Semantics semantics = Semantics::kOrpo;
    NllScope nll_scope = NllScope::kFull;
    int32_t eos = -1;    // end-of-turn token, paper only
    int max_length = 0;  // length to which the authors' code pads, paper only
};

// What one optimizer batch divides by. Of several machines: the sum.
struct BatchTotals {
    int64_t pairs = 0;
    int64_t nll_tokens = 0;
};
BatchTotals batch_totals(std::span<const PreferencePair* const> batch, const Objective& objective);

struct PackOptions {
    Objective objective;
    BatchTotals totals;
    int max_tokens = 0;              // most tokens, and most head rows, of a micro-batch
    std::vector<double> betas = {};  // of each adapter slot; every pair is laid out once per slot
    bool score_prompt = false;       // head rows for prompt tokens even where the loss does not count them
    uint64_t dropout_key = 0;        // stream_key(seed, Stream::kDropout)
    uint32_t step = 0;               // optimizer step
    int32_t first_pair = 0;          // place of batch[0] in the optimizer batch
};

// In the batch's order. Error(kUsage) when a pair alone is larger than max_tokens: it names the line and the flag.
std::vector<MicroBatch> pack(std::span<const PreferencePair* const> batch, const PackOptions& options);

// Rows that a pair takes: its tokens, or its head rows where these are more (paper).
int64_t packed_rows(const PreferencePair& pair, const Objective& objective);

}  // namespace orpo
