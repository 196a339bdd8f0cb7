// RMSNorm, forward and backward; the weight is frozen, so there is no dw.
//
//   rmsnorm           y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
//   add_rmsnorm       x2 = x + d (rounded to T), then the same of x2: the residual add costs no pass of its own
//     with low parts  x2 = bf16(x + x_low + d), x2_low = what that cut off, then the same of x2 + x2_low
//   normalize         y = x r w with r given: what backward needs again
//   rmsnorm_backward  dx (+)= r (w dy - x r^2 mean(x w dy))
//
// x, d, y, dy, dx (N, C) in T; w (C), r (N) fp32. y and dx have ldy and lddx elements between rows.
// Bytes: 2, 4 (with low parts 6), 2 and 4 N C elements: one read and one write of each array. FLOPs: 4 to 8 N C. Bound
// by memory.
//
// Why low parts: the residual stream is a sum of 2 L + 1 terms. In bf16 every addition loses 2^-9 of the stream, and
// what is lost is seen by all later layers; x2 + x2_low keeps 2^-18, as a float nearly would, for two more arrays.
//
// W warps own a row and keep it in registers, V quads of elements a lane, so that nothing is read twice; a block of
// four warps has 4 / W rows. Quads, not packs of 16 bytes: four bf16 of x lie beside four floats of w, so that the
// lanes' accesses to both are without gaps. Everything that a row needs is loaded before its first store: the arrays
// may overlap as far as the compiler knows, so that it moves no load over a store. Sums are fp32 in a fixed order.
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kWarps = 4;  // a block

// Block (32 W, kWarps / W): a lane's place in its row, the row. Row n of the grid's.
template <int W>
__device__ __forceinline__ int row_of_block() {
    return static_cast<int>(blockIdx.x * (kWarps / W) + threadIdx.y);
}

// f(quad index in the row, v) for this lane's quads, which are 32 W apart.
template <int W, int V, class F>
__device__ __forceinline__ void each_quad(int quads, F f) {
    const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (lane + v * 32 * W < quads) f(lane + v * 32 * W, v);
}

template <int W, int V, class T>
__device__ __forceinline__ void load_row(int quads, const T* from, Quad<T> (&row)[V]) {
    each_quad<W, V>(quads, [&](int i, int v) { row[v] = load_quad(from + i * 4); });
}

