// A part of an adapter that stands beside a weight (kernels.h, Borders).
#pragma once

#include <cstdint>

namespace orpo {

// (rows, cols) numbers from adapters[from] on, without gaps, go to rows at distance ld.
template <class T>
struct Border {
    int64_t from;
    T* to;
    int32_t rows, cols, ld, unused = 0;
};

}  // namespace orpo
