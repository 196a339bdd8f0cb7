// Generation: one new row a sequence.
//
//   cache_append      K and V heads of qkv -> cache (sequences, capacity, 2, KV, 64)
//   decode_attention  o = softmax(q K^T / 8) V over the sequence's cache: reads 2 KV 64 elements a cached token
//   gemv              y = x W^T for a few rows: reads W once, out * in elements; bound by memory
//
// Rows that fill up a batch belong to no sequence (mask_pair < 0): they append nothing, and their o is 0.
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kDecodeWarps = 16;

// qkv (N, (H + 2 KV) 64): the K and V heads stand together at its end, as they do in a cache row.
template <class T>
__global__ void cache_append_kernel(int64_t packs, int packs_per_row, int skip, int width, int capacity,
                                    const int32_t* mask_pair, const int32_t* positions, const T* qkv, T* cache) {
    constexpr int P = Pack<T>::n;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * P;
    if (mask_pair[n] < 0) return;
    const int64_t row = int64_t{mask_pair[n] / 2} * capacity + positions[n];
    store_pack(cache + row * packs_per_row * P + c, load_pack(qkv + n * width + skip + c));
}

// One (row, head). A key's 64 channels lie over 64 / P lanes, a pack each, so that a warp looks at several keys at
// once; it loads kUnroll times as many before it waits, for there are few blocks and memory is far. Every group of
// lanes keeps an online softmax; a warp's groups are joined in registers, the warps through shared memory. grid (N, H)
template <class T>
__global__ void __launch_bounds__(32 * kDecodeWarps)
    decode_attention_kernel(int H, int KV, int capacity, const int32_t* mask_pair, const int32_t* positions,
                            const T* qkv, const T* cache, T* o) {
    constexpr int P = Pack<T>::n, kLanes = 64 / P, kGroups = 32 / kLanes, kUnroll = 4;
    struct Shared {
        float top[kDecodeWarps], sum[kDecodeWarps], out[kDecodeWarps][64];
    };
    Shared& s = shared_memory<Shared>();
    const int n = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV);
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int group = lane / kLanes, part = lane % kLanes;  // this lane: keys of its group, channels [part P, +P)
    T* to = o + (int64_t{n} * H + head) * 64;
    if (mask_pair[n] < 0) {  // the whole block leaves
        if (warp == 0 && group == 0) store_pack(to + part * P, Pack<T>{});
        return;
    }
    const Pack<T> packed = load_pack(qkv + int64_t{n} * (H + 2 * KV) * 64 + head * 64 + part * P);
    float q[P], out[P] = {}, top = -1.0e30f, sum = 0;
#pragma unroll
    for (int e = 0; e < P; ++e) q[e] = to_float(packed.v[e]) * 0.125f;
    const T* rows = cache + int64_t{mask_pair[n] / 2} * capacity * 2 * KV * 64 + kv_head * 64 + part * P;
    const int last = positions[n];
    for (int first = warp * kGroups * kUnroll; first <= last; first += kDecodeWarps * kGroups * kUnroll) {
        Pack<T> k[kUnroll], v[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int key = first + u * kGroups + group;
            const T* row = rows + int64_t{key <= last ? key : last} * 2 * KV * 64;
            k[u] = load_pack(row);
            v[u] = load_pack(row + KV * 64);
        }
        float score[kUnroll], high = top;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            score[u] = 0;
#pragma unroll
            for (int e = 0; e < P; ++e) score[u] += q[e] * to_float(k[u].v[e]);
#pragma unroll
            for (int offset = kLanes / 2; offset > 0; offset /= 2)
                score[u] += __shfl_xor_sync(0xffffffffu, score[u], offset);
            if (first + u * kGroups + group <= last) high = fmaxf(high, score[u]);
        }
        const float shrink = expf(top - high);
        top = high;
        sum *= shrink;
#pragma unroll
        for (int e = 0; e < P; ++e) out[e] *= shrink;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const float p = first + u * kGroups + group <= last ? expf(score[u] - top) : 0.0f;
            sum += p;
#pragma unroll
            for (int e = 0; e < P; ++e) out[e] += p * to_float(v[u].v[e]);
        }
    }
    // The groups of the warp.
    float high = top;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
    const float shrink = expf(top - high);
    sum *= shrink;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