// The sum over the row's lanes, in every lane; a fixed tree. Once a kernel.
template <int W>
__device__ __forceinline__ float row_sum(float x) {
    x = warp_sum(x);
    if constexpr (W > 1) {
        static_assert(W == kWarps, "the barrier is the block's");
        struct Shared {
            float part[W];
        };
        Shared& s = shared_memory<Shared>();
        if (threadIdx.x % 32 == 0) s.part[threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
#pragma unroll
        for (int i = 0; i < W; ++i) x += s.part[i];
    }
    return x;
}

// y = x r w of the row in registers.
template <int W, int V, class X, class T>
__device__ __forceinline__ void write_normed(int quads, const Quad<X> (&x)[V], float r, const Quad<float> (&w)[V],
                                             T* y) {
    each_quad<W, V>(quads, [&](int i, int v) {
        Quad<T> out;
#pragma unroll
        for (int e = 0; e < 4; ++e) out.v[e] = from_float<T>(to_float(x[v].v[e]) * r * w[v].v[e]);
        store_quad(y + i * 4, out);
    });
}

template <int W, int V, class X>
__device__ __forceinline__ float inverse_rms(int quads, const Quad<X> (&x)[V], float eps) {
    float squares = 0;
    each_quad<W, V>(quads, [&](int, int v) {
#pragma unroll
        for (int e = 0; e < 4; ++e) squares += to_float(x[v].v[e]) * to_float(x[v].v[e]);
    });
    return 1.0f / sqrtf(row_sum<W>(squares) / static_cast<float>(quads * 4) + eps);
}

template <int W, int V, class T>
__global__ void __launch_bounds__(32 * kWarps)
    rmsnorm_kernel(int N, int quads, float eps, const T* x, const float* w, T* y, int ldy, float* r) {
    Quad<float> ws[V];
    load_row<W, V>(quads, w, ws);  // no kernel writes it
    follow_kernels_before();
    const int n = row_of_block<W>();
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<T> row[V];
    load_row<W, V>(quads, x + at, row);
    const float rn = inverse_rms<W, V>(quads, row, eps);
    write_normed<W, V>(quads, row, rn, ws, y + int64_t{n} * ldy);
    if (threadIdx.x == 0) r[n] = rn;
}

// Low: whether there are low parts; without them the row in registers is what x2 holds.
template <int W, int V, class T, bool Low>
__global__ void __launch_bounds__(32 * kWarps)
    add_rmsnorm_kernel(int N, int quads, float eps, const T* x, const T* x_low, const T* d, const float* w, T* x2,
                       T* x2_low, T* y, int ldy, float* r) {
    Quad<float> ws[V];
    load_row<W, V>(quads, w, ws);
    follow_kernels_before();
    const int n = row_of_block<W>();
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<T> a[V], b[V], low[V] = {};
    load_row<W, V>(quads, x + at, a);
    load_row<W, V>(quads, d + at, b);
    if (Low && x_low) load_row<W, V>(quads, x_low + at, low);
    Quad<std::conditional_t<Low, float, T>> row[V];
    each_quad<W, V>(quads, [&](int i, int v) {
        Quad<T> high;
        if constexpr (Low) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float sum = to_float(a[v].v[e]) + to_float(low[v].v[e]) + to_float(b[v].v[e]);
                high.v[e] = from_float<T>(sum);
                low[v].v[e] = from_float<T>(sum - to_float(high.v[e]));
                row[v].v[e] = sum;
            }
            store_quad(x2_low + at + i * 4, low[v]);
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) high.v[e] = from_float<T>(to_float(a[v].v[e]) + to_float(b[v].v[e]));
            row[v] = high;
        }
        store_quad(x2 + at + i * 4, high);
    });
    const float rn = inverse_rms<W, V>(quads, row, eps);
    write_normed<W, V>(quads, row, rn, ws, y + int64_t{n} * ldy);
    if (threadIdx.x == 0) r[n] = rn;
}

template <int W, int V, class T>
__global__ void __launch_bounds__(32 * kWarps)
    normalize_kernel(int N, int quads, const T* x, const float* w, const float* r, T* y, int ldy) {
    const int n = row_of_block<W>();
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    Quad<T> row[V];
    Quad<float> ws[V];
    load_row<W, V>(quads, x + at, row);
    load_row<W, V>(quads, w, ws);
    write_normed<W, V>(quads, row, r[n], ws, y + int64_t{n} * ldy);
}

template <int W, int V, class T>
__global__ void __launch_bounds__(32 * kWarps)
    rmsnorm_backward_kernel(int N, int quads, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                            bool accumulate) {
    const int n = row_of_block<W>();
    if (n >= N) return;
    const int64_t at = int64_t{n} * quads * 4;
    T* to = dx + int64_t{n} * lddx;
    Quad<T> xs[V], dys[V], out[V];
    Quad<float> ws[V];
    load_row<W, V>(quads, x + at, xs);
    load_row<W, V>(quads, dy + at, dys);
    if (accumulate) load_row<W, V>(quads, to, out);
    load_row<W, V>(quads, w, ws);
    const float rn = r[n];
    float dot = 0;
    each_quad<W, V>(quads, [&](int, int v) {
#pragma unroll
        for (int e = 0; e < 4; ++e) dot += to_float(xs[v].v[e]) * ws[v].v[e] * to_float(dys[v].v[e]);
    });
    const float pull = row_sum<W>(dot) / static_cast<float>(quads * 4) * rn * rn;
    each_quad<W, V>(quads, [&](int i, int v) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float g = rn * (ws[v].v[e] * to_float(dys[v].v[e]) - to_float(xs[v].v[e]) * pull);
            out[v].v[e] = from_float<T>(accumulate ? to_float(out[v].v[e]) + g : g);
        }
        store_quad(to + i * 4, out[v]);
    });
}

