// Checks, then times the versions of progress.h on a device.
#pragma once

#include <functional>
#include <vector>

#include "kernels/batch.h"
#include "kernels/bench.h"
#include "kernels/cuda/device.h"

namespace orpo::cuda::progress {

struct Shapes {
    MicroBatch batch;  // attention's rows, and the rows of the norm
    Heads heads{9, 3};
    int C = 576, V = 49152;
    int head_rows = 1024;
};

// timer(f): seconds of one run of f. Every version is first compared with the reference in double, on small ragged
// shapes of the same widths (BenchRow::error); a version that is wrong is not timed.
std::vector<BenchRow> rows(Device& device, const Shapes& shapes,
                           const std::function<double(const std::function<void()>&)>& timer);

}  // namespace orpo::cuda::progress
