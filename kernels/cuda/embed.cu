// embed   x[n] = E[ids[n]]           reads and writes N C elements
// gather  to[i] = from[rows[i].row]  the rows that the head scores
// cast    y = (T) x
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;

// One thread moves 16 bytes. E (V, C), x (N, C)
template <class T>
__global__ void embed_kernel(int64_t packs, int packs_per_row, const int32_t* ids, const T* E, T* x) {
    follow_kernels_before();
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * Pack<T>::n;
    const int64_t C = int64_t{packs_per_row} * Pack<T>::n;
    store_pack(x + n * C + c, load_pack(E + ids[n] * C + c));
}

template <class T>
__global__ void gather_kernel(int64_t packs, int packs_per_row, const HeadRow* rows, const T* from, T* to) {
    follow_kernels_before();
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * Pack<T>::n;
    const int64_t C = int64_t{packs_per_row} * Pack<T>::n;
    store_pack(to + n * C + c, load_pack(from + rows[n].row * C + c));
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
    const int64_t packs = int64_t{N} * C / Pack<T>::n;
    LAUNCH_EARLY(embed_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs, C / Pack<T>::n, ids, E,
           x);
}
template <class T>
void gather(Stream stream, int n, int C, const HeadRow* rows, const T* from, T* to) {
    const int64_t packs = int64_t{n} * C / Pack<T>::n;
    LAUNCH_EARLY(gather_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs, C / Pack<T>::n, rows,
           from, to);
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
