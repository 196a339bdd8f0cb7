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
constexpr int kDecodeWarps = 8;

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

// grid (N, H). Eight warps split the cached tokens; each keeps an online softmax, and warp 0 joins them.
template <class T>
__global__ void __launch_bounds__(32 * kDecodeWarps) decode_attention_kernel(int H, int KV, int capacity,
                                                                             const int32_t* mask_pair,
                                                                             const int32_t* positions, const T* qkv,
                                                                             const T* cache, T* o) {
    struct Shared {
        float top[kDecodeWarps], sum[kDecodeWarps], out[kDecodeWarps][64];
    };
    Shared& s = shared_memory<Shared>();
    const int n = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV);
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    T* to = o + (int64_t{n} * H + head) * 64;
    if (mask_pair[n] < 0) {  // the whole block leaves
        if (warp == 0) to[2 * lane] = to[2 * lane + 1] = from_float<T>(0);
        return;
    }
    const T* q = qkv + int64_t{n} * (H + 2 * KV) * 64 + head * 64;
    const float q0 = to_float(q[2 * lane]) * 0.125f, q1 = to_float(q[2 * lane + 1]) * 0.125f;
    const T* rows = cache + int64_t{mask_pair[n] / 2} * capacity * 2 * KV * 64 + kv_head * 64;
    float top = -1.0e30f, sum = 0, out0 = 0, out1 = 0;
    for (int key = warp; key <= positions[n]; key += kDecodeWarps) {
        const T *k = rows + int64_t{key} * 2 * KV * 64, *v = k + KV * 64;
        const float score = warp_sum(q0 * to_float(k[2 * lane]) + q1 * to_float(k[2 * lane + 1]));
        const float high = fmaxf(top, score), shrink = expf(top - high), p = expf(score - high);
        top = high;
        sum = sum * shrink + p;
        out0 = out0 * shrink + p * to_float(v[2 * lane]);
        out1 = out1 * shrink + p * to_float(v[2 * lane + 1]);
    }
    if (lane == 0) s.top[warp] = top, s.sum[warp] = sum;
    s.out[warp][2 * lane] = out0;
    s.out[warp][2 * lane + 1] = out1;
    __syncthreads();
    if (warp > 0) return;
    float high = s.top[0], total = 0;
    for (int w = 1; w < kDecodeWarps; ++w) high = fmaxf(high, s.top[w]);
    out0 = out1 = 0;
    for (int w = 0; w < kDecodeWarps; ++w) {
        const float scale = expf(s.top[w] - high);
        total += s.sum[w] * scale;
        out0 += s.out[w][2 * lane] * scale;
        out1 += s.out[w][2 * lane + 1] * scale;
    }
    to[2 * lane] = from_float<T>(out0 / total);
    to[2 * lane + 1] = from_float<T>(out1 / total);
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

#define ORPO_INSTANTIATE(T)                                                                                         \
    template void cache_append(Stream, int, Heads, int, const int32_t*, const int32_t*, const T*, T*);              \
    template void decode_attention(Stream, int, Heads, int, const int32_t*, const int32_t*, const T*, const T*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)
template void gemv(Stream, int, int, int, const float*, const float*, float*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, bf16*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, float*);

}  // namespace orpo::cuda
