// RoPE, half-split, in place on the q and k heads of qkv:
//   (a, b) -> (a c - sign b s, b c + sign a s)   a = channel j, b = channel j + 32 of a head; c, s by position and j
// sign = 1 forward, -1 backward (the inverse rotation).
// qkv (N, (H + 2 KV) 64), table (positions, 32, {cos, sin}) fp32. Bytes: 2 N (H + KV) 64 elements; bound by memory.
// A thread turns one pack of a against the pack of b. They are counted in 32 bits, whose division is cheap: 2^32 of
// them are 128 GiB.
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void rope_kernel(unsigned items, unsigned heads, int width, const int32_t* positions, const float* table,
                            float sign, T* qkv) {
    constexpr int P = Pack<T>::n, kPacks = 32 / P;  // packs of half a head
    const unsigned i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= items) return;
    const unsigned n = i / (heads * kPacks), in_row = i - n * (heads * kPacks);
    const int head = static_cast<int>(in_row / kPacks), j = static_cast<int>(in_row % kPacks) * P;
    T* at = qkv + int64_t{n} * width + head * 64 + j;
    Pack<T> a = load_pack(at), b = load_pack(at + 32);
    const float* turn = table + (int64_t{positions[n]} * 32 + j) * 2;
    Quad<float> cs[P / 2];  // {c, s} of two channels each
#pragma unroll
    for (int e = 0; e < P / 2; ++e) cs[e] = load_quad(turn + e * 4);
#pragma unroll
    for (int e = 0; e < P; ++e) {
        const float c = cs[e / 2].v[e % 2 * 2], s = sign * cs[e / 2].v[e % 2 * 2 + 1];
        const float x = to_float(a.v[e]), y = to_float(b.v[e]);
        a.v[e] = from_float<T>(x * c - y * s);
        b.v[e] = from_float<T>(y * c + x * s);
    }
    store_pack(at, a);
    store_pack(at + 32, b);
}

}  // namespace

template <class T>
void rope(Stream stream, int N, Heads heads, const int32_t* positions, const float* table, int sign, T* qkv) {
    const int turned = heads.H + heads.KV, width = (heads.H + 2 * heads.KV) * 64;
    const unsigned items = static_cast<unsigned>(N) * turned * (32 / Pack<T>::n);
    const float s = static_cast<float>(sign);
    LAUNCH(rope_kernel<T>, dim3(blocks_for(items, kThreads)), dim3(kThreads), 0, stream, items, turned, width,
           positions, table, s, qkv);
}

template void rope(Stream, int, Heads, const int32_t*, const float*, int, float*);
template void rope(Stream, int, Heads, const int32_t*, const float*, int, bf16*);

}  // namespace orpo::cuda
