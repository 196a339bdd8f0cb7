// Generation: one new row a sequence.
//
//   cache_append      K and V heads of qkv -> cache (sequences, capacity, 2, KV, 64)
//   decode_attention  q and k turned (rope.cu), k and v -> cache, o = softmax(q K^T / 8) V over the sequence's cache:
//                     reads 2 KV 64 elements a cached token, 4 H 64 FLOPs each
//   gemv              y = x W^T for a few rows: reads W once, out in elements; 2 N out in FLOPs
//
// Bound by memory, where there is enough of it to read; a small model's token is mostly the time from one kernel to the
// next. So these and the others of a token are launched early (device.cuh), and what no kernel of this token writes,
// weights and old keys and values, is on its way before the kernel's turn has come.
//
// Rows that fill up a batch belong to no sequence (mask_pair < 0): they append nothing, and their o is 0.
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kGemvWarps = 8, kGemvInFlight = 8;   // packs a lane
constexpr int kDecodeWarps = 8, kLeastKeys = 128;  // of a stretch: what the warps load at once

// How many of `count` keys a block takes.
__device__ __forceinline__ int stretch_keys(int count) {
    return ((count - 1) / (kDecodeStretches * kLeastKeys) + 1) * kLeastKeys;
}

// rope.cu's rotation of one head's pack, rounded to T as there. cs: {cos, sin} of its channels, two a quad. The other
// half of a pair is 32 channels and so half the lanes of the head away.
template <class T, int P = Pack<T>::n>
__device__ __forceinline__ void turn(const Words& pack, const Quad<float> (&cs)[P / 2], bool first_half,
                                     float (&to)[P]) {
#pragma unroll
    for (int e = 0; e < P; ++e) {
        const float x = element<T>(pack, e), y = __shfl_xor_sync(0xffffffffu, x, 32 / P);
        const float c = cs[e / 2].v[e % 2 * 2], s = cs[e / 2].v[e % 2 * 2 + 1];
        to[e] = to_float(from_float<T>(x * c + y * (first_half ? -s : s)));
    }
}

// qkv (N, (H + 2 KV) 64): the K and V heads stand together at its end, as they do in a cache row.
template <class T>
__global__ void cache_append_kernel(int64_t packs, int packs_per_row, int skip, int width, int capacity,
                                    const int32_t* mask_pair, const int32_t* positions, const T* qkv, T* cache) {
    follow_kernels_before();
    constexpr int P = Pack<T>::n;
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= packs) return;
    const int64_t n = i / packs_per_row, c = i % packs_per_row * P;
    if (mask_pair[n] < 0) return;
    const int64_t row = int64_t{mask_pair[n] / 2} * capacity + positions[n];
    store_pack(cache + row * packs_per_row * P + c, load_pack(qkv + n * width + skip + c));
}

// One (row, head, stretch of its keys). A key's 64 channels lie over 64 / P lanes, a pack each, so that a warp looks at
// several keys at once; it loads kUnroll times as many before it waits, for there are few warps and memory is far: the
// first of them before the row's own q, k and v are there, for old keys are older than the batch. Every group of lanes
// keeps an online softmax. The groups are joined in registers, the warps through shared memory, and the stretches
// through `parts` by the block that comes last, in their order. How keys are stretched depends on their number alone.
// grid (stretches, H, N)
template <class T>
__global__ void __launch_bounds__(32 * kDecodeWarps)
    decode_attention_kernel(int H, int KV, int capacity, const int32_t* mask_pair, const int32_t* positions,
                            const float* table, const T* qkv, T* cache, float* parts, int32_t* arrived, T* o) {
    constexpr int P = Pack<T>::n, kLanes = 64 / P, kGroups = 32 / kLanes, kUnroll = 4;
    struct Shared {
        float top[kDecodeWarps], sum[kDecodeWarps], out[kDecodeWarps][64];
    };
    Shared& s = shared_memory<Shared>();
    let_next_kernel_begin();
    const int stretch = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
    const int n = static_cast<int>(blockIdx.z), kv_head = head / (H / KV);
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int group = lane / kLanes, part = lane % kLanes;  // this lane: keys of its group, channels [part P, +P)
    T* to = o + (int64_t{n} * H + head) * 64;
    const int cached = positions[n];  // keys in the cache; the row's own is one more
    const int keys = stretch_keys(cached + 1), stretches = cached / keys + 1;
    if (mask_pair[n] < 0 || stretch >= stretches) {  // the whole block leaves
        await_kernels_before();
        if (mask_pair[n] < 0 && stretch == 0 && warp == 0 && group == 0) store_pack(to + part * P, Pack<T>{});
        return;
    }
    T* rows = cache + int64_t{mask_pair[n] / 2} * capacity * 2 * KV * 64 + kv_head * 64 + part * P;
    const int end = (stretch + 1) * keys < cached ? (stretch + 1) * keys : cached;
    Words k[kUnroll], v[kUnroll];
    const auto load = [&](int first) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int key = first + u * kGroups + group;
            const T* row = rows + int64_t{key < end ? key : end - 1} * 2 * KV * 64;
            k[u] = load_words(row);
            v[u] = load_words(row + KV * 64);
        }
    };
    int first = stretch * keys + warp * kGroups * kUnroll;
    if (first < end) load(first);
    Quad<float> cs[P / 2];
