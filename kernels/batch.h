// What one forward and backward pass runs on: whole preference pairs laid end to end, and the rows that the head
// scores. Plain numbers only, so that a backend on a device takes all of it in one copy.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"

namespace orpo {

// One pair: rows [begin, chosen) are the shared prompt, [chosen, rejected) the chosen answer, [rejected, end) the
// rejected one. A prompt or chosen row sees rows begin..itself; a rejected row sees the prompt and rejected..itself.
struct PairSpan {
    int32_t begin = 0, chosen = 0, rejected = 0, end = 0;
    int32_t first_head = 0, heads = 0;  // its rows in MicroBatch::heads
    int32_t slot = 0;                   // adapter that this pair trains
    int32_t pair_in_batch = 0;          // place in the optimizer batch: part of every dropout counter, never the row
    int64_t line = 0;                   // where the pair came from, for messages
    double odds_weight = 0;             // beta of the slot / pairs of the optimizer batch
};

enum class Part : int32_t { kPrompt = 0, kChosen = 1, kRejected = 2 };

// One scored prediction: the final hidden state of `row` predicts `target`.
struct HeadRow {
    int32_t row = 0, target = 0;
    int32_t pair = 0;  // index into MicroBatch::pairs
    Part part = Part::kPrompt;
    int32_t in_odds = 0;  // 1: counts in the mean log-probability of its answer
    int32_t text = 0;     // generation: number of the text, part of every draw's counter
    double nll_weight = 0;  // NLL = sum over rows of nll_weight * -logp; 0: not part of it
};

// N tokens. Pairs of one slot stand together. `heads` is sorted by pair, part, position; no row has more than two (the
// last prompt row predicts the first token of both answers).
struct MicroBatch {
    std::vector<int32_t> ids;        // (N)
    std::vector<int32_t> positions;  // (N) the rejected answer restarts at the prompt's length
    std::vector<PairSpan> pairs;
    std::vector<HeadRow> heads;
    uint64_t dropout_key = 0;  // stream_key(seed, Stream::kDropout)
    uint32_t step = 0;         // optimizer step, for dropout
};

// How the next token is drawn from a row of logits, in this order.
struct SampleRule {
    double temperature = 0;  // 0: greedy, the likeliest token, the lowest id among equals
    int32_t top_k = 0;       // 0: off
    double top_p = 1;        // the fewest likeliest tokens that together have at least this share
    double min_p = 0;        // tokens at least this likely relative to the likeliest
};
// One draw for each head row: random is Philox of (key; place, HeadRow::text, 0, 0), nothing else.
struct Draw {
    SampleRule rule;
    uint64_t key = 0;    // stream_key(seed, Stream::kSample)
    uint32_t place = 0;  // of the drawn token in its text
};

// Rows [first, first + rows) train adapter `slot`.
struct SlotRun {
    int32_t slot = 0, first = 0, rows = 0;
};

// A micro-batch in host memory with what kernels look up per row: the K::Batch of the backends on the CPU.
struct HostBatch {
    int N = 0;        // tokens
    int heads_n = 0;  // head rows
    std::vector<SlotRun> runs;
    std::vector<int32_t> ids, positions;  // (N)
    std::vector<int32_t> mask_pair;       // (N) pair_in_batch * 2 + (1 for rows of the rejected answer)
    std::vector<int32_t> head1, head2;    // (N) indices into heads of the predictions made by this row, -1: none
    std::vector<PairSpan> pairs;
    std::vector<HeadRow> heads;
    uint64_t dropout_key = 0;
    uint32_t step = 0;

    HostBatch(int tokens, int max_pairs, int max_heads) {
        for (auto* list : {&ids, &positions, &mask_pair, &head1, &head2}) list->reserve(tokens);
        pairs.reserve(max_pairs), heads.reserve(max_heads), runs.reserve(max_pairs);
    }
    static int64_t bytes(int64_t tokens, int64_t max_pairs, int64_t max_heads) {
        return tokens * 5 * 4 + max_pairs * static_cast<int64_t>(sizeof(PairSpan) + sizeof(SlotRun)) +
               max_heads * static_cast<int64_t>(sizeof(HeadRow));
    }

    void fill(const MicroBatch& mb) {
        ORPO_CHECK(mb.ids.size() <= ids.capacity() && mb.pairs.size() <= pairs.capacity());
        ORPO_CHECK(mb.heads.size() <= heads.capacity() && mb.positions.size() == mb.ids.size());
        N = static_cast<int>(mb.ids.size()), heads_n = static_cast<int>(mb.heads.size());
        ids = mb.ids, positions = mb.positions, pairs = mb.pairs, heads = mb.heads;
        dropout_key = mb.dropout_key, step = mb.step;
        mask_pair.assign(N, 0), head1.assign(N, -1), head2.assign(N, -1);
        runs.clear();
        int32_t next = 0;
        for (const PairSpan& p : pairs) {
            ORPO_CHECK(p.begin == next && p.begin <= p.chosen && p.chosen <= p.rejected && p.rejected <= p.end);
            for (int n = p.begin; n < p.end; ++n) mask_pair[n] = p.pair_in_batch * 2 + (n >= p.rejected ? 1 : 0);
            if (runs.empty() || runs.back().slot != p.slot) runs.push_back({p.slot, p.begin, 0});
            runs.back().rows += p.end - p.begin;
            next = p.end;
        }
        ORPO_CHECK(next == N);
        for (int i = 0; i < heads_n; ++i) {
            const int row = heads[i].row;
            ORPO_CHECK(row >= 0 && row < N && head2[row] < 0);
            (head1[row] < 0 ? head1 : head2)[row] = i;
        }
    }
};

}  // namespace orpo
