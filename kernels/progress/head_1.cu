// The head's softmax and loss, version 1 of 4: a thread a row.
//
//   lse = log sum_v e^z[v];  logp = z[target] - lse;  z <- e^(z - lse) - onehot(target)      z (n, V) bf16, in place
//
// Around it stand two products in every version: z = h W^T before, U = (softmax - onehot) W after. That the same pass
// gives the loss and the gradient is what the frozen head allows: a head that is asked for the loss first and for the
// gradient when the pairs' weights are known needs z twice, a third product of 2 V C FLOPs a row.
// Bytes: z is read three times (maximum, sum, result) and written once: 8 V bytes a row against 4 V that must move.
// Where it goes wrong: a lane reads 2 bytes from a row of its own, 98 KB away from its neighbour's: 32 sectors a request,
// 16 times too many; and a chunk of 1024 rows is 1024 threads for a card that holds 270,000.
// In bf16, p - 1 is formed before rounding, so a confident target keeps its gradient; log p = z - lse, though, loses its
// digits to cancellation when p is near 1.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 64;

__global__ void xent_kernel(int n, int V, const HeadRow* rows, bf16* z, double* logp) {
    const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    if (i >= n) return;
    bf16* row = z + int64_t{i} * V;
    const int target = rows[i].target;
    float top = -INFINITY, sum = 0;
    for (int v = 0; v < V; ++v) top = fmaxf(top, to_float(row[v]));
    for (int v = 0; v < V; ++v) sum += expf(to_float(row[v]) - top);
    const float lse = top + logf(sum);
    logp[i] = to_float(row[target]) - lse;
    for (int v = 0; v < V; ++v) row[v] = from_float<bf16>(expf(to_float(row[v]) - lse) - (v == target ? 1.0f : 0.0f));
}

}  // namespace

void softmax_xent_1(Stream stream, int n, int V, const HeadRow* rows, bf16* z, double* logp) {
    LAUNCH(xent_kernel, dim3(blocks_for(n, kThreads)), dim3(kThreads), 0, stream, n, V, rows, z, logp);
}

}  // namespace orpo::cuda::progress
