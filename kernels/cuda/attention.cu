// Flash attention, forward:  o = softmax(q k^T / 8) v over the rows that a row may see, lse = log sum exp.
// qkv (N, (H + 2 KV) 64) after RoPE, o (N, H 64), lse (N, H) fp32; head h reads key/value head h / (H / KV).
// FLOPs: 4 * 64 * H * ctx. Bytes: 2 N (H + KV) 64 elements, plus K and V once more per query tile (L2).
//
// bf16: a block of four warps owns one tile of 64 query rows and one head, and walks over tiles of 64 keys with an
// online softmax; scores never leave registers. K and V of the next tile are copied while this one is used. A rejected
// row first sees the prompt, then its own answer: two ranges of keys, the chosen answer between them is never touched.
// mma.sync shares its issue slots with everything else, so what the inner loop does not do counts: no masks in tiles
// that are seen whole, the scale is part of the exponential's multiply-add, and sums are rescaled only when they must.
// Grid (H, tiles): the heads of a tile run side by side, as their rows lie in memory.
// fp32: one warp a query row and head; exact, slow, for checking.
// Source: Dao, "FlashAttention-2", arXiv 2307.08691.
#include "kernels/cuda/attention_tile.cuh"

namespace orpo::cuda {

namespace {

// The key tiles of a query tile: those of the prefix, then those of its own branch.
struct KeyRange {
    int first, count;  // rows of keys in this tile
    bool causal;       // row i sees only keys <= i
};
__device__ __forceinline__ KeyRange key_range(const QueryTile& q, int j) {
    const int prefix = tiles_of(q.prefix1 - q.prefix0);
    const bool own = j >= prefix;
    const int first = own ? q.own0 + (j - prefix) * kTile : q.prefix0 + j * kTile;
    const int left = (own ? q.q1 : q.prefix1) - first;
    return {first, left < kTile ? left : kTile, own};
}

// q passes through the second buffer of k on its way into registers.
struct Shared {
    Tile k[2], v[2];
};
__global__ void __launch_bounds__(32 * kWarps, 3)
    attention_kernel(int H, int KV, const QueryTile* tiles, const bf16* qkv, bf16* o, float* lse) {
    Shared& s = shared_memory<Shared>();
    const QueryTile tile = tiles[blockIdx.y];
    if (tile.q0 >= tile.q1) return;  // padding of the tile list: the whole block leaves
    const int head = static_cast<int>(blockIdx.x), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bf16 *q = qkv + head * 64, *k = qkv + (H + kv_head) * 64, *v = qkv + (H + KV + kv_head) * 64;
    const int count = tile.q1 - tile.q0, steps = tiles_of(tile.prefix1 - tile.prefix0) + tiles_of(tile.q1 - tile.own0);

    load_tile_async(s.k[1], q, width, tile.q0, count);
    KeyRange range = key_range(tile, 0);
    load_tile_async(s.k[0], k, width, range.first, range.count);
    load_tile_async(s.v[0], v, width, range.first, range.count);
    cp_async_commit();

    uint4 a[4];
    float out[8][4] = {}, top[2] = {kMasked, kMasked}, sum[2] = {0, 0};
    const int row0 = tile.q0 + warp * 16 + lane / 4;  // this lane's rows: row0 and row0 + 8
    for (int j = 0; j < steps; ++j) {
        const int now = j % 2;
        const KeyRange current = range;
        cp_async_wait<0>();
        __syncthreads();  // tile j is there for everybody, and everybody is done with tile j - 1
        if (j == 0) {
            load_a(a, s.k[1], warp, lane);
            __syncthreads();  // everybody has q: the buffer is free
        }
        if (j + 1 < steps) {
            range = key_range(tile, j + 1);
            load_tile_async(s.k[1 - now], k, width, range.first, range.count);
            load_tile_async(s.v[1 - now], v, width, range.first, range.count);
            cp_async_commit();
        }
        if (warp * 16 >= count) continue;  // no rows for this warp
        float c[8][4] = {};
        multiply_nt(c, a, s.k[now], lane);
        // Most tiles are seen whole. Of the others, a row sees keys < limit.
        if (current.count < kTile || (current.causal && current.first + kTile > tile.q0)) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int behind = current.causal ? row0 + half * 8 + 1 - current.first : kTile;
                const int limit = (behind < current.count ? behind : current.count) - 2 * (lane % 4);
#pragma unroll
                for (int n = 0; n < 8; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (n * 8 + e >= limit) c[n][2 * half + e] = kMasked;
            }
        }
        // The softmax of the rows so far is relative to `top`. It need not be their maximum, only near enough for sums
        // of exp(score - top) to stay in range: it moves, and what was summed is scaled, where a score is kRoom above.
        float high[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            high[half] = c[0][2 * half];
#pragma unroll
            for (int n = 0; n < 8; ++n) high[half] = fmaxf(high[half], fmaxf(c[n][2 * half], c[n][2 * half + 1]));
        }
        if (__ballot_sync(0xffffffffu, high[0] > top[0] + kRoom || high[1] > top[1] + kRoom) != 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float before = top[half];
                top[half] = row_max(fmaxf(before, high[half]));
                const float shrink = fast_exp2((before - top[half]) * kPowersOf2);
                sum[half] *= shrink;
#pragma unroll
                for (int n = 0; n < 8; ++n) out[n][2 * half] *= shrink, out[n][2 * half + 1] *= shrink;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float shift = top[half] * kPowersOf2;
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    c[n][e] = fast_exp2(c[n][e] * kPowersOf2 - shift);
                    sum[half] += c[n][e];
                }
        }
        uint4 p[4];
        to_a(p, c);
        multiply_nn(out, p, s.v[now], lane);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = row_sum(sum[half]), inverse = __fdividef(1.0f, total);
#pragma unroll
        for (int n = 0; n < 8; ++n) out[n][2 * half] *= inverse, out[n][2 * half + 1] *= inverse;
        const int row = row0 + half * 8;
        if (row < tile.q1 && lane % 4 == 0) lse[int64_t{row} * H + head] = top[half] * kScale + logf(total);
    }
    store_rows(out, s.k[steps % 2], warp, o + (int64_t{tile.q0} + warp * 16) * H * 64 + head * 64, H * 64,
               count - warp * 16, lane);
}

