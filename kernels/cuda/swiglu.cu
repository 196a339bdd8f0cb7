// SwiGLU on the fused projection gu (N, 2I) = [g | u]:
//   forward   h = silu(g) u,  silu(g) = g sigma(g)                  reads 2 N I, writes N I elements; 5 N I FLOPs
//   backward  dg = dh u sigma (1 + g (1 - sigma)), du = dh g sigma  in place of g and u, and h again, in place of dh:
//             reads 3 N I, writes 3 N I; 10 N I FLOPs
// Bound by memory. A thread handles one pack of 16 bytes of g and of u.
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float sigma(float x) { return 1.0f / (1.0f + fast_exp2(-1.44269504f * x)); }

template <class T>
__global__ void swiglu_kernel(int64_t packs, int packs_per_row, const T* gu, T* h) {
    follow_kernels_before();
    constexpr int P = Pack<T>::n;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * P, I = int64_t{packs_per_row} * P;
    const Pack<T> g = load_pack(gu + n * 2 * I + c), u = load_pack(gu + n * 2 * I + I + c);
    Pack<T> out;
#pragma unroll
    for (int e = 0; e < P; ++e) {
        const float x = to_float(g.v[e]);
        out.v[e] = from_float<T>(x * sigma(x) * to_float(u.v[e]));
    }
    store_pack(h + n * I + c, out);
}

template <class T>
__global__ void swiglu_backward_kernel(int64_t packs, int packs_per_row, const T* dh, T* gu, T* h) {
    constexpr int P = Pack<T>::n;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * P, I = int64_t{packs_per_row} * P;
    Pack<T> again, g = load_pack(gu + n * 2 * I + c), u = load_pack(gu + n * 2 * I + I + c);
    const Pack<T> d = load_pack(dh + n * I + c);
#pragma unroll
    for (int e = 0; e < P; ++e) {
        const float x = to_float(g.v[e]), s = sigma(x), de = to_float(d.v[e]), y = to_float(u.v[e]);
        again.v[e] = from_float<T>(x * s * y);
        g.v[e] = from_float<T>(de * y * s * (1.0f + x * (1.0f - s)));
        u.v[e] = from_float<T>(de * x * s);
    }
    store_pack(gu + n * 2 * I + c, g);
    store_pack(gu + n * 2 * I + I + c, u);
    if (h) store_pack(h + n * I + c, again);
}

}  // namespace

template <class T>
void swiglu(Stream stream, int N, int I, const T* gu, T* h) {
    const int64_t packs = int64_t{N} * I / Pack<T>::n;
    LAUNCH_EARLY(swiglu_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs, I / Pack<T>::n,
                 gu, h);
}
template <class T>
void swiglu_backward(Stream stream, int N, int I, const T* dh, T* gu, T* h) {
    const int64_t packs = int64_t{N} * I / Pack<T>::n;
    LAUNCH(swiglu_backward_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs,
           I / Pack<T>::n, dh, gu, h);
}

template void swiglu(Stream, int, int, const float*, float*);
template void swiglu(Stream, int, int, const bf16*, bf16*);
template void swiglu_backward(Stream, int, int, const float*, float*, float*);
template void swiglu_backward(Stream, int, int, const bf16*, bf16*, bf16*);

}  // namespace orpo::cuda
