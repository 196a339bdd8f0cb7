// The head's softmax and loss, version 3 of 4: maximum and sum in one pass.
//
// Changed: a thread keeps (maximum, sum of e^(z - maximum)) of what it has seen; when the maximum grows, the sum shrinks
// by e^(old - new). Two such pairs join the same way, so one reduction gives both: shuffles inside a warp, one barrier
// between warps.
// Expected: z is read twice instead of three times: 6 V bytes a row instead of 8, 1.33 times as fast where memory is the
// limit; one barrier instead of twenty. The price is a second exponential a value, while the maximum still moves.
// Version 4 (kernels/cuda/head.cu) reads 16 bytes a lane, eight logits, and looks for their maximum first: one rescaling
// a pack. Expected: an eighth of the requests, 1.1 exponentials a value instead of 2 in the first pass. It also takes a
// confident target's log p as -log1p(the others' weight), which keeps digits that z - lse loses.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Shared {
    float top[kWarps], sum[kWarps];
};

__global__ void xent_kernel(int V, const HeadRow* rows, bf16* z, double* logp) {
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x), target = rows[blockIdx.x].target;
    bf16* row = z + int64_t{blockIdx.x} * V;
    float top = -3.0e38f, sum = 0;
    for (int v = t; v < V; v += kThreads) {
        const float x = to_float(row[v]), high = fmaxf(top, x);
        sum = sum * expf(top - high) + expf(x - high);
        top = high;
    }
    const float at_target = to_float(row[target]);
    const float warp_top = warp_max(top);
    const float warp_total = warp_sum(sum * expf(top - warp_top));
    if (t % 32 == 0) s.top[t / 32] = warp_top, s.sum[t / 32] = warp_total;
    __syncthreads();  // the warps' parts are there, and every thread has read the target's logit
    float all_top = s.top[0], all = 0;
    for (int w = 1; w < kWarps; ++w) all_top = fmaxf(all_top, s.top[w]);
    for (int w = 0; w < kWarps; ++w) all += s.sum[w] * expf(s.top[w] - all_top);
    const float lse = all_top + logf(all);
    if (t == 0) logp[blockIdx.x] = at_target - lse;
    for (int v = t; v < V; v += kThreads)
        row[v] = from_float<bf16>(expf(to_float(row[v]) - lse) - (v == target ? 1.0f : 0.0f));
}

}  // namespace

void softmax_xent_3(Stream stream, int n, int V, const HeadRow* rows, bf16* z, double* logp) {
    LAUNCH(xent_kernel, dim3(static_cast<unsigned>(n)), dim3(kThreads), sizeof(Shared), stream, V, rows, z, logp);
}

}  // namespace orpo::cuda::progress