#pragma unroll
    for (int e = 0; e < P / 2; ++e) cs[e] = load_quad(table + int64_t{cached} * 64 + (part * P % 32 + e * 2) * 2);
    await_kernels_before();

    const T* own = qkv + int64_t{n} * (H + 2 * KV) * 64 + part * P;
    const bool appends = stretch == stretches - 1 && warp == 0, first_half = part * P < 32;
    const Words own_q = load_words(own + head * 64);
    Words own_k{}, own_v{};
    if (appends) own_k = load_words(own + (H + kv_head) * 64), own_v = load_words(own + (H + KV + kv_head) * 64);
    float q[P], out[P] = {}, top = -1.0e30f, sum = 0;
    turn<T>(own_q, cs, first_half, q);
#pragma unroll
    for (int e = 0; e < P; ++e) q[e] *= 0.125f;
    if (appends) {
        float turned[P];
        turn<T>(own_k, cs, first_half, turned);
        own_k = words_of<T>(turned);
        if (group == 0 && head % (H / KV) == 0) {
            store_words(rows + int64_t{cached} * 2 * KV * 64, own_k);
            store_words(rows + (int64_t{cached} * 2 + 1) * KV * 64, own_v);
        }
        // The online softmax begins with the row's own key, of weight 1, in one group.
        float score = 0;
#pragma unroll
        for (int e = 0; e < P; ++e) score += q[e] * turned[e];
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(0xffffffffu, score, offset);
        if (group == 0) {
            top = score, sum = 1;
#pragma unroll
            for (int e = 0; e < P; ++e) out[e] = element<T>(own_v, e);
        }
    }
    while (first < end) {
        float score[kUnroll], high = top;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            score[u] = 0;
#pragma unroll
            for (int e = 0; e < P; ++e) score[u] += q[e] * element<T>(k[u], e);
#pragma unroll
            for (int offset = kLanes / 2; offset > 0; offset /= 2)
                score[u] += __shfl_xor_sync(0xffffffffu, score[u], offset);
            if (first + u * kGroups + group < end) high = fmaxf(high, score[u]);
        }
        const float shrink = expf(top - high);
        top = high;
        sum *= shrink;
#pragma unroll
        for (int e = 0; e < P; ++e) out[e] *= shrink;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const float p = first + u * kGroups + group < end ? expf(score[u] - top) : 0.0f;
            sum += p;
#pragma unroll
            for (int e = 0; e < P; ++e) out[e] += p * element<T>(v[u], e);
        }
        first += kDecodeWarps * kGroups * kUnroll;
        if (first < end) load(first);
    }

    // The groups of the warp.
    float high = top;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
    const float shrink = expf(top - high);
    sum *= shrink;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
