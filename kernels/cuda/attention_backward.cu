// Flash attention, backward. With P = exp(q k^T / 8 - lse) made again from q, k and lse:
//   delta = rowsum(d_o o);  dV = P^T d_o;  dS = P (d_o v^T - delta) / 8;  dQ = dS k;  dK = dS^T q
// qkv, dqkv (N, (H + 2 KV) 64), o, d_o (N, H 64), lse (N, H) fp32. stats (H, N, {lse, delta}) fp32 is scratch: laid out
// for the blocks below, which want 64 rows of one head.
// FLOPs: 14 * 64 * H * ctx (seven products: scores and d_o v^T are made twice, once per kernel below, so that every
// output has one owner and no atomics are needed: the same bits in every run).
//
//   delta_kernel  a warp a few rows of a head: delta, and lse in the order of stats
//   dq_kernel     a block a (64 query rows, head), walks over keys as forward does
//   dkv_kernel    a block a (64 key rows, key/value head), walks over the queries that see them, over all query heads
//                 of the group
// fp32: the same owners, one warp a row; exact, slow, for checking.
// Source: Dao, "FlashAttention-2", arXiv 2307.08691.
#include "kernels/cuda/attention_tile.cuh"

namespace orpo::cuda {

namespace {

// A lane takes one pack of o and of d_o, 64 / P lanes a row: a warp kDeltaRows<T> rows of one head.
template <class T>
constexpr int kDeltaRows = 32 * Pack<T>::n / 64;

// grid (N / kDeltaRows), block (32, H up to 32)
template <class T>
__global__ void delta_kernel(int N, int H, const T* o, const T* d_o, const float* lse, float2* stats) {
    constexpr int P = Pack<T>::n, kLanes = 64 / P;
    const int lane = static_cast<int>(threadIdx.x), head = static_cast<int>(threadIdx.y);
    const int n = static_cast<int>(blockIdx.x) * kDeltaRows<T> + lane / kLanes;
    float sum = 0;
    if (n < N) {
        const int64_t at = (int64_t{n} * H + head) * 64 + lane % kLanes * P;
        const Pack<T> a = load_pack(o + at), b = load_pack(d_o + at);
#pragma unroll
        for (int e = 0; e < P; ++e) sum += to_float(a.v[e]) * to_float(b.v[e]);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (n < N && lane % kLanes == 0) stats[int64_t{head} * N + n] = make_float2(lse[int64_t{n} * H + head], sum);
}

// Rows i of queries see a key range: which part of it.
struct Range {
    int first, count;
    bool causal;
};

// q and d_o pass through the second buffers of k and v on their way into registers: with four tiles instead of six, two
// blocks fit where a multiprocessor has 100 KiB.
struct QueryShared {
    Tile k[2], v[2];
};
__global__ void __launch_bounds__(32 * kWarps) dq_kernel(int N, int H, int KV, const QueryTile* tiles, const bf16* qkv,
                                                         const bf16* d_o, const float2* stats, bf16* dqkv) {
    QueryShared& s = shared_memory<QueryShared>();
    const QueryTile tile = tiles[blockIdx.x];
    if (tile.q0 >= tile.q1) return;
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bf16 *k = qkv + (H + kv_head) * 64, *v = qkv + (H + KV + kv_head) * 64;
    const int count = tile.q1 - tile.q0;
    const int prefix = (tile.prefix1 - tile.prefix0 + kTile - 1) / kTile;
    const int steps = prefix + (tile.q1 - tile.own0 + kTile - 1) / kTile;
    const auto range_of = [&](int j) {
        const int first = j < prefix ? tile.prefix0 + j * kTile : tile.own0 + (j - prefix) * kTile;
        const int left = (j < prefix ? tile.prefix1 : tile.q1) - first;
        return Range{first, left < kTile ? left : kTile, j >= prefix};
    };

    load_tile_async(s.k[1], qkv + head * 64, width, tile.q0, count);
    load_tile_async(s.v[1], d_o + head * 64, H * 64, tile.q0, count);
    Range range = range_of(0);
    load_tile_async(s.k[0], k, width, range.first, range.count);
    load_tile_async(s.v[0], v, width, range.first, range.count);
    cp_async_commit();

    const int row0 = tile.q0 + warp * 16 + lane / 4;
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + half * 8;
        const float2 stat = row < tile.q1 ? stats[int64_t{head} * N + row] : make_float2(0, 0);
        row_lse[half] = stat.x * kLog2e;
        row_delta[half] = stat.y;
    }
    uint4 a_q[4], a_do[4];
    float dq[8][4] = {};
    for (int j = 0; j < steps; ++j) {
        const int now = j % 2;
        const Range current = range;
        cp_async_wait<0>();
        __syncthreads();
        if (j == 0) {
            load_a(a_q, s.k[1], warp, lane), load_a(a_do, s.v[1], warp, lane);
            __syncthreads();  // everybody has them: the buffers are free
        }
        if (j + 1 < steps) {
            range = range_of(j + 1);
            load_tile_async(s.k[1 - now], k, width, range.first, range.count);
            load_tile_async(s.v[1 - now], v, width, range.first, range.count);
            cp_async_commit();
        }
        float p[8][4] = {}, dp[8][4] = {};
        multiply_nt(p, a_q, s.k[now], lane);
        multiply_nt(dp, a_do, s.v[now], lane);
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = n * 8 + 2 * (lane % 4) + e % 2, row = row0 + e / 2 * 8;
                const bool sees =
                    key < current.count && row < tile.q1 && (!current.causal || current.first + key <= row);
                const float weight = sees ? fast_exp2(p[n][e] * (kScale * kLog2e) - row_lse[e / 2]) : 0.0f;
                p[n][e] = weight * (dp[n][e] - row_delta[e / 2]) * kScale;  // dS
            }
        uint4 ds[4];
        to_a(ds, p);
        multiply_nn(dq, ds, s.k[now], lane);
    }
    store_rows(dq, s.k[steps % 2], warp, dqkv + (int64_t{tile.q0} + warp * 16) * width + head * 64, width,
               count - warp * 16, lane);
}

struct KeyShared {  // k and v pass through the second buffers
    Tile q[2], d_o[2];
    float2 stats[2][kTile];
};
__global__ void __launch_bounds__(32 * kWarps) dkv_kernel(int N, int H, int KV, const KeyTile* tiles, const bf16* qkv,
                                                          const bf16* d_o, const float2* stats, bf16* dqkv) {
    KeyShared& s = shared_memory<KeyShared>();
    const KeyTile tile = tiles[blockIdx.x];
    if (tile.k0 >= tile.k1) return;
    const int kv_head = static_cast<int>(blockIdx.y), group = H / KV, width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int count = tile.k1 - tile.k0;
    const int own = (tile.own1 - tile.k0 + kTile - 1) / kTile;
    const int extra = (tile.extra1 - tile.extra0 + kTile - 1) / kTile;
    const int steps = (own + extra) * group;
    // Step j: query head j % group of the j / group-th query tile.
    const auto range_of = [&](int j) {
        const int i = j / group, first = i < own ? tile.k0 + i * kTile : tile.extra0 + (i - own) * kTile;
        const int left = (i < own ? tile.own1 : tile.extra1) - first;
        return Range{first, left < kTile ? left : kTile, i < own};
    };
    const auto load = [&](int j, int to) {
        const Range range = range_of(j);
        const int head = kv_head * group + j % group, t = static_cast<int>(threadIdx.x);
        load_tile_async(s.q[to], qkv + head * 64, width, range.first, range.count);
        load_tile_async(s.d_o[to], d_o + head * 64, H * 64, range.first, range.count);
        if (t < kTile) {
            const bool valid = t < range.count;
            cp_async_8(&s.stats[to][t], stats + int64_t{head} * N + range.first + (valid ? t : 0), valid);
        }
        cp_async_commit();
    };

    load_tile_async(s.q[1], qkv + (H + kv_head) * 64, width, tile.k0, count);
    load_tile_async(s.d_o[1], qkv + (H + KV + kv_head) * 64, width, tile.k0, count);
    load(0, 0);

    // All products are transposed: rows are keys, columns are queries.
    const int key0 = tile.k0 + warp * 16 + lane / 4;
    uint4 a_k[4], a_v[4];
    float dk[8][4] = {}, dv[8][4] = {};
    for (int j = 0; j < steps; ++j) {
        const int now = j % 2;
        const Range current = range_of(j);
        cp_async_wait<0>();
        __syncthreads();
        if (j == 0) {
            load_a(a_k, s.q[1], warp, lane), load_a(a_v, s.d_o[1], warp, lane);
            __syncthreads();
        }
        if (j + 1 < steps) load(j + 1, 1 - now);
        float p[8][4] = {}, ds[8][4] = {};
        multiply_nt(p, a_k, s.q[now], lane);     // (keys, queries)
        multiply_nt(ds, a_v, s.d_o[now], lane);  // v d_o^T
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = n * 8 + 2 * (lane % 4) + e % 2, key = key0 + e / 2 * 8;
                const bool sees =
                    column < current.count && key < tile.k1 && (!current.causal || key <= current.first + column);
                const float2 stat = s.stats[now][column];
                const float weight = sees ? fast_exp2(p[n][e] * (kScale * kLog2e) - stat.x * kLog2e) : 0.0f;
                p[n][e] = weight;
                ds[n][e] = weight * (ds[n][e] - stat.y) * kScale;
            }
        uint4 a[4];
        to_a(a, p);
        multiply_nn(dv, a, s.d_o[now], lane);
        to_a(a, ds);
        multiply_nn(dk, a, s.q[now], lane);
    }
    bf16* to = dqkv + (int64_t{tile.k0} + warp * 16) * width;
    store_rows(dk, s.q[steps % 2], warp, to + (H + kv_head) * 64, width, count - warp * 16, lane);
    store_rows(dv, s.d_o[steps % 2], warp, to + (H + KV + kv_head) * 64, width, count - warp * 16, lane);
}

