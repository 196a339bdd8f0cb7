// embed   x[n] = E[ids[n]]           reads and writes N C elements
// gather  to[i] = from[rows[i].row]  the rows that the head scores
// cast    y = (T) x
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kEach = 2;  // packs of 16 bytes that a thread moves, both on their way at once

// to[n] = from[row_of(n)], packs in all. Counted in 32 bits, whose division is cheap: 2^32 packs are 64 GiB.
template <class T, class F>
__device__ __forceinline__ void move_rows(unsigned packs, unsigned packs_per_row, F row_of, const T* from, T* to) {
    constexpr int P = Pack<T>::n;
    const unsigned first = blockIdx.x * (kThreads * kEach) + threadIdx.x;
    Pack<T> moved[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const unsigned i = first + k * kThreads;
        if (i >= packs) break;
        const unsigned n = i / packs_per_row, c = i - n * packs_per_row;
        moved[k] = load_pack(from + (int64_t{row_of(n)} * packs_per_row + c) * P);
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const unsigned i = first + k * kThreads;
        if (i >= packs) break;
        store_pack(to + int64_t{i} * P, moved[k]);
    }
}

// E (V, C), x (N, C)
template <class T>
__global__ void embed_kernel(unsigned packs, unsigned packs_per_row, const int32_t* ids, const T* E, T* x) {
    follow_kernels_before();
    move_rows(
        packs, packs_per_row, [&](unsigned n) { return ids[n]; }, E, x);
}

template <class T>
__global__ void gather_kernel(unsigned packs, unsigned packs_per_row, const HeadRow* rows, const T* from, T* to) {
    follow_kernels_before();
    move_rows(
        packs, packs_per_row, [&](unsigned n) { return rows[n].row; }, from, to);
}

// One thread casts four elements; the last quad may be ragged.
template <class T>
__global__ void cast_kernel(int64_t n, const float* x, T* y) {
    const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
    if (first >= n) return;
    if (first + 4 > n) {
        for (int64_t i = first; i < n; ++i) y[i] = from_float<T>(x[i]);
        return;
    }
    const Quad<float> in = load_quad(x + first);
    Quad<T> out;
#pragma unroll
    for (int e = 0; e < 4; ++e) out.v[e] = from_float<T>(in.v[e]);
    store_quad(y + first, out);
}

}  // namespace

template <class T>
void embed(Stream stream, int N, int C, const int32_t* ids, const T* E, T* x) {
    const unsigned packs_per_row = C / Pack<T>::n, packs = N * packs_per_row;
    LAUNCH_EARLY(embed_kernel<T>, dim3(blocks_for(packs, kThreads * kEach)), dim3(kThreads), 0, stream, packs,
                 packs_per_row, ids, E, x);
}
template <class T>
void gather(Stream stream, int n, int C, const HeadRow* rows, const T* from, T* to) {
    const unsigned packs_per_row = C / Pack<T>::n, packs = n * packs_per_row;
    LAUNCH_EARLY(gather_kernel<T>, dim3(blocks_for(packs, kThreads * kEach)), dim3(kThreads), 0, stream, packs,
                 packs_per_row, rows, from, to);
}
template <class T>
void cast(Stream stream, int64_t n, const float* x, T* y) {
    LAUNCH(cast_kernel<T>, dim3(blocks_for(n, kThreads * 4)), dim3(kThreads), 0, stream, n, x, y);
}

template void embed(Stream, int, int, const int32_t*, const float*, float*);
template void embed(Stream, int, int, const int32_t*, const bf16*, bf16*);
template void gather(Stream, int, int, const HeadRow*, const float*, float*);
template void gather(Stream, int, int, const HeadRow*, const bf16*, bf16*);
template void cast(Stream, int64_t, const float*, float*);
template void cast(Stream, int64_t, const float*, bf16*);

}  // namespace orpo::cuda
