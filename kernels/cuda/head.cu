// The ORPO head: what follows logits z = h W^T and precedes U = (softmax - onehot) W.
//
//   softmax_xent    logp = z[t] - lse(z);  z <- softmax(z) - onehot(t), the difference taken in fp32
//                   z (n, V) in T. Bytes: 2 V elements read (the second time from L2), V written. 4 V exponentials.
//   orpo            per pair: mean log-probabilities, loss, c_t of each of its head rows (kernels/orpo_pair.h), double
//   scatter_scaled  dn[n] = sum of c_i U_i over the at most two head rows of n; 0 where there is none
#include "kernels/cuda/device.cuh"
#include "kernels/orpo_pair.h"

namespace orpo::cuda {

namespace {

constexpr int kXentThreads = 512;

// Reduces (max, sum of e^(z - max)) over the block; every thread gets the result. scratch: one slot a warp.
__device__ __forceinline__ void block_softmax(float& top, float& sum, float2* scratch) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const float warp_top = warp_max(top);
    sum = warp_sum(sum * expf(top - warp_top));
    if (lane == 0) scratch[warp] = make_float2(warp_top, sum);
    __syncthreads();
    const float2 part = lane < kXentThreads / 32 ? scratch[lane] : make_float2(-INFINITY, 0.0f);
    top = warp_max(part.x);
    sum = warp_sum(part.y * expf(part.x - top));
}

template <class T>
__global__ void __launch_bounds__(kXentThreads) softmax_xent_kernel(int V, const HeadRow* rows, T* z, double* logp,
                                                                    bool keep) {
    constexpr int P = Pack<T>::n;
    struct Shared {
        float2 part[kXentThreads / 32];
        float others[kXentThreads / 32];
    };
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
    const int target = rows[row].target;
    T* zn = z + int64_t{row} * V;
    // A lane's running maximum; -INFINITY - -INFINITY would be NaN, so it starts at the lane's first value.
    float top = -INFINITY, sum = 0;
    for (int i = t; i < V / P; i += kXentThreads) {
        const Pack<T> pack = load_pack(zn + i * P);
        float high = top;
#pragma unroll
        for (int e = 0; e < P; ++e) high = fmaxf(high, to_float(pack.v[e]));
        sum = top == -INFINITY ? 0.0f : sum * expf(top - high);
        top = high;
#pragma unroll
        for (int e = 0; e < P; ++e) sum += expf(to_float(pack.v[e]) - top);
    }
    if (top == -INFINITY) top = -3.0e38f;  // a lane without values
    block_softmax(top, sum, s.part);
    const float at_target = to_float(zn[target]);
    const float lse = top + logf(sum);
    // A confident token: log p = -log1p(the others' weight relative to the target's), with no cancellation.
    float others = 0;
    if (at_target - lse >= -1.0f) {
        for (int i = t; i < V / P; i += kXentThreads) {
            const Pack<T> pack = load_pack(zn + i * P);
#pragma unroll
            for (int e = 0; e < P; ++e)
                if (i * P + e != target) others += expf(to_float(pack.v[e]) - at_target);
        }
    }
    others = warp_sum(others);
    if (t % 32 == 0) s.others[t / 32] = others;
    __syncthreads();  // also: every thread has read z[target]
    others = 0;
    for (int w = 0; w < kXentThreads / 32; ++w) others += s.others[w];
    const float log_p = at_target - lse < -1.0f ? at_target - lse : -log1pf(others);
    if (t == 0) logp[row] = log_p;
    if (!keep) return;
    for (int i = t; i < V / P; i += kXentThreads) {
        Pack<T> pack = load_pack(zn + i * P);
#pragma unroll
        for (int e = 0; e < P; ++e) {
            const float p = expf(to_float(pack.v[e]) - lse);
            pack.v[e] = from_float<T>(i * P + e == target ? expm1f(log_p) : p);
        }
        store_pack(zn + i * P, pack);
    }
}

constexpr int kPairThreads = 32;

// One thread a pair: a few hundred rows in double, once a micro-batch.
__global__ void orpo_kernel(int n, const PairSpan* pairs, const HeadRow* heads, const double* logp,
                            double* coefficients) {
    const int i = static_cast<int>(blockIdx.x * kPairThreads + threadIdx.x);
    if (i >= n) return;
    const PairSpan span = pairs[i];
    const PairLoss pair = orpo_pair(span, heads + span.first_head, logp + span.first_head);
    for (int h = span.first_head; h < span.first_head + span.heads; ++h)
        coefficients[h] = row_coefficient(heads[h], pair);
}

constexpr int kThreads = 256;

template <class T>
__global__ void scatter_scaled_kernel(int64_t packs, int packs_per_row, const int32_t* head1, const int32_t* head2,
                                      const T* U, const double* coefficients, T* dn) {
    constexpr int P = Pack<T>::n;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * P, C = int64_t{packs_per_row} * P;
    float sum[P] = {};
    for (const int h : {head1[n], head2[n]}) {
        if (h < 0) continue;
        const float scale = static_cast<float>(coefficients[h]);
        const Pack<T> u = load_pack(U + h * C + c);
#pragma unroll
        for (int e = 0; e < P; ++e) sum[e] += scale * to_float(u.v[e]);
    }
    Pack<T> out;
#pragma unroll
    for (int e = 0; e < P; ++e) out.v[e] = from_float<T>(sum[e]);
    store_pack(dn + n * C + c, out);
}

}  // namespace

template <class T>
void softmax_xent(Stream stream, int n, int V, const HeadRow* rows, T* z, double* logp, bool keep) {
    LAUNCH(softmax_xent_kernel<T>, dim3(static_cast<unsigned>(n)), dim3(kXentThreads),
           kXentThreads / 32 * (sizeof(float2) + sizeof(float)), stream, V, rows, z, logp, keep);
}
void orpo(Stream stream, int n, const PairSpan* pairs, const HeadRow* heads, const double* logp, double* coefficients) {
    LAUNCH(orpo_kernel, dim3(blocks_for(n, kPairThreads)), dim3(kPairThreads), 0, stream, n, pairs, heads, logp,
           coefficients);
}
template <class T>
void scatter_scaled(Stream stream, int N, int C, const int32_t* head1, const int32_t* head2, const T* U,
                    const double* coefficients, T* dn) {
    const int64_t packs = int64_t{N} * C / Pack<T>::n;
    LAUNCH(scatter_scaled_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs,
           C / Pack<T>::n, head1, head2, U, coefficients, dn);
}

#define ORPO_INSTANTIATE(T)                                                                      \
    template void softmax_xent(Stream, int, int, const HeadRow*, T*, double*, bool);             \
    template void scatter_scaled(Stream, int, int, const int32_t*, const int32_t*, const T*, const double*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
