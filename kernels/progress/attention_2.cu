// Attention, version 2 of 5: no scores in memory.
//
// Changed: a warp owns one row of one head and walks over the keys that the row sees, and only those, with an online
// softmax: when a larger score turns up, the sum and the output so far shrink by e^(old maximum - new maximum). A lane
// keeps two channels; a score is a sum over the warp.
// Expected: 16 H N^2 bytes of scores are gone, and half of the FLOPs (those behind the mask): 4 * 64 * H * ctx are left.
// Each row still reads all its keys and values itself: 2 * 64 * 2 bytes for 4 * 64 FLOPs, one FLOP a byte. They come
// from L2 (about 5 TB/s on an H200), so at best 5 TF/s of the 800 that its products reach.
// Every key costs five shuffles and two exponentials in all lanes, on top of the loads.
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kRows = 8;  // warps a block

__global__ void online_kernel(int H, int KV, const QueryTile* tiles, const bf16* qkv, bf16* o, float* lse) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int c = 2 * static_cast<int>(threadIdx.x);  // this lane's channels: c and c + 1
    for (int row = tile.q0 + static_cast<int>(threadIdx.y); row < tile.q1; row += kRows) {
        const bf16* q = qkv + int64_t{row} * width + head * 64;
        const float q0 = to_float(q[c]) * 0.125f, q1 = to_float(q[c + 1]) * 0.125f;
        float top = -1.0e30f, sum = 0, out0 = 0, out1 = 0;
        for (int range = 0; range < 2; ++range) {
            const int first = range == 0 ? tile.prefix0 : tile.own0, end = range == 0 ? tile.prefix1 : row + 1;
            for (int key = first; key < end; ++key) {
                const bf16 *k = qkv + int64_t{key} * width + (H + kv_head) * 64, *v = k + KV * 64;
                const float score = warp_sum(q0 * to_float(k[c]) + q1 * to_float(k[c + 1]));
                const float high = fmaxf(top, score), shrink = expf(top - high), p = expf(score - high);
                top = high;
                sum = sum * shrink + p;
                out0 = out0 * shrink + p * to_float(v[c]);
                out1 = out1 * shrink + p * to_float(v[c + 1]);
            }
        }
        bf16* to = o + (int64_t{row} * H + head) * 64;
        to[c] = from_float<bf16>(out0 / sum);
        to[c + 1] = from_float<bf16>(out1 / sum);
        if (c == 0) lse[int64_t{row} * H + head] = top + logf(sum);
    }
}

}  // namespace

void attention_2(Stream stream, int, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, float*, bf16* o,
                 float* lse) {
    LAUNCH(online_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(32, kRows), 0,
           stream, heads.H, heads.KV, tile, qkv, o, lse);
}

}  // namespace orpo::cuda::progress