// One warp a (row, head); a lane owns channels lane and lane + 32.
__global__ void dq_fp32_kernel(int N, int H, int KV, const QueryTile* tiles, const float* qkv, const float* d_o,
                               const float2* stats, float* dqkv) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int lane = static_cast<int>(threadIdx.x);
    for (int row = tile.q0 + static_cast<int>(threadIdx.y); row < tile.q1; row += static_cast<int>(blockDim.y)) {
        const int64_t at = int64_t{row} * width + head * 64, at_o = (int64_t{row} * H + head) * 64;
        const float q0 = qkv[at + lane], q1 = qkv[at + lane + 32], do0 = d_o[at_o + lane], do1 = d_o[at_o + lane + 32];
        const float2 stat = stats[int64_t{head} * N + row];
        float dq0 = 0, dq1 = 0;
        for (int range = 0; range < 2; ++range) {
            const int first = range == 0 ? tile.prefix0 : tile.own0, end = range == 0 ? tile.prefix1 : row + 1;
            for (int key = first; key < end; ++key) {
                const float* k = qkv + int64_t{key} * width + (H + kv_head) * 64;
                const float* v = k + KV * 64;
                const float score = warp_sum(q0 * k[lane] + q1 * k[lane + 32]) * kScale;
                const float dp = warp_sum(do0 * v[lane] + do1 * v[lane + 32]);
                const float ds = expf(score - stat.x) * (dp - stat.y) * kScale;
                dq0 += ds * k[lane], dq1 += ds * k[lane + 32];
            }
        }
        dqkv[at + lane] = dq0;
        dqkv[at + lane + 32] = dq1;
    }
}

