// The head's softmax and loss, version 2 of 4: a block a row.
//
// Changed: 256 threads share a row, neighbouring lanes read neighbouring logits. Maximum and sum are trees in shared
// memory.
// Expected: 2 sectors a request instead of 32, and 1024 rows are 262,144 threads: the card is full. z still passes three
// times: 98 KB a row, and the rows of all blocks at work (8 to a multiprocessor, 132 of them: 100 MB) do not fit the
// 50 MB of L2, so most of the second and third reading comes from memory: 8 V bytes a row.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 256;

struct Shared {
    float part[kThreads];
};

// op over one value a thread; every thread gets the result, and may use s again at once.
template <class Op>
__device__ __forceinline__ float reduce(Shared& s, float x, Op op) {
    const int t = static_cast<int>(threadIdx.x);
    s.part[t] = x;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) s.part[t] = op(s.part[t], s.part[t + half]);
        __syncthreads();
    }
    const float result = s.part[0];
    __syncthreads();  // everybody has read it
    return result;
}

__global__ void xent_kernel(int V, const HeadRow* rows, bf16* z, double* logp) {
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x), target = rows[blockIdx.x].target;
    bf16* row = z + int64_t{blockIdx.x} * V;
    float top = -INFINITY, sum = 0;
    for (int v = t; v < V; v += kThreads) top = fmaxf(top, to_float(row[v]));
    top = reduce(s, top, [](float a, float b) { return fmaxf(a, b); });
    for (int v = t; v < V; v += kThreads) sum += expf(to_float(row[v]) - top);
    const float at_target = to_float(row[target]);  // read before the last barrier: another thread overwrites it
    const float lse = top + logf(reduce(s, sum, [](float a, float b) { return a + b; }));
    if (t == 0) logp[blockIdx.x] = at_target - lse;
    for (int v = t; v < V; v += kThreads)
        row[v] = from_float<bf16>(expf(to_float(row[v]) - lse) - (v == target ? 1.0f : 0.0f));
}

}  // namespace

void softmax_xent_2(Stream stream, int n, int V, const HeadRow* rows, bf16* z, double* logp) {
    LAUNCH(xent_kernel, dim3(static_cast<unsigned>(n)), dim3(kThreads), sizeof(Shared), stream, V, rows, z, logp);
}

}  // namespace orpo::cuda::progress
