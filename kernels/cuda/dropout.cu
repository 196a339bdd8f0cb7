// Dropout whose mask is a function of an element's place in its pair (kernels/dropout_mask.h), never of its row:
//   dropout      y = x keep / (1 - p)        reads and writes n elements
//   dropout_add  dx += d keep / (1 - p)
// One thread decides four channels with one Philox call (about 100 integer operations): bound by arithmetic on small T.
#include "kernels/cuda/philox.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;

// Add: y += mask x, else y = mask x.   threshold: a word is dropped when it is less than p as a uniform
template <bool Add, class T>
__global__ void dropout_kernel(int first, int64_t quads, int quads_per_row, double p, float keep, uint32_t tensor,
                               const BatchScalars* scalars, const int32_t* mask_pair, const int32_t* positions,
                               const T* x, T* y) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= quads) return;
    const int64_t n = first + i / quads_per_row;
    const uint32_t quad = static_cast<uint32_t>(i % quads_per_row);
    const uint4 words =
        philox4(scalars->dropout_key, make_uint4(scalars->step, static_cast<uint32_t>(mask_pair[n]),
                                                 static_cast<uint32_t>(positions[n]), tensor << 16 | quad));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    const int64_t at = (n * quads_per_row + quad) * 4;
    const Quad<T> in = load_quad(x + at);
    Quad<T> out;
    if (Add) out = load_quad(y + at);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const float factor = uniform24(word[e]) >= p ? keep : 0.0f;
        const float value = factor * to_float(in.v[e]);
        out.v[e] = from_float<T>(Add ? to_float(out.v[e]) + value : value);
    }
    store_quad(y + at, out);
}

template <bool Add, class T>
void launch(Stream stream, int first, int rows, int C, double p, uint32_t tensor, const BatchScalars* scalars,
            const int32_t* mask_pair, const int32_t* positions, const T* x, T* y) {
    const int64_t quads = int64_t{rows} * C / 4;
    const float keep = static_cast<float>(1 / (1 - p));
    LAUNCH((dropout_kernel<Add, T>), dim3(blocks_for(quads, kThreads)), dim3(kThreads), 0, stream, first, quads, C / 4,
           p, keep, tensor, scalars, mask_pair, positions, x, y);
}

}  // namespace

template <class T>
void dropout(Stream stream, int first, int rows, int C, double p, uint32_t tensor, const BatchScalars* scalars,
             const int32_t* mask_pair, const int32_t* positions, const T* x, T* y) {
    launch<false>(stream, first, rows, C, p, tensor, scalars, mask_pair, positions, x, y);
}
template <class T>
void dropout_add(Stream stream, int first, int rows, int C, double p, uint32_t tensor, const BatchScalars* scalars,
                 const int32_t* mask_pair, const int32_t* positions, const T* d, T* dx) {
    launch<true>(stream, first, rows, C, p, tensor, scalars, mask_pair, positions, d, dx);
}

#define ORPO_INSTANTIATE(T)                                                                                 \
    template void dropout(Stream, int, int, int, double, uint32_t, const BatchScalars*, const int32_t*,     \
                          const int32_t*, const T*, T*);                                                    \
    template void dropout_add(Stream, int, int, int, double, uint32_t, const BatchScalars*, const int32_t*, \
                              const int32_t*, const T*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)

}  // namespace orpo::cuda
