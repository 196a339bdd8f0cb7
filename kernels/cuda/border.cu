// Small blocks between arrays whose rows lie at different distances. What a bordered product (kernels.h, Borders) needs
// moved: A and B of the adapters beside their weights once a step, x A^T behind x in every linear.
//
//   copy_rows     to[r][c] = from[r][c]                     reads and writes rows * cols elements
//   copy_borders  the same for a list of blocks of one array   the whole adapter, in one launch
//   cast_rows     to[r][c] = (T) from[r][c]                 a weight on its way to the device
// Bound by memory; cols and the distances are multiples of a pack.
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfBorder = 16;

// A thread moves one pack.
template <class T>
__global__ void copy_rows_kernel(int64_t packs, int packs_per_row, const T* from, int ld_from, T* to, int ld_to) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t row = i / packs_per_row, c = i % packs_per_row * Pack<T>::n;
    store_pack(to + row * ld_to + c, load_pack(from + row * ld_from + c));
}

// grid (kBlocksOfBorder, borders)
template <class T>
__global__ void copy_borders_kernel(const Border<T>* borders, const T* from) {
    const Border<T> border = borders[blockIdx.y];
    const int packs_per_row = border.cols / Pack<T>::n;
    const int64_t packs = int64_t{border.rows} * packs_per_row;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs; i += kBlocksOfBorder * kThreads) {
        const int64_t row = i / packs_per_row, c = i % packs_per_row * Pack<T>::n;
        store_pack(border.to + row * border.ld + c, load_pack(from + border.from + row * border.cols + c));
    }
}

template <class T>
__global__ void cast_rows_kernel(int64_t quads, int quads_per_row, const float* from, T* to, int ld) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= quads) return;
    const Quad<float> in = load_quad(from + i * 4);
    Quad<T> out;
#pragma unroll
    for (int e = 0; e < 4; ++e) out.v[e] = from_float<T>(in.v[e]);
    store_quad(to + i / quads_per_row * ld + i % quads_per_row * 4, out);
}

}  // namespace

template <class T>
void copy_rows(Stream stream, int rows, int cols, const T* from, int ld_from, T* to, int ld_to) {
    const int64_t packs = int64_t{rows} * cols / Pack<T>::n;
    LAUNCH(copy_rows_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs, cols / Pack<T>::n,
           from, ld_from, to, ld_to);
}
template <class T>
void copy_borders(Stream stream, int n, const Border<T>* borders, const T* from) {
    LAUNCH(copy_borders_kernel<T>, dim3(kBlocksOfBorder, static_cast<unsigned>(n)), dim3(kThreads), 0, stream, borders,
           from);
}
template <class T>
void cast_rows(Stream stream, int rows, int cols, const float* from, T* to, int ld) {
    const int64_t quads = int64_t{rows} * cols / 4;
    LAUNCH(cast_rows_kernel<T>, dim3(blocks_for(quads, kThreads)), dim3(kThreads), 0, stream, quads, cols / 4, from, to,
           ld);
}

#define ORPO_INSTANTIATE(T)                                              \
    template void copy_rows(Stream, int, int, const T*, int, T*, int);   \
    template void copy_borders(Stream, int, const Border<T>*, const T*); \
    template void cast_rows(Stream, int, int, const float*, T*, int);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
