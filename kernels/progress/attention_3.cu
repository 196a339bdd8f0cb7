// Attention, version 3 of 5: keys and values are read once for 64 rows.
//
// Changed: a block owns 64 rows of one head, a thread a row. Tiles of 64 keys and values are copied to shared memory, and
// every thread uses every key of the tile: its row of q and of the output stay in registers, scores need no shuffle.
// Expected: keys and values are read once a tile of 64 rows: 64 FLOPs a byte instead of 1, so L2 is no longer the limit.
// All lanes read the same key at once, which shared memory hands to all of them in one go. The limit is now the fp32
// units: 4 * 64 * H * ctx FLOPs at 67 TF/s on an H200, 36 on an RTX 3090, and a load from shared memory for every second
// one of them, half of that at best. 64 threads a block with 168 registers each (sm_90): six blocks, 384 threads to a
// multiprocessor.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kRows = 64, kKeys = 64;

__global__ void __launch_bounds__(kRows) tiled_kernel(int H, int KV, const QueryTile* tiles, const bf16* qkv, bf16* o,
                                                      float* lse) {
    struct Shared {
        bf16 k[kKeys][64], v[kKeys][64];
    };
    Shared& s = shared_memory<Shared>();
    const QueryTile tile = tiles[blockIdx.x];
    if (tile.q0 >= tile.q1) return;
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int t = static_cast<int>(threadIdx.x);
    const int row = tile.q0 + t < tile.q1 ? tile.q0 + t : tile.q1 - 1;  // threads without a row repeat the last one
    float q[64], out[64] = {}, top = -1.0e30f, sum = 0;
#pragma unroll
    for (int c = 0; c < 64; ++c) q[c] = to_float(qkv[int64_t{row} * width + head * 64 + c]) * 0.125f;
    for (int range = 0; range < 2; ++range) {
        const int begin = range == 0 ? tile.prefix0 : tile.own0, end = range == 0 ? tile.prefix1 : tile.q1;
        const int mine = range == 0 ? end : row + 1;  // this row sees keys below
        for (int first = begin; first < end; first += kKeys) {
            const int count = end - first < kKeys ? end - first : kKeys;
            __syncthreads();  // everybody is done with the tile before
            for (int i = t; i < count * 8; i += kRows) {
                const bf16* k = qkv + int64_t{first + i / 8} * width + (H + kv_head) * 64 + i % 8 * 8;
                store_pack(&s.k[i / 8][i % 8 * 8], load_pack(k));
                store_pack(&s.v[i / 8][i % 8 * 8], load_pack(k + KV * 64));
            }
            __syncthreads();  // the tile is there for everybody
            for (int key = 0; key < count && first + key < mine; ++key) {
                float score = 0;
#pragma unroll
                for (int c = 0; c < 64; ++c) score += q[c] * to_float(s.k[key][c]);
                const float high = fmaxf(top, score), shrink = expf(top - high), p = expf(score - high);
                top = high;
                sum = sum * shrink + p;
#pragma unroll
                for (int c = 0; c < 64; ++c) out[c] = out[c] * shrink + p * to_float(s.v[key][c]);
            }
        }
    }
    if (tile.q0 + t >= tile.q1) return;
    bf16* to = o + (int64_t{row} * H + head) * 64;
#pragma unroll
    for (int c = 0; c < 64; ++c) to[c] = from_float<bf16>(out[c] / sum);
    lse[int64_t{row} * H + head] = top + logf(sum);
}

}  // namespace

void attention_3(Stream stream, int, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, float*, bf16* o,
                 float* lse) {
    LAUNCH(tiled_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(kRows),
           2 * kKeys * 64 * sizeof(bf16), stream, heads.H, heads.KV, tile, qkv, o, lse);
}

}  // namespace orpo::cuda::progress
