// How low_rank.cu cuts its arrays among blocks, and the scratch that this takes. Host only: a plan needs no GPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/ops.h"

namespace orpo::cuda {

// A block a (chunk of one term's columns, range of rows). Where columns are cut depends on the widths alone, where rows
// are cut on N and the widths.
struct LowRankCut {
    static constexpr int kMostTerms = 3;   // q, k, v
    static constexpr int kColumns = 512;   // of a chunk, at most
    static constexpr int kRows = 32;       // a range is a multiple of this
    static constexpr int kBlocks = 264;    // wanted: two a multiprocessor of a large device
    static constexpr int kLeastRows = 64;  // of a range, for what a range costs besides its rows

    int columns = 0, chunks = 0;                          // of all terms
    int before[kMostTerms] = {}, first[kMostTerms] = {};  // columns and chunks of the terms before
    int most_ranges = 0;                                  // never more for fewer rows
    int range_rows = 0, ranges = 0;

    LowRankCut(int N, int n, const LowRankTerm* terms) {
        for (int i = 0; i < n; ++i) {
            before[i] = columns, first[i] = chunks;
            columns += terms[i].columns, chunks += chunks_of(terms[i].columns);
        }
        const int wanted = kBlocks / chunks, most = (N + kLeastRows - 1) / kLeastRows;
        most_ranges = wanted < 1 ? 1 : wanted < most ? wanted : most;
        range_rows = ((N + most_ranges - 1) / most_ranges + kRows - 1) / kRows * kRows;
        ranges = (N + range_rows - 1) / range_rows;
    }
    static int chunks_of(int columns) { return (columns + kColumns - 1) / kColumns; }
    // A multiple of the 64 columns that a warp owns.
    static int chunk_columns(int columns) {
        const int slices = (columns + 63) / 64, chunks = chunks_of(columns);
        return (slices + chunks - 1) / chunks * 64;
    }
};

// Floats, no more for fewer rows; 0: the kernels are not made for these sizes.
inline int64_t low_rank_scratch(int N, int n, const LowRankTerm* terms) {
    if (N < 1 || n < 1 || n > LowRankCut::kMostTerms) return 0;
    const int R = terms[0].R;
    if (R != 8 && R != 16 && R != 32) return 0;
    const LowRankCut cut(N, n, terms);
    return (int64_t{cut.most_ranges} * cut.columns + int64_t{cut.chunks} * N) * R;
}

}  // namespace orpo::cuda