// Calls f with the smallest instantiated warps a row and quads a lane that hold a row: SmolLM2's 576, 960 and 2048
// channels are 1 x 5, 4 x 2 and 4 x 4.
template <class F>
void with_row(int quads, F f) {
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, kWarps> all;
    if (quads <= 64)
        f(one, std::integral_constant<int, 2>{});
    else if (quads <= 160)
        f(one, std::integral_constant<int, 5>{});
    else if (quads <= 256)
        f(all, std::integral_constant<int, 2>{});
    else
        f(all, std::integral_constant<int, 4>{});
}
template <int W>
dim3 grid_for(int N) {
    return dim3(blocks_for(N, kWarps / W));
}
template <int W>
dim3 block_for() {
    return dim3(32 * W, kWarps / W);
}
template <int W>
constexpr size_t shared_for() {
    return W > 1 ? W * sizeof(float) : 0;
}

}  // namespace

template <class T>
void rmsnorm(Stream stream, int N, int C, double eps, const T* x, const float* w, T* y, int ldy, float* r) {
    const int quads = C / 4;
    const float e = static_cast<float>(eps);
    with_row(quads, [&](auto warps, auto each) {
        constexpr int W = decltype(warps)::value, V = decltype(each)::value;
        LAUNCH_EARLY((rmsnorm_kernel<W, V, T>), grid_for<W>(N), block_for<W>(), shared_for<W>(), stream, N, quads, e, x,
                     w, y, ldy, r);
    });
}
template <class T>
void add_rmsnorm(Stream stream, int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy,
                 float* r, const T* x_low, T* x2_low) {
    const int quads = C / 4;
    const float e = static_cast<float>(eps);
    with_row(quads, [&](auto warps, auto each) {
        constexpr int W = decltype(warps)::value, V = decltype(each)::value;
        if constexpr (sizeof(T) < sizeof(float))
            if (x2_low) {
                LAUNCH_EARLY((add_rmsnorm_kernel<W, V, T, true>), grid_for<W>(N), block_for<W>(), shared_for<W>(),
                             stream, N, quads, e, x, x_low, d, w, x2, x2_low, y, ldy, r);
                return;
            }
        LAUNCH_EARLY((add_rmsnorm_kernel<W, V, T, false>), grid_for<W>(N), block_for<W>(), shared_for<W>(), stream, N,
                     quads, e, x, x_low, d, w, x2, x2_low, y, ldy, r);
    });
}
template <class T>
void normalize(Stream stream, int N, int C, const T* x, const float* w, const float* r, T* y, int ldy) {
    const int quads = C / 4;
    with_row(quads, [&](auto warps, auto each) {
        constexpr int W = decltype(warps)::value, V = decltype(each)::value;
        LAUNCH((normalize_kernel<W, V, T>), grid_for<W>(N), block_for<W>(), 0, stream, N, quads, x, w, r, y, ldy);
    });
}
template <class T>
void rmsnorm_backward(Stream stream, int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx,
                      int lddx, bool accumulate) {
    const int quads = C / 4;
    with_row(quads, [&](auto warps, auto each) {
        constexpr int W = decltype(warps)::value, V = decltype(each)::value;
        LAUNCH((rmsnorm_backward_kernel<W, V, T>), grid_for<W>(N), block_for<W>(), shared_for<W>(), stream, N, quads,
               dy, x, w, r, dx, lddx, accumulate);
    });
}

#define ORPO_INSTANTIATE(T)                                                                                    \
    template void rmsnorm(Stream, int, int, double, const T*, const float*, T*, int, float*);                  \
    template void add_rmsnorm(Stream, int, int, double, const T*, const T*, const float*, T*, T*, int, float*, \
                              const T*, T*);                                                                   \
    template void normalize(Stream, int, int, const T*, const float*, const float*, T*, int);                  \
    template void rmsnorm_backward(Stream, int, int, const T*, const T*, const float*, const float*, T*, int, bool);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
