// What the attention kernels share: tiles of 64 rows x 64 channels in shared memory, and their tensor core fragments.
//
// A tile's row is 72 elements long (144 bytes = 9 x 16): the eight rows that one ldmatrix phase reads start in eight
// different groups of four banks, so no access conflicts, and no swizzle is needed.
//
// Fragments of mma.m16n8k16 (PTX ISA), lane = 4 g + t:
//   A (16, 16)  x: (g, 2t..)  y: (g + 8, 2t..)  z: (g, 2t + 8..)  w: (g + 8, 2t + 8..)
//   B (16, 8)   b0: (2t.., g)  b1: (2t + 8.., g)
//   C (16, 8)   0, 1: (g, 2t..)  2, 3: (g + 8, 2t..)
#pragma once

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

inline constexpr int kTile = 64;         // rows of a tile, and the head size
inline constexpr int kPitch = 72;        // elements between rows
inline constexpr int kWarps = 4;         // a warp owns 16 rows of the tile
inline constexpr float kScale = 0.125f;  // 1 / sqrt(64)
inline constexpr float kLog2e = 1.44269504088896340736f;
inline constexpr float kPowersOf2 = kScale * kLog2e;  // exp(score / 8) = 2^(score kPowersOf2): one multiplication
inline constexpr float kRoom = 8 / kPowersOf2;        // of scores: a factor of 2^8
inline constexpr float kMasked = -1.0e30f;            // finite: -inf - -inf would be NaN

struct Tile {
    bf16 row[kTile][kPitch];
};

__device__ __forceinline__ int tiles_of(int rows) { return (rows + kTile - 1) / kTile; }

// Starts the copy of rows [first, first + count) of a head into the tile; rows behind are filled with zeros.
// head: the head's first channel of row 0, width: elements between rows. Four warps take part, all of them.
__device__ __forceinline__ void load_tile_async(Tile& tile, const bf16* head, int width, int first, int count) {
    constexpr int kRows = 32 * kWarps / 8;  // a time: eight lanes a row
    const int t = static_cast<int>(threadIdx.x) % (32 * kWarps), row = t / 8, column = t % 8 * 8;
    const bf16* from = head + int64_t{first + row} * width + column;
#pragma unroll
    for (int i = 0; i < kTile; i += kRows)
        cp_async_16(&tile.row[row + i][column], from + int64_t{i} * width, row + i < count);
}

// A fragments of rows [16 * warp, +16) of a tile, all 64 channels: four k-steps.
__device__ __forceinline__ void load_a(uint4 (&a)[4], const Tile& tile, int warp, int lane) {
#pragma unroll
    for (int k = 0; k < 4; ++k) a[k] = ldmatrix_x4(&tile.row[warp * 16 + lane % 16][k * 16 + lane / 16 * 8]);
}

// c (16 rows, 64 rows of tile) += A tile^T: scores of 16 query rows against the tile's 64 rows.
__device__ __forceinline__ void multiply_nt(float (&c)[8][4], const uint4 (&a)[4], const Tile& tile, int lane) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int n = 0; n < 4; ++n) {  // 16 of the tile's rows at a time
            const uint4 b = ldmatrix_x4(&tile.row[n * 16 + lane % 8 + lane / 16 * 8][k * 16 + lane / 8 % 2 * 8]);
            mma_16x8x16(c[2 * n], a[k], b.x, b.y);
            mma_16x8x16(c[2 * n + 1], a[k], b.z, b.w);
        }
}

// c (16, 64 channels) += P tile, P (16, 64 rows of the tile) as A fragments.
__device__ __forceinline__ void multiply_nn(float (&c)[8][4], const uint4 (&p)[4], const Tile& tile, int lane) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int n = 0; n < 4; ++n) {  // 16 channels at a time
            const uint4 b = ldmatrix_x4_trans(&tile.row[k * 16 + lane % 16][n * 16 + lane / 16 * 8]);
            mma_16x8x16(c[2 * n], p[k], b.x, b.y);
            mma_16x8x16(c[2 * n + 1], p[k], b.z, b.w);
        }
}

// The same for 16 rows of the tile, [first, +16): c (16, 16) += A tile^T, and c (16, 64 channels) += P tile.
__device__ __forceinline__ void multiply_nt_16(float (&c)[2][4], const uint4 (&a)[4], const Tile& tile, int first,
                                               int lane) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const uint4 b = ldmatrix_x4(&tile.row[first + lane % 8 + lane / 16 * 8][k * 16 + lane / 8 % 2 * 8]);
        mma_16x8x16(c[0], a[k], b.x, b.y);
        mma_16x8x16(c[1], a[k], b.z, b.w);
    }
}
__device__ __forceinline__ void multiply_nn_16(float (&c)[8][4], const uint4& p, const Tile& tile, int first,
                                               int lane) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {  // 16 channels at a time
        const uint4 b = ldmatrix_x4_trans(&tile.row[first + lane % 16][n * 16 + lane / 16 * 8]);
        mma_16x8x16(c[2 * n], p, b.x, b.y);
        mma_16x8x16(c[2 * n + 1], p, b.z, b.w);
    }
}

// Accumulators as A fragments in bf16: the C layout of two neighbouring n-tiles is the A layout of a k-step.
__device__ __forceinline__ uint4 to_a(const float (&left)[4], const float (&right)[4]) {
    return make_uint4(pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]),
                      pack_bf16(right[2], right[3]));
}
__device__ __forceinline__ void to_a(uint4 (&a)[4], const float (&c)[8][4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) a[k] = to_a(c[2 * k], c[2 * k + 1]);
}

__device__ __forceinline__ void scale(float (&c)[8][4], float by) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[n][e] *= by;
}

// Sum and maximum over the four lanes that hold a row's columns.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Writes accumulator rows (16, 64) of a warp as bf16: row i goes to base + i * width, rows >= count are left out. They
// pass through the warp's own rows of `tile`, which nobody needs any more, so that eight lanes write a whole row.
__device__ __forceinline__ void store_rows(const float (&c)[8][4], Tile& tile, int warp, bf16* base, int width,
                                           int count, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < 8; ++n)
            store_pair(&tile.row[warp * 16 + g + half * 8][n * 8 + 2 * t],
                       pack_bf16(c[n][2 * half], c[n][2 * half + 1]));
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 8 + i * 4, column = lane % 8 * 8;
        if (row < count)
            store_pack(base + int64_t{row} * width + column, load_pack(&tile.row[warp * 16 + row][column]));
    }
}

}  // namespace orpo::cuda
