// Flash attention, backward. With P = exp(q k^T / 8 - lse) made again from q, k and lse:
//   delta = rowsum(d_o o);  dV = P^T d_o;  dS = P (d_o v^T - delta) / 8;  dQ = dS k;  dK = dS^T q
// qkv, dqkv (N, (H + 2 KV) 64), o, d_o (N, H 64), lse (N, H) fp32. stats (H, N, {lse log2(e), delta}) fp32 is scratch:
// laid out for the blocks below, which want 64 rows of one head.
// FLOPs: 14 * 64 * H * ctx (seven products: scores and d_o v^T are made twice, once per kernel below, so that every
// output has one owner and no atomics are needed: the same bits in every run).
//
//   delta_kernel  a warp a few rows of a head: delta, and lse in the order of stats
//   dq_kernel     a block a (64 query rows, head), walks over keys as forward does
//   dkv_kernel    a block a (64 key rows, key/value head), walks over the queries that see them, over all query heads
//                 of the group
// Grids (heads, tiles), as in forward.
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
    if (n < N && lane % kLanes == 0)
        stats[int64_t{head} * N + n] = make_float2(lse[int64_t{n} * H + head] * kLog2e, sum);
}

// 64 rows of the other side, and whether only some pairs of rows see each other.
struct Range {
    int first, count;
    bool causal;
};
// The scores of a tile are made and used 16 columns at a time: fewer registers, more warps on a multiprocessor.
constexpr int kChunk = 16;

// q and d_o pass through the second buffers of k and v on their way into registers.
struct QueryShared {
    Tile k[2], v[2];
};
__global__ void __launch_bounds__(32 * kWarps, 4)
    dq_kernel(int N, int H, int KV, const QueryTile* tiles, const bf16* qkv, const bf16* d_o, const float2* stats,
              bf16* dqkv) {
    QueryShared& s = shared_memory<QueryShared>();
    const QueryTile tile = tiles[blockIdx.y];
    if (tile.q0 >= tile.q1) return;
    const int head = static_cast<int>(blockIdx.x), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bf16 *k = qkv + (H + kv_head) * 64, *v = qkv + (H + KV + kv_head) * 64;
    const int count = tile.q1 - tile.q0, prefix = tiles_of(tile.prefix1 - tile.prefix0);
    const int steps = prefix + tiles_of(tile.q1 - tile.own0);
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

    const int warp0 = tile.q0 + warp * 16, row0 = warp0 + lane / 4;  // this lane's rows: row0 and row0 + 8
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = row0 + half * 8;
        const float2 stat = row < tile.q1 ? stats[int64_t{head} * N + row] : make_float2(0, 0);
        row_lse[half] = stat.x;
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
        if (warp * 16 >= count) continue;  // no rows for this warp
        // This warp's last row sees keys < end, its first row keys < seen_by_all.
        const int behind = current.causal ? warp0 + 1 - current.first : kTile;
        const int end = behind + 15 < current.count ? behind + 15 : current.count;
        const int seen_by_all = behind < current.count ? behind : current.count;
        for (int key = 0; key < end; key += kChunk) {
            float p[2][4] = {}, dp[2][4] = {};
            multiply_nt_16(p, a_q, s.k[now], key, lane);
            multiply_nt_16(dp, a_do, s.v[now], key, lane);
            if (key + kChunk > seen_by_all) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int mine = current.causal ? row0 + half * 8 + 1 - current.first : kTile;
                    const int limit = (mine < current.count ? mine : current.count) - key - 2 * (lane % 4);
#pragma unroll
                    for (int n = 0; n < 2; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e)
                            if (n * 8 + e >= limit) p[n][2 * half + e] = kMasked;
                }
            }
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e)  // p <- 8 dS
                    p[n][e] = fast_exp2(p[n][e] * kPowersOf2 - row_lse[e / 2]) * (dp[n][e] - row_delta[e / 2]);
            multiply_nn_16(dq, to_a(p[0], p[1]), s.k[now], key, lane);
        }
    }
    scale(dq, kScale);
    store_rows(dq, s.k[steps % 2], warp, dqkv + (int64_t{tile.q0} + warp * 16) * width + head * 64, width,
               count - warp * 16, lane);
}

