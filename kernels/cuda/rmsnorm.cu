// RMSNorm, forward and backward; the weight is frozen, so there is no dw.
//
//   rmsnorm           y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
//   add_rmsnorm       x2 = x + d (rounded to T), then the same of x2: the residual add costs no pass of its own
//   normalize         y = x r w with r given: what backward needs again
//   rmsnorm_backward  dx (+)= r (w dy - x r^2 mean(x w dy))
//
// x, d, y, dy, dx (N, C) in T; w (C), r (N) fp32.
// Bytes: 2, 4, 2 and 4 N C elements: one read and one write of each array. FLOPs: 4 to 8 N C. Bound by memory.
//
// A warp owns a row and keeps it in registers, V packs of 16 bytes a lane, so that nothing is read twice; four rows a
// block. Sums are fp32 in a fixed order.
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kRows = 4;  // warps a block

// f(pack index in the row, v) for this lane's packs: packs lane, lane + 32, ...
template <int V, class F>
__device__ __forceinline__ void each_pack(int packs, F f) {
    const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (lane + v * 32 < packs) f(lane + v * 32, v);
}

// y = x r w of the row in registers.
template <int V, class T>
__device__ __forceinline__ void write_normed(int packs, const Pack<T> (&x)[V], float r, const float* w, T* y) {
    each_pack<V>(packs, [&](int i, int v) {
        Pack<T> out;
#pragma unroll
        for (int e = 0; e < Pack<T>::n; ++e) out.v[e] = from_float<T>(to_float(x[v].v[e]) * r * w[i * Pack<T>::n + e]);
        store_pack(y + i * Pack<T>::n, out);
    });
}

template <int V, class T>
__device__ __forceinline__ float inverse_rms(int packs, const Pack<T> (&x)[V], float eps) {
    float squares = 0;
    each_pack<V>(packs, [&](int, int v) {
#pragma unroll
        for (int e = 0; e < Pack<T>::n; ++e) squares += to_float(x[v].v[e]) * to_float(x[v].v[e]);
    });
    squares = warp_sum(squares);
    return 1.0f / sqrtf(squares / static_cast<float>(packs * Pack<T>::n) + eps);
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    rmsnorm_kernel(int N, int packs, float eps, const T* x, const float* w, T* y, float* r) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * packs * Pack<T>::n;
    Pack<T> row[V];
    each_pack<V>(packs, [&](int i, int v) { row[v] = load_pack(x + at + i * Pack<T>::n); });
    const float rn = inverse_rms<V>(packs, row, eps);
    write_normed<V>(packs, row, rn, w, y + at);
    if (threadIdx.x == 0) r[n] = rn;
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    add_rmsnorm_kernel(int N, int packs, float eps, const T* x, const T* d, const float* w, T* x2, T* y, float* r) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * packs * Pack<T>::n;
    Pack<T> row[V];
    each_pack<V>(packs, [&](int i, int v) {
        const Pack<T> a = load_pack(x + at + i * Pack<T>::n), b = load_pack(d + at + i * Pack<T>::n);
#pragma unroll
        for (int e = 0; e < Pack<T>::n; ++e) row[v].v[e] = from_float<T>(to_float(a.v[e]) + to_float(b.v[e]));
        store_pack(x2 + at + i * Pack<T>::n, row[v]);
    });
    const float rn = inverse_rms<V>(packs, row, eps);
    write_normed<V>(packs, row, rn, w, y + at);
    if (threadIdx.x == 0) r[n] = rn;
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    normalize_kernel(int N, int packs, const T* x, const float* w, const float* r, T* y) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * packs * Pack<T>::n;
    Pack<T> row[V];
    each_pack<V>(packs, [&](int i, int v) { row[v] = load_pack(x + at + i * Pack<T>::n); });
    write_normed<V>(packs, row, r[n], w, y + at);
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    rmsnorm_backward_kernel(int N, int packs, const T* dy, const T* x, const float* w, const float* r, T* dx,
                            bool accumulate) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * packs * Pack<T>::n;
    Pack<T> xs[V], dys[V];
    float dot = 0;
    each_pack<V>(packs, [&](int i, int v) {
        xs[v] = load_pack(x + at + i * Pack<T>::n);
        dys[v] = load_pack(dy + at + i * Pack<T>::n);
#pragma unroll
        for (int e = 0; e < Pack<T>::n; ++e)
            dot += to_float(xs[v].v[e]) * w[i * Pack<T>::n + e] * to_float(dys[v].v[e]);
    });
    dot = warp_sum(dot);
    const float rn = r[n], pull = dot / static_cast<float>(packs * Pack<T>::n) * rn * rn;
    each_pack<V>(packs, [&](int i, int v) {
        Pack<T> out;
        if (accumulate) out = load_pack(dx + at + i * Pack<T>::n);
#pragma unroll
        for (int e = 0; e < Pack<T>::n; ++e) {
            const float g = rn * (w[i * Pack<T>::n + e] * to_float(dys[v].v[e]) - to_float(xs[v].v[e]) * pull);
            out.v[e] = from_float<T>(accumulate ? to_float(out.v[e]) + g : g);
        }
        store_pack(dx + at + i * Pack<T>::n, out);
    });
}

// Calls f with the smallest instantiated number of packs a lane that holds a row. 2048 channels are 8 packs of bf16 a
// lane and 16 of float.
template <class T, class F>
void with_packs(int packs, F f) {
    if (packs <= 32)
        f(std::integral_constant<int, 1>{});
    else if (packs <= 96)
        f(std::integral_constant<int, 3>{});
    else if (packs <= 128)
        f(std::integral_constant<int, 4>{});
    else if (packs <= 160)
        f(std::integral_constant<int, 5>{});
    else if (packs <= 256)
        f(std::integral_constant<int, 8>{});
    else if constexpr (Pack<T>::n == 4)
        f(std::integral_constant<int, 16>{});
}

}  // namespace

template <class T>
void rmsnorm(Stream stream, int N, int C, double eps, const T* x, const float* w, T* y, float* r) {
    const int packs = C / Pack<T>::n;
    const float e = static_cast<float>(eps);
    with_packs<T>(packs, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH((rmsnorm_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, packs, e, x, w, y, r);
    });
}
template <class T>
void add_rmsnorm(Stream stream, int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y,
                 float* r) {
    const int packs = C / Pack<T>::n;
    const float e = static_cast<float>(eps);
    with_packs<T>(packs, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH((add_rmsnorm_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, packs, e, x, d, w,
               x2, y, r);
    });
}
template <class T>
void normalize(Stream stream, int N, int C, const T* x, const float* w, const float* r, T* y) {
    const int packs = C / Pack<T>::n;
    with_packs<T>(packs, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH((normalize_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, packs, x, w, r, y);
    });
}
template <class T>
void rmsnorm_backward(Stream stream, int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx,
                      bool accumulate) {
    const int packs = C / Pack<T>::n;
    with_packs<T>(packs, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH((rmsnorm_backward_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, packs, dy, x,
               w, r, dx, accumulate);
    });
}

#define ORPO_INSTANTIATE(T)                                                                                \
    template void rmsnorm(Stream, int, int, double, const T*, const float*, T*, float*);                   \
    template void add_rmsnorm(Stream, int, int, double, const T*, const T*, const float*, T*, T*, float*); \
    template void normalize(Stream, int, int, const T*, const float*, const float*, T*);                   \
    template void rmsnorm_backward(Stream, int, int, const T*, const T*, const float*, const float*, T*, bool);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
