// RMSNorm, forward and backward; the weight is frozen, so there is no dw.
//
//   rmsnorm           y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
//   add_rmsnorm       x2 = x + d (rounded to T), then the same of x2: the residual add costs no pass of its own
//     with low parts  x2 = bf16(x + x_low + d), x2_low = what that cut off, then the same of x2 + x2_low
//   normalize         y = x r w with r given: what backward needs again
//   rmsnorm_backward  dx (+)= r (w dy - x r^2 mean(x w dy))
//
// x, d, y, dy, dx (N, C) in T; w (C), r (N) fp32.
// Bytes: 2, 4 (with low parts 6), 2 and 4 N C elements: one read and one write of each array. FLOPs: 4 to 8 N C. Bound
// by memory.
//
// Why low parts: the residual stream is a sum of 2 L + 1 terms. In bf16 every addition loses 2^-9 of the stream, and
// what is lost is seen by all later layers; x2 + x2_low keeps 2^-18, as a float nearly would, for two more arrays.
//
// A warp owns a row and keeps it in registers, V quads of elements a lane, so that nothing is read twice; four rows a
// block. Quads, not packs of 16 bytes: four bf16 of x lie beside four floats of w, so that the lanes' accesses to both
// are without gaps. Sums are fp32 in a fixed order.
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kRows = 4;  // warps a block

// f(quad index in the row, v) for this lane's quads: quads lane, lane + 32, ...
template <int V, class F>
__device__ __forceinline__ void each_quad(int quads, F f) {
    const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (lane + v * 32 < quads) f(lane + v * 32, v);
}

// y = x r w of the row in registers.
template <int V, class X, class T>
__device__ __forceinline__ void write_normed(int quads, const Quad<X> (&x)[V], float r, const float* w, T* y) {
    each_quad<V>(quads, [&](int i, int v) {
        const Quad<float> wi = load_quad(w + i * 4);
        Quad<T> out;
#pragma unroll
        for (int e = 0; e < 4; ++e) out.v[e] = from_float<T>(to_float(x[v].v[e]) * r * wi.v[e]);
        store_quad(y + i * 4, out);
    });
}

template <int V, class X>
__device__ __forceinline__ float inverse_rms(int quads, const Quad<X> (&x)[V], float eps) {
    float squares = 0;
    each_quad<V>(quads, [&](int, int v) {
#pragma unroll
        for (int e = 0; e < 4; ++e) squares += to_float(x[v].v[e]) * to_float(x[v].v[e]);
    });
    squares = warp_sum(squares);
    return 1.0f / sqrtf(squares / static_cast<float>(quads * 4) + eps);
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    rmsnorm_kernel(int N, int quads, float eps, const T* x, const float* w, T* y, float* r) {
    follow_kernels_before();
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<T> row[V];
    each_quad<V>(quads, [&](int i, int v) { row[v] = load_quad(x + at + i * 4); });
    const float rn = inverse_rms<V>(quads, row, eps);
    write_normed<V>(quads, row, rn, w, y + at);
    if (threadIdx.x == 0) r[n] = rn;
}

// Low: whether there are low parts; without them the row in registers is what x2 holds.
template <int V, class T, bool Low>
__global__ void __launch_bounds__(32 * kRows)
    add_rmsnorm_kernel(int N, int quads, float eps, const T* x, const T* x_low, const T* d, const float* w, T* x2,
                       T* x2_low, T* y, float* r) {
    follow_kernels_before();
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<std::conditional_t<Low, float, T>> row[V];
    each_quad<V>(quads, [&](int i, int v) {
        const Quad<T> a = load_quad(x + at + i * 4), b = load_quad(d + at + i * 4);
        Quad<T> high;
        if constexpr (Low) {
            Quad<T> low{};
            if (x_low) low = load_quad(x_low + at + i * 4);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float sum = to_float(a.v[e]) + to_float(low.v[e]) + to_float(b.v[e]);
                high.v[e] = from_float<T>(sum);
                low.v[e] = from_float<T>(sum - to_float(high.v[e]));
                row[v].v[e] = sum;
            }
            store_quad(x2_low + at + i * 4, low);
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) high.v[e] = from_float<T>(to_float(a.v[e]) + to_float(b.v[e]));
            row[v] = high;
        }
        store_quad(x2 + at + i * 4, high);
    });
    const float rn = inverse_rms<V>(quads, row, eps);
    write_normed<V>(quads, row, rn, w, y + at);
    if (threadIdx.x == 0) r[n] = rn;
}

