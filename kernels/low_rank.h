// A low-rank product that a linear adds to a part of its result, before the result is rounded to T, and its gradients.
#pragma once

#include <cstdint>

namespace orpo {

// S (rows, R) times B, added to rows [row, row + rows) and columns [column, column + columns) of the result.
template <class T>
struct LowRank {
    int row, rows, column, columns, R;
    const T* S;  // (rows, R) at distance lds
    int lds;
    const T* B;  // at distance ldb: linear: (columns, R), used as B^T; linear_backward: (R, columns)
    int ldb;
};

// What columns [column, column + columns) of dy, the gradient of y = x W^T + S B^T, give to that term:
//   dB += dy^T S,   dS = scale dy B
template <class T, class F>
struct LowRankGradient {
    int column, columns, R;
    const T* S;  // (N, R) at distance lds
    int lds;
    const T* B;  // (columns, R)
    F* dB;       // (columns, R)
    T* dS;       // (N, R) at distance ldds
    int ldds;
};

// By two products for each term: low_rank_backward (kernels/kernels.h) where reading dy once would save nothing.
template <class K, class Gradients>
void low_rank_products(K& k, int N, double scale, const typename K::T* dy, int ldy, const Gradients& gradients) {
    for (const auto& g : gradients) {
        k.gemm_tn(g.columns, g.R, N, dy + g.column, ldy, g.S, g.lds, g.dB, g.R);
        k.gemm_nn(N, g.R, g.columns, scale, dy + g.column, ldy, g.B, g.R, g.dS, g.ldds, false);
    }
}

}  // namespace orpo
