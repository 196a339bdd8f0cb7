// Flash attention, forward:  o = softmax(q k^T / 8) v over the rows that a row may see, lse = log sum exp.
// qkv (N, (H + 2 KV) 64) after RoPE, o (N, H 64), lse (N, H) fp32; head h reads key/value head h / (H / KV).
// FLOPs: 4 * 64 * H * ctx. Bytes: 2 N (H + KV) 64 elements, plus K and V once more per query tile (L2).
//
// bf16: a block of four warps owns one tile of 64 query rows and one head, and walks over tiles of 64 keys with an
// online softmax; scores never leave registers. K and V of the next tile are copied while this one is used. A rejected
// row first sees the prompt, then its own answer: two ranges of keys, the chosen answer between them is never touched.
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
__device__ __forceinline__ int prefix_tiles(const QueryTile& q) { return (q.prefix1 - q.prefix0 + kTile - 1) / kTile; }
__device__ __forceinline__ int own_tiles(const QueryTile& q) { return (q.q1 - q.own0 + kTile - 1) / kTile; }
__device__ __forceinline__ KeyRange key_range(const QueryTile& q, int j) {
    const int prefix = prefix_tiles(q);
    if (j < prefix) {
        const int first = q.prefix0 + j * kTile, left = q.prefix1 - first;
        return {first, left < kTile ? left : kTile, false};
    }
    const int first = q.own0 + (j - prefix) * kTile, left = q.q1 - first;
    return {first, left < kTile ? left : kTile, true};
}

__global__ void __launch_bounds__(32 * kWarps)
    attention_kernel(int H, int KV, const QueryTile* tiles, const bf16* qkv, bf16* o, float* lse) {
    struct Shared {
        Tile q, k[2], v[2];
    };
    Shared& s = shared_memory<Shared>();
    const QueryTile tile = tiles[blockIdx.x];
    if (tile.q0 >= tile.q1) return;  // padding of the tile list: the whole block leaves
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bf16 *q = qkv + head * 64, *k = qkv + (H + kv_head) * 64, *v = qkv + (H + KV + kv_head) * 64;
    const int count = tile.q1 - tile.q0, steps = prefix_tiles(tile) + own_tiles(tile);

    load_tile_async(s.q, q, width, tile.q0, count);
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
        if (j == 0) load_a(a, s.q, warp, lane);
        if (j + 1 < steps) {
            range = key_range(tile, j + 1);
            load_tile_async(s.k[1 - now], k, width, range.first, range.count);
            load_tile_async(s.v[1 - now], v, width, range.first, range.count);
            cp_async_commit();
        }
        float c[8][4] = {};
        multiply_nt(c, a, s.k[now], lane);
        // c <- scores in powers of two, masked where a row must not look.
        float high[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = n * 8 + 2 * (lane % 4) + e % 2, row = row0 + e / 2 * 8;
                const bool sees = key < current.count && (!current.causal || current.first + key <= row);
                c[n][e] = sees ? c[n][e] * (kScale * kLog2e) : kMasked;
                high[e / 2] = fmaxf(high[e / 2], c[n][e]);
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            high[half] = row_max(high[half]);
            const float shrink = fast_exp2(top[half] - high[half]);
            top[half] = high[half];
            float part = 0;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    c[n][e] = c[n][e] == kMasked ? 0.0f : fast_exp2(c[n][e] - top[half]);
                    part += c[n][e];
                    out[n][e] *= shrink;
                }
            }
            sum[half] = sum[half] * shrink + part;
        }
        uint4 p[4];
        to_a(p, c);
        multiply_nn(out, p, s.v[now], lane);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = row_sum(sum[half]), inverse = total > 0 ? 1.0f / total : 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n) out[n][2 * half] *= inverse, out[n][2 * half + 1] *= inverse;
        const int row = row0 + half * 8;
        if (row < tile.q1 && lane % 4 == 0) lse[int64_t{row} * H + head] = top[half] / kLog2e + logf(total);
    }
    store_rows(out, s.q, warp, o + (int64_t{tile.q0} + warp * 16) * H * 64 + head * 64, H * 64, count - warp * 16,
               lane);
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
    constexpr int kBytes = 5 * sizeof(Tile);
    ALLOW_SHARED(attention_kernel, kBytes);
    LAUNCH(attention_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(32 * kWarps),
           kBytes, stream, heads.H, heads.KV, tile, qkv, o, lse);
}
template <>
void attention(Stream stream, int tiles, Heads heads, const QueryTile* tile, const float* qkv, float* o, float* lse) {
    LAUNCH(attention_fp32_kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H)), dim3(32, 8), 0,
           stream, heads.H, heads.KV, tile, qkv, o, lse);
}

}  // namespace orpo::cuda
