// A low-rank product that a linear adds to a part of its result, before the result is rounded to T.
#pragma once

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

}  // namespace orpo