// A block is one team of four warps, or two where query heads share their keys: step j is team j % kTeams's, and their
// sums are added in the end. k and v pass through the first team's second buffers.
template <int kTeams>
struct KeyShared {
    union {
        struct {
            Tile q[2][kTeams], d_o[2][kTeams];
        };
        float sums[2 * 8 * 4][32 * kWarps];  // dk and dv of the second team: every lane its own column
    };
    float2 stats[2][kTeams][kTile];
    static_assert(kTeams == 1 || sizeof(sums) <= sizeof(q), "the sums end before d_o");
};
template <int kTeams>
__global__ void __launch_bounds__(32 * kWarps * kTeams, kTeams == 1 ? 3 : 1)
    dkv_kernel(int N, int H, int KV, const KeyTile* tiles, const bf16* qkv, const bf16* d_o, const float2* stats,
               bf16* dqkv) {
    KeyShared<kTeams>& s = shared_memory<KeyShared<kTeams>>();
    const KeyTile tile = tiles[blockIdx.y];
    if (tile.k0 >= tile.k1) return;
    const int kv_head = static_cast<int>(blockIdx.x), group = H / KV, width = (H + 2 * KV) * 64;
    const int team = static_cast<int>(threadIdx.x) / (32 * kWarps), t = static_cast<int>(threadIdx.x) % (32 * kWarps);
    const int warp = t / 32, lane = t % 32;
    const int count = tile.k1 - tile.k0;
    const int own = tiles_of(tile.own1 - tile.k0), all = own + tiles_of(tile.extra1 - tile.extra0);
    // Step j: query head j % group of the j / group-th query tile.
    struct Step {
        int i, head;
    };
    const auto after = [&](Step step) {
        for (step.head += kTeams; step.head >= group; step.head -= group) ++step.i;
        return step;
    };
    const auto range_of = [&](Step step) {
        const int i = step.i, first = i < own ? tile.k0 + i * kTile : tile.extra0 + (i - own) * kTile;
        const int left = (i < own ? tile.own1 : tile.extra1) - first;
        return Range{first, left < kTile ? left : kTile, i == 0};  // only the tile of the keys themselves is cut
    };
    const auto load = [&](Step step, int to) {
        if (step.i < all) {
            const Range range = range_of(step);
            const int head = kv_head * group + step.head;
            load_tile_async(s.q[to][team], qkv + head * 64, width, range.first, range.count);
            load_tile_async(s.d_o[to][team], d_o + head * 64, H * 64, range.first, range.count);
            if (t < kTile)
                cp_async_8(&s.stats[to][team][t], stats + int64_t{head} * N + range.first + t, t < range.count);
        }
        cp_async_commit();
    };

    if (team == 0) {
        load_tile_async(s.q[1][0], qkv + (H + kv_head) * 64, width, tile.k0, count);
        load_tile_async(s.d_o[1][0], qkv + (H + KV + kv_head) * 64, width, tile.k0, count);
    }
    Step step = {team / group, team % group};
    load(step, 0);

    // All products are transposed: rows are keys, columns are queries.
    const int rounds = (all * group + kTeams - 1) / kTeams;
    uint4 a_k[4], a_v[4];
    float dk[8][4] = {}, dv[8][4] = {};
    for (int j = 0; j < rounds; ++j) {
        const int now = j % 2;
        const Step current = step;
        cp_async_wait<0>();
        __syncthreads();
        if (j == 0) {
            load_a(a_k, s.q[1][0], warp, lane), load_a(a_v, s.d_o[1][0], warp, lane);
            __syncthreads();
        }
        step = after(step);
        if (j + 1 < rounds) load(step, 1 - now);
        if (current.i >= all || warp * 16 >= count) continue;  // no step for this team, no keys for this warp
        const Range range = range_of(current);
        // Queries in front of this warp's keys see none of them. Rows behind `count` are zeros and add nothing.
        for (int query = range.causal ? warp * 16 : 0; query < range.count; query += kChunk) {
            float p[2][4] = {}, ds[2][4] = {};
            multiply_nt_16(p, a_k, s.q[now][team], query, lane);     // (keys, queries)
            multiply_nt_16(ds, a_v, s.d_o[now][team], query, lane);  // v d_o^T
            if (range.causal && query == warp * 16) {
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        if (n * 8 + 2 * (lane % 4) + e % 2 < lane / 4 + e / 2 * 8) p[n][e] = kMasked;
            }
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const Quad<float> stat = load_quad(&s.stats[now][team][query + n * 8 + 2 * (lane % 4)].x);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    p[n][e] = fast_exp2(p[n][e] * kPowersOf2 - stat.v[e % 2 * 2]);
                    ds[n][e] = p[n][e] * (ds[n][e] - stat.v[e % 2 * 2 + 1]);  // 8 dS
                }
            }
            multiply_nn_16(dv, to_a(p[0], p[1]), s.d_o[now][team], query, lane);
            multiply_nn_16(dk, to_a(ds[0], ds[1]), s.q[now][team], query, lane);
        }
    }
    if (kTeams == 2) {
        __syncthreads();  // everybody is done with the tiles
        if (team == 1) {
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) s.sums[n * 4 + e][t] = dk[n][e], s.sums[32 + n * 4 + e][t] = dv[n][e];
        }
        __syncthreads();
        if (team == 1) return;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) dk[n][e] += s.sums[n * 4 + e][t], dv[n][e] += s.sums[32 + n * 4 + e][t];
    }
    scale(dk, kScale);
    bf16* to = dqkv + (int64_t{tile.k0} + warp * 16) * width;
    // Through tiles that nobody reads any more; with two teams also none that the sums lie in.
    Tile& through_k = kTeams == 1 ? s.q[rounds % 2][0] : s.d_o[1][0];
    Tile& through_v = kTeams == 1 ? s.d_o[rounds % 2][0] : s.d_o[1][kTeams - 1];
    store_rows(dk, through_k, warp, to + (H + kv_head) * 64, width, count - warp * 16, lane);
    store_rows(dv, through_v, warp, to + (H + KV + kv_head) * 64, width, count - warp * 16, lane);
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
                const float ds = exp2f(score * kLog2e - stat.x) * (dp - stat.y) * kScale;
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
                    const float p = exp2f(score * kLog2e - stat.x), ds = p * (dp - stat.y) * kScale;
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
template <int kTeams>
void launch_dkv(Stream stream, int N, int key_tiles, Heads heads, const KeyTile* key_tile, const bf16* qkv,
                const bf16* d_o, const float2* stats, bf16* dqkv) {
    constexpr int kBytes = sizeof(KeyShared<kTeams>);
    ALLOW_SHARED(dkv_kernel<kTeams>, kBytes);
    LAUNCH(dkv_kernel<kTeams>, dim3(static_cast<unsigned>(heads.KV), static_cast<unsigned>(key_tiles)),
           dim3(32 * kWarps * kTeams), kBytes, stream, N, heads.H, heads.KV, key_tile, qkv, d_o, stats, dqkv);
}

}  // namespace

template <>
void attention_backward(Stream stream, int N, int query_tiles, int key_tiles, Heads heads, const QueryTile* query_tile,
                        const KeyTile* key_tile, const bf16* qkv, const bf16* o, const float* lse, const bf16* d_o,
                        float* scratch, bf16* dqkv) {
    const unsigned H = static_cast<unsigned>(heads.H), KV = static_cast<unsigned>(heads.KV);
    auto* stats = reinterpret_cast<float2*>(scratch);
    launch_delta(stream, N, heads.H, o, d_o, lse, stats);
    constexpr int kQueryBytes = sizeof(QueryShared);
    ALLOW_SHARED(dq_kernel, kQueryBytes);
    LAUNCH(dq_kernel, dim3(H, static_cast<unsigned>(query_tiles)), dim3(32 * kWarps), kQueryBytes, stream, N, heads.H,
           heads.KV, query_tile, qkv, d_o, stats, dqkv);
    if (H == KV)
        launch_dkv<1>(stream, N, key_tiles, heads, key_tile, qkv, d_o, stats, dqkv);
    else
        launch_dkv<2>(stream, N, key_tiles, heads, key_tile, qkv, d_o, stats, dqkv);
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
