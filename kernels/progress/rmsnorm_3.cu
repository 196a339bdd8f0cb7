// Residual add and RMSNorm, version 3 of 4: a warp a row, in one kernel with the add.
//
// Changed: a row belongs to one warp, whose sum is five shuffles, without shared memory and without a barrier. The add is
// part of the kernel: x2 is written on the way, and what is read again is still in the first level cache.
// Expected: 4 N C elements cross the memory instead of 5 or 6 and one launch instead of two: 1.25 to 1.5 times as fast,
// if requests of 2 bytes a lane could keep the memory busy. They cannot: 64 bytes a request, where 512 are possible.
// Version 4 (kernels/cuda/rmsnorm.cu) moves 16 bytes a lane and keeps the row in registers between its two uses.
// Expected: an eighth of the requests, no second reading; time is what 4 N C elements take at the copy bandwidth.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kRows = 4;  // warps a block

__global__ void add_norm_kernel(int N, int C, float eps, const bf16* x, const bf16* d, const float* w, bf16* x2,
                                bf16* y, float* r) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y), lane = static_cast<int>(threadIdx.x);
    if (n >= N) return;
    const int64_t at = int64_t{n} * C;
    float squares = 0;
    for (int c = lane; c < C; c += 32) {
        const bf16 sum = from_float<bf16>(to_float(x[at + c]) + to_float(d[at + c]));
        x2[at + c] = sum;
        squares += to_float(sum) * to_float(sum);
    }
    const float rn = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
    // Each lane reads what it wrote itself.
    for (int c = lane; c < C; c += 32) y[at + c] = from_float<bf16>(to_float(x2[at + c]) * rn * w[c]);
    if (lane == 0) r[n] = rn;
}

}  // namespace

void add_rmsnorm_3(Stream stream, int N, int C, float eps, const bf16* x, const bf16* d, const float* w, bf16* x2,
                   bf16* y, float* r) {
    LAUNCH(add_norm_kernel, dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, C, eps, x, d, w, x2, y, r);
}

}  // namespace orpo::cuda::progress
