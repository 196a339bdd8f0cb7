// The ORPO head: what follows logits z = h W^T and precedes U = (softmax - onehot) W.
//
//   softmax_xent    logp = z[t] - lse(z);  z <- softmax(z) - onehot(t), the difference taken in fp32
//                   z (n, V) in T. Bytes: V elements read, V written. 2 V exponentials.
//   orpo            per pair: mean log-probabilities, loss, c_t of each of its head rows (kernels/orpo_pair.h), double
//   scatter_scaled  dn[n] = sum of c_i U_i over the at most two head rows of n; 0 where there is none
#include "kernels/cuda/device.cuh"
#include "kernels/orpo_pair.h"

namespace orpo::cuda {

namespace {

constexpr int kXentThreads = 768;
constexpr float kLog2e = 1.44269504f;

// exp(x - top) = 2^(x log2(e) - log2e_top)
__device__ __forceinline__ float exp_below(float x, float log2e_top) { return fast_exp2(fmaf(x, kLog2e, -log2e_top)); }

// What the warps hand to each other.
struct XentPart {
    float top[kXentThreads / 32], sum[kXentThreads / 32];
};

// Reduces (max, sum of e^(z - max)) over the block; every thread gets the result.
__device__ __forceinline__ void block_softmax(float& top, float& sum, XentPart& part) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const float warp_top = warp_max(top);
    sum = warp_sum(sum * expf(top - warp_top));
    if (lane == 0) part.top[warp] = warp_top, part.sum[warp] = sum;
    __syncthreads();
    const bool one = lane < kXentThreads / 32;
    const float lane_top = one ? part.top[lane] : -INFINITY, lane_sum = one ? part.sum[lane] : 0.0f;
    top = warp_max(lane_top);
    sum = warp_sum(lane_sum * expf(lane_top - top));
}

// A block has a row, which comes to shared memory once, all of it on its way at once; both passes read it there. What
// does not fit (fp32, larger vocabularies) is read from global memory in both.
struct XentShared {
    static constexpr int kBytes = 96 * 1024;  // 49152 bf16; two blocks on a multiprocessor of sm_90
    alignas(16) unsigned char row[kBytes];
    XentPart part;
};
constexpr int kXentGroups = 4;                                                    // a thread's copies, as they arrive
constexpr int kXentPacks = XentShared::kBytes / 16 / kXentThreads / kXentGroups;  // of a group
static_assert(kXentPacks * kXentGroups * kXentThreads * 16 == XentShared::kBytes);

// f(0), ..., f(kXentGroups - 1), each when that group of copies is there.
template <int Left = kXentGroups, class F>
__device__ __forceinline__ void as_they_arrive(F f) {
    if constexpr (Left > 0) {
        cp_async_wait<Left - 1>();
        f(kXentGroups - Left);
        as_they_arrive<Left - 1>(f);
    }
}

template <class T>
__global__ void __launch_bounds__(kXentThreads, 2)
    softmax_xent_kernel(int V, const HeadRow* rows, T* z, double* logp, bool keep) {
    constexpr int P = Pack<T>::n, kKept = XentShared::kBytes / 16;
    XentShared& s = shared_memory<XentShared>();
    T* const kept = reinterpret_cast<T*>(s.row);  // a thread reads what it copied itself: no barrier
    const int t = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x), packs = V / P;
    T* zn = z + int64_t{row} * V;
#pragma unroll 1  // unrolled, the addresses take too many registers
    for (int g = 0; g < kXentGroups; ++g) {
#pragma unroll 1
        for (int k = 0; k < kXentPacks; ++k) {
            const int i = t + (g * kXentPacks + k) * kXentThreads;
            if (i < packs) cp_async_16(kept + i * P, zn + i * P);
        }
        cp_async_commit();
    }
    const int target = rows[row].target;
    const float at_target = to_float(zn[target]);
    // The others' maximum and sum: without the target, so that a confident token's log p has no cancellation.
    // -INFINITY - -INFINITY would be NaN, so a lane without values has a finite maximum, also when multiplied by
    // kLog2e.
    float top = -1.0e38f, sum = 0;
    const auto add = [&](int i, const Pack<T>& pack) {
        if (i == target / P) return;
        float high = top;
#pragma unroll
        for (int e = 0; e < P; ++e) high = fmaxf(high, to_float(pack.v[e]));
        sum *= fast_exp2((top - high) * kLog2e);
        top = high;
#pragma unroll
        for (int e = 0; e < P; ++e) sum += exp_below(to_float(pack.v[e]), top * kLog2e);
    };
    as_they_arrive([&](int g) {
#pragma unroll
        for (int k = 0; k < kXentPacks; ++k) {
            const int i = t + (g * kXentPacks + k) * kXentThreads;
            if (i < packs) add(i, load_pack(kept + i * P));
        }
    });
    for (int i = t + kKept; i < packs; i += kXentThreads) add(i, load_pack(zn + i * P));
    // The target's pack, an element a lane.
    if (t < P && t != target % P) {
        const float value = to_float(zn[target / P * P + t]), high = fmaxf(top, value);
        sum = sum * fast_exp2((top - high) * kLog2e) + exp_below(value, high * kLog2e);
        top = high;
    }
    block_softmax(top, sum, s.part);
    // log p = z[t] - lse; of a confident token -log1p(the others' weight relative to the target's), with no
    // cancellation.
    const float highest = fmaxf(top, at_target);
    const float lse = highest + logf(sum * expf(top - highest) + expf(at_target - highest));
    const float log_p = at_target - lse < -1.0f ? at_target - lse : -log1pf(sum * expf(top - at_target));
    if (t == 0) logp[row] = log_p;
    if (!keep) return;
    const auto write = [&](int i, Pack<T> pack) {
#pragma unroll
        for (int e = 0; e < P; ++e) pack.v[e] = from_float<T>(exp_below(to_float(pack.v[e]), lse * kLog2e));
        store_pack(zn + i * P, pack);
    };
    for (int i = t; i < packs && i < kKept; i += kXentThreads) write(i, load_pack(kept + i * P));
    for (int i = t + kKept; i < packs; i += kXentThreads) write(i, load_pack(zn + i * P));
    if (target / P % kXentThreads == t) zn[target] = from_float<T>(expm1f(log_p));  // by the thread that wrote its pack
}

