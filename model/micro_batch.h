// What one forward and backward pass runs on: whole preference pairs laid end to end, and the rows that the head scores.
#pragma once

#include <cstdint>
#include <vector>

namespace orpo {

// One pair in a micro-batch: rows [begin, chosen) are the shared prompt, [chosen, rejected) the chosen answer,
// [rejected, end) the rejected one. Rejected rows see the prompt and themselves, never the chosen answer.
struct PairSpan {
    int32_t begin = 0, chosen = 0, rejected = 0, end = 0;
    int32_t slot = 0;           // adapter that this pair trains
    int64_t pair_in_batch = 0;  // place in the optimizer batch: part of every random counter
    int32_t line = 0;           // where the pair came from, for messages
};

// One scored prediction: the final hidden state of `row` predicts `target`.
struct HeadRow {
    int32_t row = 0, target = 0;
    int32_t pair = 0;      // index into MicroBatch::pairs
    int8_t side = 0;       // 0 chosen (and prompt), 1 rejected
    bool in_nll = false;   // counts in the NLL term
    bool in_odds = false;  // counts in the mean log-probability of its side
};

// N tokens. Rows of `rows` are sorted by pair, side, position; the last prompt row appears twice, for it predicts the
// first token of both answers.
struct MicroBatch {
    std::vector<int32_t> ids;        // (N)
    std::vector<int32_t> positions;  // (N); rejected restarts at the prompt's length
    std::vector<PairSpan> pairs;
    std::vector<HeadRow> rows;
};

}  // namespace orpo