#pragma unroll
    for (int e = 0; e < P; ++e) {
        out[e] *= shrink;
#pragma unroll
        for (int offset = kLanes; offset < 32; offset *= 2) out[e] += __shfl_xor_sync(0xffffffffu, out[e], offset);
    }
    if (lane == 0) s.top[warp] = high, s.sum[warp] = sum;
    // Parts that lie 32 floats apart start one channel apart, so that they meet in no bank.
    const bool turned = part * P >= 32;
    if (group == 0) {
#pragma unroll
        for (int e = 0; e < P; ++e) {
            const int c = turned ? (e + 1) % P : e;
            s.out[warp][part * P + c] = turned ? out[(e + 1) % P] : out[e];
        }
    }
    __syncthreads();
    // The warps: a thread a channel.
    const int c = warp * 32 + lane;
    if (c >= 64) return;
    high = s.top[0];
    for (int w = 1; w < kDecodeWarps; ++w) high = fmaxf(high, s.top[w]);
    float total = 0, joined = 0;
    for (int w = 0; w < kDecodeWarps; ++w) {
        const float scale = expf(s.top[w] - high);
        total += s.sum[w] * scale;
        joined += s.out[w][c] * scale;
    }
    to[c] = from_float<T>(joined / total);
}

// A warp owns one row of W and keeps sums for up to four rows of x. grid (out / 8, ceil(N / 4)), block (32, 8)
template <class T, class Y>
__global__ void gemv_kernel(int N, int out, int packs, const T* x, const T* W, Y* y) {
    constexpr int P = Pack<T>::n, kRows = 4;
    const int o = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y), lane = static_cast<int>(threadIdx.x);
    if (o >= out) return;
    const int first = static_cast<int>(blockIdx.y) * kRows, rows = N - first < kRows ? N - first : kRows;
    float sum[kRows] = {};
    for (int i = lane; i < packs; i += 32) {
        const Pack<T> w = load_pack(W + (int64_t{o} * packs + i) * P);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r >= rows) continue;
            const Pack<T> a = load_pack(x + (int64_t{first + r} * packs + i) * P);
#pragma unroll
            for (int e = 0; e < P; ++e) sum[r] += to_float(a.v[e]) * to_float(w.v[e]);
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const float total = warp_sum(sum[r]);
        if (r < rows && lane == 0) y[int64_t{first + r} * out + o] = from_float<Y>(total);
    }
}

}  // namespace

template <class T>
void cache_append(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair, const int32_t* positions,
                  const T* qkv, T* cache) {
    const int packs_per_row = 2 * heads.KV * 64 / Pack<T>::n;
    const int64_t packs = int64_t{N} * packs_per_row;
    LAUNCH(cache_append_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs, packs_per_row,
           heads.H * 64, (heads.H + 2 * heads.KV) * 64, capacity, mask_pair, positions, qkv, cache);
}
template <class T>
void decode_attention(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair,
                      const int32_t* positions, const T* qkv, const T* cache, T* o) {
    LAUNCH(decode_attention_kernel<T>, dim3(static_cast<unsigned>(N), static_cast<unsigned>(heads.H)),
           dim3(32, kDecodeWarps), kDecodeWarps * 66 * sizeof(float), stream, heads.H, heads.KV, capacity, mask_pair,
           positions, qkv, cache, o);
}
template <class T, class Y>
void gemv(Stream stream, int N, int out, int in, const T* x, const T* W, Y* y) {
    LAUNCH((gemv_kernel<T, Y>), dim3(blocks_for(out, 8), blocks_for(N, 4)), dim3(32, 8), 0, stream, N, out,
           in / Pack<T>::n, x, W, y);
}

#define ORPO_INSTANTIATE(T)                                                                            \
    template void cache_append(Stream, int, Heads, int, const int32_t*, const int32_t*, const T*, T*); \
    template void decode_attention(Stream, int, Heads, int, const int32_t*, const int32_t*, const T*, const T*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)
template void gemv(Stream, int, int, int, const float*, const float*, float*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, bf16*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, float*);

}  // namespace orpo::cuda