// One warp a (row, head); a lane owns channels lane and lane + 32.
__global__ void attention_fp32_kernel(int H, int KV, const QueryTile* tiles, const float* qkv, float* o, float* lse) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int lane = static_cast<int>(threadIdx.x);
    for (int row = tile.q0 + static_cast<int>(threadIdx.y); row < tile.q1; row += static_cast<int>(blockDim.y)) {
        const float* q = qkv + int64_t{row} * width + head * 64;
        const float q0 = q[lane] * kScale, q1 = q[lane + 32] * kScale;
        float top = kMasked, sum = 0, out0 = 0, out1 = 0;
        for (int range = 0; range < 2; ++range) {
            const int first = range == 0 ? tile.prefix0 : tile.own0, end = range == 0 ? tile.prefix1 : row + 1;
            for (int key = first; key < end; ++key) {
                const float* k = qkv + int64_t{key} * width + (H + kv_head) * 64;
                const float* v = k + KV * 64;
                const float score = warp_sum(q0 * k[lane] + q1 * k[lane + 32]);
                const float high = fmaxf(top, score), shrink = expf(top - high), p = expf(score - high);
                top = high;
                sum = sum * shrink + p;
                out0 = out0 * shrink + p * v[lane];
                out1 = out1 * shrink + p * v[lane + 32];
            }
        }
        float* to = o + (int64_t{row} * H + head) * 64;
        to[lane] = out0 / sum;
        to[lane + 32] = out1 / sum;
        if (lane == 0) lse[int64_t{row} * H + head] = top + logf(sum);
    }
}

}  // namespace

template <>
void attention(Stream stream, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, bf16* o, float* lse) {
    constexpr int kBytes = sizeof(Shared);
    ALLOW_SHARED(attention_kernel, kBytes);
    LAUNCH(attention_kernel, dim3(static_cast<unsigned>(heads.H), static_cast<unsigned>(tiles)), dim3(32 * kWarps),
           kBytes, stream, heads.H, heads.KV, tile, qkv, o, lse);
}
template <>
void attention(Stream stream, int tiles, Heads heads, const QueryTile* tile, const float* qkv, float* o, float* lse) {
    LAUNCH(attention_fp32_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(32, 8), 0,
           stream, heads.H, heads.KV, tile, qkv, o, lse);
}

}  // namespace orpo::cuda
