// Residual add and RMSNorm, version 1 of 4: a thread a row.
//
//   x2 = x + d;  r = 1 / sqrt(mean(x2^2) + eps);  y = x2 r w        x, d, x2, y (N, C) bf16, w (C), r (N) fp32
//
// Two kernels: the add, a thread an element; the norm, a thread a row that walks over it twice.
// Bytes: 3 N C elements for the add, 3 N C for the norm (x2 is read twice), against 4 N C that must move.
// Where it goes wrong: at any moment the 32 lanes of a warp read 2 bytes each from 32 rows, so a request moves 32
// sectors of 32 bytes for 64 useful bytes: 16 times too many, unless the first level cache keeps the lines (32 rows of
// 4 KB a warp: it does not). And N = 4096 rows are 4096 threads: 32 to a multiprocessor of an H200, which needs 2048.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 128;

__global__ void add_kernel(int64_t n, const bf16* x, const bf16* d, bf16* x2) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i < n) x2[i] = from_float<bf16>(to_float(x[i]) + to_float(d[i]));
}

__global__ void norm_kernel(int N, int C, float eps, const bf16* x, const float* w, bf16* y, float* r) {
    const int n = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    if (n >= N) return;
    const bf16* row = x + int64_t{n} * C;
    float squares = 0;
    for (int c = 0; c < C; ++c) squares += to_float(row[c]) * to_float(row[c]);
    r[n] = 1.0f / sqrtf(squares / static_cast<float>(C) + eps);
    for (int c = 0; c < C; ++c) y[int64_t{n} * C + c] = from_float<bf16>(to_float(row[c]) * r[n] * w[c]);
}

}  // namespace

void add_rmsnorm_1(Stream stream, int N, int C, float eps, const bf16* x, const bf16* d, const float* w, bf16* x2,
                   bf16* y, float* r) {
    LAUNCH(add_kernel, dim3(blocks_for(int64_t{N} * C, kThreads)), dim3(kThreads), 0, stream, int64_t{N} * C, x, d, x2);
    LAUNCH(norm_kernel, dim3(blocks_for(N, kThreads)), dim3(kThreads), 0, stream, N, C, eps, x2, w, y, r);
}

}  // namespace orpo::cuda::progress