constexpr int kPairThreads = 128;

struct PairShared {
    OddsSums part[kPairThreads / 32];
};

// A block a pair. Every thread has the whole sums and makes the same of them.
__global__ void __launch_bounds__(kPairThreads)
    orpo_kernel(const PairSpan* pairs, const HeadRow* heads, const double* logp, double* coefficients) {
    PairShared& s = shared_memory<PairShared>();
    const PairSpan& span = pairs[blockIdx.x];
    const int t = static_cast<int>(threadIdx.x);
    OddsSums sums;
    for (int i = t; i < span.heads; i += kPairThreads) sums.add(heads[span.first_head + i], logp[span.first_head + i]);
    sums.chosen_logp = warp_sum(sums.chosen_logp), sums.rejected_logp = warp_sum(sums.rejected_logp);
    sums.chosen = warp_sum(sums.chosen), sums.rejected = warp_sum(sums.rejected);
    if (t % 32 == 0) s.part[t / 32] = sums;
    __syncthreads();
    sums = s.part[0];
    for (int w = 1; w < kPairThreads / 32; ++w) sums.add(s.part[w]);
    const PairLoss pair = odds_ratio(span, sums);
    for (int i = t; i < span.heads; i += kPairThreads)
        coefficients[span.first_head + i] = row_coefficient(heads[span.first_head + i], pair);
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
    ALLOW_SHARED(softmax_xent_kernel<T>, sizeof(XentShared));
    LAUNCH(softmax_xent_kernel<T>, dim3(static_cast<unsigned>(n)), dim3(kXentThreads), sizeof(XentShared), stream, V,
           rows, z, logp, keep);
}
void orpo(Stream stream, int n, const PairSpan* pairs, const HeadRow* heads, const double* logp, double* coefficients) {
    LAUNCH(orpo_kernel, dim3(static_cast<unsigned>(n)), dim3(kPairThreads), sizeof(PairShared), stream, pairs, heads,
           logp, coefficients);
}
template <class T>
void scatter_scaled(Stream stream, int N, int C, const int32_t* head1, const int32_t* head2, const T* U,
                    const double* coefficients, T* dn) {
    const int64_t packs = int64_t{N} * C / Pack<T>::n;
    LAUNCH(scatter_scaled_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs,
           C / Pack<T>::n, head1, head2, U, coefficients, dn);
}

#define ORPO_INSTANTIATE(T)                                                          \
    template void softmax_xent(Stream, int, int, const HeadRow*, T*, double*, bool); \
    template void scatter_scaled(Stream, int, int, const int32_t*, const int32_t*, const T*, const double*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
