// AdamW and the gradient norm over flat arenas (slots, n), fp32.
//
//   squared_norms  sum of g^2 per slot, in double: kNormBlocks partial sums in a fixed order, then their sum. Reads n.
//   adamw          p *= 1 - lr wd;  m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g^2
//                  p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)          reads 4 n, writes 3 n; bound by memory
// Source: Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101; torch.optim.AdamW.
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;

// The block's sum of one double a thread, in thread 0; a fixed tree.
__device__ __forceinline__ double block_sum(double x, double* scratch) {
    const int t = static_cast<int>(threadIdx.x);
    scratch[t] = x;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] += scratch[t + half];
        __syncthreads();
    }
    return scratch[0];
}

// grid (kNormBlocks, slots)
__global__ void partial_norm_kernel(int64_t n, const float* g, double* partial) {
    struct Shared {
        double part[kThreads];
    };
    const float* slot = g + blockIdx.y * n;
    constexpr int kBatch = 8;  // loads on their way at once
    constexpr int64_t kStep = int64_t{kNormBlocks} * kThreads;
    double sum = 0;
    for (int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x; first < n; first += kBatch * kStep) {
        float batch[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) batch[k] = first + k * kStep < n ? slot[first + k * kStep] : 0.0f;
#pragma unroll
        for (int k = 0; k < kBatch; ++k) sum += static_cast<double>(batch[k]) * batch[k];
    }
    sum = block_sum(sum, shared_memory<Shared>().part);
    if (threadIdx.x == 0) partial[blockIdx.y * kNormBlocks + blockIdx.x] = sum;
}

// grid (slots)
__global__ void total_norm_kernel(const double* partial, double* out) {
    struct Shared {
        double part[kThreads];
    };
    static_assert(kThreads == kNormBlocks);
    const double sum = block_sum(partial[blockIdx.x * kNormBlocks + threadIdx.x], shared_memory<Shared>().part);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// grid (blocks, slots)
__global__ void adamw_kernel(int64_t n, const AdamwStep* steps, float* p, const float* g, float* m, float* v) {
    const AdamwStep a = steps[blockIdx.y];
    const int64_t in_slot = int64_t{blockIdx.x} * kThreads + threadIdx.x, i = blockIdx.y * n + in_slot;
    if (!a.active || in_slot >= n) return;
    // All loads before the first store: the compiler moves none over a store.
    const float g0 = g[i], m0 = m[i], v0 = v[i], p0 = p[i];
    const float gi = g0 * a.grad_scale;
    const float mi = m0 + (1.0f - a.beta1) * (gi - m0);
    const float vi = a.beta2 * v0 + (1.0f - a.beta2) * gi * gi;
    m[i] = mi;
    v[i] = vi;
    p[i] = p0 * a.decay - a.lr_over_bias1 * mi / (sqrtf(vi) * a.inverse_sqrt_bias2 + a.eps);
}

}  // namespace

void squared_norms(Stream stream, int slots, int64_t n, const float* g, double* partial, double* out) {
    LAUNCH(partial_norm_kernel, dim3(kNormBlocks, static_cast<unsigned>(slots)), dim3(kThreads),
           kThreads * sizeof(double), stream, n, g, partial);
    LAUNCH(total_norm_kernel, dim3(static_cast<unsigned>(slots)), dim3(kThreads), kThreads * sizeof(double), stream,
           partial, out);
}
void adamw(Stream stream, int slots, int64_t n, const AdamwStep* steps, float* p, const float* g, float* m, float* v) {
    LAUNCH(adamw_kernel, dim3(blocks_for(n, kThreads), static_cast<unsigned>(slots)), dim3(kThreads), 0, stream, n,
           steps, p, g, m, v);
}

}  // namespace orpo::cuda