__global__ void dkv_fp32_kernel(int N, int H, int KV, const KeyTile* tiles, const float* qkv, const float* d_o,
                                const float2* stats, float* dqkv) {
    const KeyTile tile = tiles[blockIdx.x];
    const int kv_head = static_cast<int>(blockIdx.y), group = H / KV, width = (H + 2 * KV) * 64;
    const int lane = static_cast<int>(threadIdx.x);
    for (int key = tile.k0 + static_cast<int>(threadIdx.y); key < tile.k1; key += static_cast<int>(blockDim.y)) {
        const int64_t at_k = int64_t{key} * width + (H + kv_head) * 64, at_v = at_k + KV * 64;
        const float k0 = qkv[at_k + lane], k1 = qkv[at_k + lane + 32], v0 = qkv[at_v + lane],
                    v1 = qkv[at_v + lane + 32];
        float dk0 = 0, dk1 = 0, dv0 = 0, dv1 = 0;
        for (int range = 0; range < 2; ++range) {
            const int first = range == 0 ? key : tile.extra0, end = range == 0 ? tile.own1 : tile.extra1;
            for (int row = first; row < end; ++row)
                for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
                    const float* q = qkv + int64_t{row} * width + head * 64;
                    const float* dout = d_o + (int64_t{row} * H + head) * 64;
                    const float score = warp_sum(q[lane] * k0 + q[lane + 32] * k1) * kScale;
                    const float dp = warp_sum(dout[lane] * v0 + dout[lane + 32] * v1);
                    const float2 stat = stats[int64_t{head} * N + row];
                    const float p = expf(score - stat.x), ds = p * (dp - stat.y) * kScale;
                    dk0 += ds * q[lane], dk1 += ds * q[lane + 32];
                    dv0 += p * dout[lane], dv1 += p * dout[lane + 32];
                }
        }
        dqkv[at_k + lane] = dk0, dqkv[at_k + lane + 32] = dk1;
        dqkv[at_v + lane] = dv0, dqkv[at_v + lane + 32] = dv1;
    }
}