// No sum to wait for, so a row goes by in pieces of four quads a lane: few registers, many warps.
template <class T>
__global__ void __launch_bounds__(32 * kRows)
    normalize_kernel(int N, int quads, const T* x, const float* w, const float* r, T* y) {
    constexpr int V = 4;
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    const float rn = r[n];
    for (int first = 0; first < quads; first += V * 32) {
        Quad<T> piece[V];
        const T* from = x + at + first * 4;
        each_quad<V>(quads - first, [&](int i, int v) { piece[v] = load_quad(from + i * 4); });
        write_normed<V>(quads - first, piece, rn, w + first * 4, y + at + first * 4);
    }
}

template <int V, class T>
__global__ void __launch_bounds__(32 * kRows)
    rmsnorm_backward_kernel(int N, int quads, const T* dy, const T* x, const float* w, const float* r, T* dx,
                            bool accumulate) {
    const int n = static_cast<int>(blockIdx.x * kRows + threadIdx.y);
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<T> xs[V], dys[V];
    float dot = 0;
    each_quad<V>(quads, [&](int i, int v) {
        xs[v] = load_quad(x + at + i * 4);
        dys[v] = load_quad(dy + at + i * 4);
        const Quad<float> wi = load_quad(w + i * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) dot += to_float(xs[v].v[e]) * wi.v[e] * to_float(dys[v].v[e]);
    });
    dot = warp_sum(dot);
    const float rn = r[n], pull = dot / static_cast<float>(quads * 4) * rn * rn;
    each_quad<V>(quads, [&](int i, int v) {
        const Quad<float> wi = load_quad(w + i * 4);
        Quad<T> out;
        if (accumulate) out = load_quad(dx + at + i * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float g = rn * (wi.v[e] * to_float(dys[v].v[e]) - to_float(xs[v].v[e]) * pull);
            out.v[e] = from_float<T>(accumulate ? to_float(out.v[e]) + g : g);
        }
        store_quad(dx + at + i * 4, out);
    });
}

// Calls f with the smallest instantiated number of quads a lane that holds a row: SmolLM2's 576, 960 and 2048 channels
// are 5, 8 and 16.
template <class F>
void with_quads(int quads, F f) {
    if (quads <= 64)
        f(std::integral_constant<int, 2>{});
    else if (quads <= 160)
        f(std::integral_constant<int, 5>{});
    else if (quads <= 256)
        f(std::integral_constant<int, 8>{});
    else
        f(std::integral_constant<int, 16>{});
}

}  // namespace

template <class T>
void rmsnorm(Stream stream, int N, int C, double eps, const T* x, const float* w, T* y, float* r) {
    const int quads = C / 4;
    const float e = static_cast<float>(eps);
    with_quads(quads, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH_EARLY((rmsnorm_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, quads, e, x, w, y, r);
    });
}
template <class T>
void add_rmsnorm(Stream stream, int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, float* r,
                 const T* x_low, T* x2_low) {
    const int quads = C / 4;
    const float e = static_cast<float>(eps);
    const dim3 grid(blocks_for(N, kRows)), block(32, kRows);
    with_quads(quads, [&](auto v) {
        constexpr int V = decltype(v)::value;
        if constexpr (sizeof(T) < sizeof(float))
            if (x2_low) {
                LAUNCH_EARLY((add_rmsnorm_kernel<V, T, true>), grid, block, 0, stream, N, quads, e, x, x_low, d, w, x2,
                       x2_low, y, r);
                return;
            }
        LAUNCH_EARLY((add_rmsnorm_kernel<V, T, false>), grid, block, 0, stream, N, quads, e, x, x_low, d, w, x2, x2_low, y,
               r);
    });
}
template <class T>
void normalize(Stream stream, int N, int C, const T* x, const float* w, const float* r, T* y) {
    LAUNCH(normalize_kernel<T>, dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, C / 4, x, w, r, y);
}
template <class T>
void rmsnorm_backward(Stream stream, int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx,
                      bool accumulate) {
    const int quads = C / 4;
    with_quads(quads, [&](auto v) {
        constexpr int V = decltype(v)::value;
        LAUNCH((rmsnorm_backward_kernel<V, T>), dim3(blocks_for(N, kRows)), dim3(32, kRows), 0, stream, N, quads, dy, x,
               w, r, dx, accumulate);
    });
}

#define ORPO_INSTANTIATE(T)                                                                                         \
    template void rmsnorm(Stream, int, int, double, const T*, const float*, T*, float*);                            \
    template void add_rmsnorm(Stream, int, int, double, const T*, const T*, const float*, T*, T*, float*, const T*, \
                              T*);                                                                                  \
    template void normalize(Stream, int, int, const T*, const float*, const float*, T*);                            \
    template void rmsnorm_backward(Stream, int, int, const T*, const T*, const float*, const float*, T*, bool);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
