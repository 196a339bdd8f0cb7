// Attention, version 4 of 5: the products run on tensor cores.
//
// Changed: four warps own the tile of 64 rows, 16 each. S = q k^T and o += P v are mma.m16n8k16; scores stay in the
// accumulators' registers, where two neighbouring 16 x 8 results have exactly the layout of the next product's A
// operand. Tiles are padded to 72 elements a row, so that ldmatrix meets no bank conflict.
//
// Expected: products at more than ten times the fp32 units' rate (an H200: about 800 against 67 TF/s). What is left: per
// score one exponential (16 a clock and multiprocessor against 1024 bf16 products a clock: an exponential a 256 FLOPs
// costs as much as the products do), and waiting: a tile is loaded, then used, then the next one is loaded.
//
// Version 5 (kernels/cuda/attention.cu) copies the next tile while this one is used (cp.async, two buffers), takes the
// softmax in powers of two, and needs one barrier a tile instead of two. Expected: the copies' latency, some 600 clocks
// a tile against about 1,000 of work, is hidden.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

__device__ __forceinline__ void load_tile(Tile& tile, const bf16* head, int width, int first, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * 8; i += 32 * kWarps) {
        const int row = i / 8, column = i % 8 * 8;
        Pack<bf16> pack = {};
        if (row < count) pack = load_pack(head + int64_t{first + row} * width + column);
        store_pack(&tile.row[row][column], pack);
    }
}

// 3: without a bound for registers ptxas stops at 128 for sm_80, and spills.
__global__ void __launch_bounds__(32 * kWarps, 3)
    tensor_core_kernel(int H, int KV, const QueryTile* tiles, const bf16* qkv, bf16* o, float* lse) {
    struct Shared {
        Tile q, k, v;
    };
    Shared& s = shared_memory<Shared>();
    const QueryTile tile = tiles[blockIdx.x];
    if (tile.q0 >= tile.q1) return;
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bf16 *k = qkv + (H + kv_head) * 64, *v = k + KV * 64;
    load_tile(s.q, qkv + head * 64, width, tile.q0, tile.q1 - tile.q0);
    __syncthreads();
    uint4 a[4];
    load_a(a, s.q, warp, lane);
    float out[8][4] = {}, top[2] = {kMasked, kMasked}, sum[2] = {0, 0};
    const int row0 = tile.q0 + warp * 16 + lane / 4;  // this lane's rows: row0 and row0 + 8
    for (int range = 0; range < 2; ++range) {
        const int begin = range == 0 ? tile.prefix0 : tile.own0, end = range == 0 ? tile.prefix1 : tile.q1;
        for (int first = begin; first < end; first += kTile) {
            const int count = end - first < kTile ? end - first : kTile;
            __syncthreads();  // everybody is done with the tile before
            load_tile(s.k, k, width, first, count);
            load_tile(s.v, v, width, first, count);
            __syncthreads();  // the tile is there for everybody
            float c[8][4] = {}, high[2] = {top[0], top[1]};
            multiply_nt(c, a, s.k, lane);
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = n * 8 + 2 * (lane % 4) + e % 2, row = row0 + e / 2 * 8;
                    const bool visible = key < count && (range == 0 || first + key <= row);
                    c[n][e] = visible ? c[n][e] * kScale : kMasked;
                    high[e / 2] = fmaxf(high[e / 2], c[n][e]);
                }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                high[half] = row_max(high[half]);
                const float shrink = expf(top[half] - high[half]);
                top[half] = high[half];
                float part = 0;
#pragma unroll
                for (int n = 0; n < 8; ++n)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) {
                        c[n][e] = c[n][e] == kMasked ? 0.0f : expf(c[n][e] - top[half]);
                        part += c[n][e];
                        out[n][e] *= shrink;
                    }
                sum[half] = sum[half] * shrink + part;
            }
            uint4 p[4];
            to_a(p, c);
            multiply_nn(out, p, s.v, lane);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = row_sum(sum[half]), inverse = total > 0 ? 1.0f / total : 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n) out[n][2 * half] *= inverse, out[n][2 * half + 1] *= inverse;
        const int row = row0 + half * 8;
        if (row < tile.q1 && lane % 4 == 0) lse[int64_t{row} * H + head] = top[half] + logf(total);
    }
    store_rows(out, s.q, warp, o + (int64_t{tile.q0} + warp * 16) * H * 64 + head * 64, H * 64,
               tile.q1 - tile.q0 - warp * 16, lane);
}

}  // namespace

void attention_4(Stream stream, int, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, float*, bf16* o,
                 float* lse) {
    LAUNCH(tensor_core_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(32 * kWarps),
           3 * sizeof(Tile), stream, heads.H, heads.KV, tile, qkv, o, lse);
}

}  // namespace orpo::cuda::progress