#pragma unroll
    for (int e = 0; e < P; ++e) {
        out[e] *= shrink;
#pragma unroll
        for (int offset = kLanes; offset < 32; offset *= 2) out[e] += __shfl_xor_sync(0xffffffffu, out[e], offset);
    }
    if (lane == 0) s.top[warp] = high, s.sum[warp] = sum;
    // Parts that lie 32 floats apart start one channel apart, so that they meet in no bank.
    const bool shifted = part * P >= 32;
    if (group == 0) {
#pragma unroll
        for (int e = 0; e < P; ++e) {
            const int c = shifted ? (e + 1) % P : e;
            s.out[warp][part * P + c] = shifted ? out[(e + 1) % P] : out[e];
        }
    }
    __syncthreads();
    if (warp > 0) return;

    // The warps: two channels a lane.
    high = s.top[0];
    for (int w = 1; w < kDecodeWarps; ++w) high = fmaxf(high, s.top[w]);
    float total = 0, low_half = 0, high_half = 0;
    for (int w = 0; w < kDecodeWarps; ++w) {
        const float scale = expf(s.top[w] - high);
        total += s.sum[w] * scale;
        low_half += s.out[w][lane] * scale;
        high_half += s.out[w][lane + 32] * scale;
    }
    if (stretches > 1) {
        // Each lane counts itself when others can see what it wrote; the block of the last one joins all.
        float* first_part = parts + (int64_t{n} * H + head) * kDecodeStretches * kDecodePart;
        float* mine = first_part + stretch * kDecodePart;
        mine[lane] = low_half, mine[lane + 32] = high_half;
        if (lane == 0) mine[64] = high, mine[65] = total;
        int32_t* counter = arrived + int64_t{n} * H + head;
        int before = arrive(counter);
        for (int offset = 16; offset > 0; offset /= 2) {
            const int other = __shfl_xor_sync(0xffffffffu, before, offset);
            before = before > other ? before : other;
        }
        if (before != 32 * stretches - 1) return;
        if (lane == 0) *counter = 0;             // for the next launch
        const volatile float* all = first_part;  // others' writes: not from L1
        const bool counts = lane < stretches;
        const float its_top = counts ? all[lane * kDecodePart + 64] : -1.0e30f;
        const float its_sum = counts ? all[lane * kDecodePart + 65] : 0.0f;
        const float scale = expf(its_top - warp_max(its_top));
        total = warp_sum(its_sum * scale);
        low_half = high_half = 0;
#pragma unroll 4
        for (int i = 0; i < stretches; ++i) {
            const float its_scale = __shfl_sync(0xffffffffu, scale, i);
            low_half += all[i * kDecodePart + lane] * its_scale;
            high_half += all[i * kDecodePart + lane + 32] * its_scale;
        }
    }
    to[lane] = from_float<T>(low_half / total);
    to[lane + 32] = from_float<T>(high_half / total);
}

// N rows of x against W. Split warps share the length of a row of W; a warp has R rows at a time and kGemvInFlight
// packs a lane on their way, enough to keep device memory busy. The first of them are asked for before the kernels
// before have ended: W does not depend on those. A weight is loaded once and used for all N rows; the sums of warps
// that share a row are joined in their order. grid (ceil(out / rows of a block), ceil(rows of x / N))
template <class T, class Y, int Split, int R, int N>
__global__ void __launch_bounds__(32 * kGemvWarps, N == 1 ? 4 : 3)
    gemv_kernel(int rows, int out, int packs, const T* x, const T* W, Y* y) {
    constexpr int P = Pack<T>::n, U = kGemvInFlight / R, kShares = kGemvWarps / Split, kSums = kShares * R * N;
    struct Shared {
        float sum[Split][kSums];
    };
    Shared& s = shared_memory<Shared>();
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int slice = warp % Split, share = warp / Split;
    const int o = (static_cast<int>(blockIdx.x) * kShares + share) * R, first = static_cast<int>(blockIdx.y) * N;
    Words w[R][U];
    const auto load = [&](int at) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const T* row = W + int64_t{o + r < out ? o + r : out - 1} * packs * P;
#pragma unroll
            for (int u = 0; u < U; ++u)
                if (at + u * 32 * Split < packs) w[r][u] = load_words_once(row + (at + u * 32 * Split) * P);
        }
    };
    int at = slice * 32 + lane;
    load(at);
    await_kernels_before();
    let_next_kernel_begin();
    float sum[R][N] = {};
    while (at < packs) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const T* from = x + int64_t{first + n < rows ? first + n : rows - 1} * packs * P;
