// Residual add and RMSNorm, version 2 of 4: a block a row.
//
// Changed: 256 threads share a row; neighbouring lanes read neighbouring elements. The sum of squares is a tree in shared
// memory: eight halvings with a barrier after each.
// Expected: a request of 32 lanes moves 2 sectors instead of 32, so memory traffic falls from some 20 N C elements to the
// 6 N C that two kernels with a second reading need, 5 N C where the second reading comes from the cache; and N blocks
// fill the card. At C = 576 a thread has two or three elements between nine barriers: these are now what it waits for.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 256;

__global__ void add_kernel(int64_t n, const bf16* x, const bf16* d, bf16* x2) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i < n) x2[i] = from_float<bf16>(to_float(x[i]) + to_float(d[i]));
}

__global__ void norm_kernel(int C, float eps, const bf16* x, const float* w, bf16* y, float* r) {
    struct Shared {
        float sum[kThreads];
    };
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x);
    const int64_t at = int64_t{blockIdx.x} * C;
    float squares = 0;
    for (int c = t; c < C; c += kThreads) squares += to_float(x[at + c]) * to_float(x[at + c]);
    s.sum[t] = squares;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) s.sum[t] += s.sum[t + half];
        __syncthreads();
    }
    const float rn = 1.0f / sqrtf(s.sum[0] / static_cast<float>(C) + eps);
    for (int c = t; c < C; c += kThreads) y[at + c] = from_float<bf16>(to_float(x[at + c]) * rn * w[c]);
    if (t == 0) r[blockIdx.x] = rn;
}

}  // namespace

void add_rmsnorm_2(Stream stream, int N, int C, float eps, const bf16* x, const bf16* d, const float* w, bf16* x2,
                   bf16* y, float* r) {
    LAUNCH(add_kernel, dim3(blocks_for(int64_t{N} * C, kThreads)), dim3(kThreads), 0, stream, int64_t{N} * C, x, d, x2);
    LAUNCH(norm_kernel, dim3(static_cast<unsigned>(N)), dim3(kThreads), kThreads * sizeof(float), stream, C, eps, x2, w,
           y, r);
}

}  // namespace orpo::cuda::progress
