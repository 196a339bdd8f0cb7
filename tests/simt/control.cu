// Kernels that use memory badly on purpose, beside good twins: what the counts must tell apart (counts_test.cpp).
#include "kernels/cuda/device.cuh"
#include "tests/simt/control.h"

namespace orpo::cuda {

namespace {

// to[i] = from[i * stride]. One warp.
__global__ void strided_kernel(int stride, const float* from, float* to) {
    const int i = static_cast<int>(threadIdx.x);
    to[i] = from[i * stride];
}

// Transposes 32 x 32 floats through shared memory with rows of Pitch floats. block (32, 8)
template <int Pitch>
__global__ void transpose_kernel(const float* from, float* to) {
    struct Shared {
        float tile[32][Pitch];
    };
    Shared& s = shared_memory<Shared>();
    const int x = static_cast<int>(threadIdx.x);
    for (int y = static_cast<int>(threadIdx.y); y < 32; y += 8) s.tile[y][x] = from[y * 32 + x];
    __syncthreads();
    for (int y = static_cast<int>(threadIdx.y); y < 32; y += 8) to[y * 32 + x] = s.tile[x][y];
}

// Copies 16 bytes a lane to rows of Pitch bf16 with cp.async, and reads them as matrices. One warp.
template <int Pitch>
__global__ void matrix_kernel(const bf16* from, unsigned* to) {
    struct Shared {
        bf16 row[16][Pitch];
    };
    Shared& s = shared_memory<Shared>();
    const int lane = static_cast<int>(threadIdx.x);
    cp_async_16(&s.row[lane / 2][lane % 2 * 8], from + lane * 8);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    const uint4 r = ldmatrix_x4(&s.row[lane % 16][lane / 16 * 8]);
    to[lane] = r.x ^ r.y ^ r.z ^ r.w;
}

// Lanes read 8 and 16 bytes at a time from neighbouring places, and 16 with a gap of 16.
__global__ void wide_kernel(const float* from, float* to) {
    struct Shared {
        alignas(16) float v[256];
    };
    Shared& s = shared_memory<Shared>();
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 256; i += 32) s.v[i] = from[i];
    __syncwarp();
    const Pack<float> near = load_pack(&s.v[lane * 4]), far = load_pack(&s.v[lane * 8]);
    const double pair = reinterpret_cast<const double*>(s.v)[lane];
    to[lane] = near.v[0] + far.v[0] + static_cast<float>(pair != 0);
}

}  // namespace

void strided(int stride, const float* from, float* to) {
    LAUNCH(strided_kernel, dim3(1), dim3(32), 0, nullptr, stride, from, to);
}
void transpose(bool padded, const float* from, float* to) {
    if (padded)
        LAUNCH(transpose_kernel<33>, dim3(1), dim3(32, 8), 32 * 33 * sizeof(float), nullptr, from, to);
    else
        LAUNCH(transpose_kernel<32>, dim3(1), dim3(32, 8), 32 * 32 * sizeof(float), nullptr, from, to);
}
void matrix(bool padded, const bf16* from, unsigned* to) {
    if (padded)
        LAUNCH(matrix_kernel<72>, dim3(1), dim3(32), 16 * 72 * sizeof(bf16), nullptr, from, to);
    else
        LAUNCH(matrix_kernel<64>, dim3(1), dim3(32), 16 * 64 * sizeof(bf16), nullptr, from, to);
}
void wide(const float* from, float* to) {
    LAUNCH(wide_kernel, dim3(1), dim3(32), 256 * sizeof(float), nullptr, from, to);
}

}  // namespace orpo::cuda