#pragma unroll
            for (int pair = 0; pair < U; pair += 2) {
                Words a[2];
#pragma unroll
                for (int u = 0; u < 2; ++u)
                    if (at + (pair + u) * 32 * Split < packs)
                        a[u] = load_words(from + (at + (pair + u) * 32 * Split) * P);
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    if (at + (pair + u) * 32 * Split >= packs) continue;
#pragma unroll
                    for (int r = 0; r < R; ++r)
#pragma unroll
                        for (int e = 0; e < P; ++e) sum[r][n] += element<T>(a[u], e) * element<T>(w[r][pair + u], e);
                }
            }
        }
        at += U * 32 * Split;
        load(at);
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float total = warp_sum(sum[r][n]);
            if (lane == 0) s.sum[slice][(share * R + r) * N + n] = total;
        }
    __syncthreads();
    const int i = warp * 32 + lane;
    if (i >= kSums) return;
    float total = s.sum[0][i];
#pragma unroll
    for (int other = 1; other < Split; ++other) total += s.sum[other][i];
    const int to = static_cast<int>(blockIdx.x) * kShares * R + i / N, n = first + i % N;
    if (to < out && n < rows) y[int64_t{n} * out + to] = from_float<Y>(total);
}

}  // namespace

template <class T>
void cache_append(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair, const int32_t* positions,
                  const T* qkv, T* cache) {
    const int packs_per_row = 2 * heads.KV * 64 / Pack<T>::n;
    const int64_t packs = int64_t{N} * packs_per_row;
    LAUNCH_EARLY(cache_append_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, packs,
                 packs_per_row, heads.H * 64, (heads.H + 2 * heads.KV) * 64, capacity, mask_pair, positions, qkv,
                 cache);
}
template <class T>
void decode_attention(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair,
                      const int32_t* positions, const float* table, const T* qkv, T* cache, float* parts,
                      int32_t* arrived, T* o) {
    const unsigned most = blocks_for(capacity, kLeastKeys);
    const dim3 grid(most < kDecodeStretches ? most : kDecodeStretches, static_cast<unsigned>(heads.H),
                    static_cast<unsigned>(N));
    LAUNCH_EARLY(decode_attention_kernel<T>, grid, dim3(32, kDecodeWarps), kDecodeWarps * 66 * sizeof(float), stream,
                 heads.H, heads.KV, capacity, mask_pair, positions, table, qkv, cache, parts, arrived, o);
}
template <class T, class Y>
void gemv(Stream stream, int N, int out, int in, const T* x, const T* W, Y* y) {
    const int packs = in / Pack<T>::n;
    const auto launch = [&](auto split, auto at_once, auto rows) {
        constexpr int kSplit = decltype(split)::value, kAtOnce = decltype(at_once)::value, kN = decltype(rows)::value;
        constexpr int kRows = kGemvWarps / kSplit * kAtOnce;
        LAUNCH_EARLY((gemv_kernel<T, Y, kSplit, kAtOnce, kN>), dim3(blocks_for(out, kRows), blocks_for(N, kN)),
                     dim3(32, kGemvWarps), kGemvWarps * kAtOnce * kN * sizeof(float), stream, N, out, packs, x, W, y);
    };
    // As many warps to a row as have all of it in flight, if a block has so many.
    const auto with_split = [&](auto rows) {
        using std::integral_constant;
        constexpr int kAtOnce = decltype(rows)::value == 1 ? 4 : 2, kReach = 32 * kGemvInFlight / kAtOnce;
        if (packs <= kReach)
            launch(integral_constant<int, 1>{}, integral_constant<int, kAtOnce>{}, rows);
        else if (packs <= 2 * kReach)
            launch(integral_constant<int, 2>{}, integral_constant<int, kAtOnce>{}, rows);
        else if (packs <= 4 * kReach)
            launch(integral_constant<int, 4>{}, integral_constant<int, kAtOnce>{}, rows);
        else
            launch(integral_constant<int, 8>{}, integral_constant<int, 2>{}, rows);
    };
    if (N == 1)
        with_split(std::integral_constant<int, 1>{});
    else
        with_split(std::integral_constant<int, 4>{});
}

#define ORPO_INSTANTIATE(T)                                                                                         \
    template void cache_append(Stream, int, Heads, int, const int32_t*, const int32_t*, const T*, T*);              \
    template void decode_attention(Stream, int, Heads, int, const int32_t*, const int32_t*, const float*, const T*, \
                                   T*, float*, int32_t*, T*);
ORPO_INSTANTIATE(float)
ORPO_INSTANTIATE(bf16)
template void gemv(Stream, int, int, int, const float*, const float*, float*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, bf16*);
template void gemv(Stream, int, int, int, const bf16*, const bf16*, float*);

}  // namespace orpo::cuda