template <class T>
void launch_delta(Stream stream, int N, int H, const T* o, const T* d_o, const float* lse, float2* stats) {
    LAUNCH(delta_kernel<T>, dim3(blocks_for(N, kDeltaRows<T>)), dim3(32, static_cast<unsigned>(H)), 0, stream, N, H, o,
           d_o, lse, stats);
}

}  // namespace

template <>
void attention_backward(Stream stream, int N, int query_tiles, int key_tiles, Heads heads, const QueryTile* query_tile,
                        const KeyTile* key_tile, const bf16* qkv, const bf16* o, const float* lse, const bf16* d_o,
                        float* scratch, bf16* dqkv) {
    const unsigned H = static_cast<unsigned>(heads.H), KV = static_cast<unsigned>(heads.KV);
    auto* stats = reinterpret_cast<float2*>(scratch);
    launch_delta(stream, N, heads.H, o, d_o, lse, stats);
    constexpr int kQueryBytes = sizeof(QueryShared), kKeyBytes = sizeof(KeyShared);
    ALLOW_SHARED(dq_kernel, kQueryBytes);
    LAUNCH(dq_kernel, dim3(static_cast<unsigned>(query_tiles), H), dim3(32 * kWarps), kQueryBytes, stream, N, heads.H,
           heads.KV, query_tile, qkv, d_o, stats, dqkv);
    ALLOW_SHARED(dkv_kernel, kKeyBytes);
    LAUNCH(dkv_kernel, dim3(static_cast<unsigned>(key_tiles), KV), dim3(32 * kWarps), kKeyBytes, stream, N, heads.H,
           heads.KV, key_tile, qkv, d_o, stats, dqkv);
}
template <>
void attention_backward(Stream stream, int N, int query_tiles, int key_tiles, Heads heads, const QueryTile* query_tile,
                        const KeyTile* key_tile, const float* qkv, const float* o, const float* lse, const float* d_o,
                        float* scratch, float* dqkv) {
    const unsigned H = static_cast<unsigned>(heads.H), KV = static_cast<unsigned>(heads.KV);
    auto* stats = reinterpret_cast<float2*>(scratch);
    launch_delta(stream, N, heads.H, o, d_o, lse, stats);
    LAUNCH(dq_fp32_kernel, dim3(static_cast<unsigned>(query_tiles), H), dim3(32, 8), 0, stream, N, heads.H, heads.KV,
           query_tile, qkv, d_o, stats, dqkv);
    LAUNCH(dkv_fp32_kernel, dim3(static_cast<unsigned>(key_tiles), KV), dim3(32, 8), 0, stream, N, heads.H, heads.KV,
           key_tile, qkv, d_o, stats, dqkv);
}

}  // namespace orpo::cuda
