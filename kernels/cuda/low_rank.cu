// What dy, the gradient of adapted linears, gives to their B and S, all targets of a group at once (kernels/low_rank.h):
//   dB (out, R) += dy^T S,   dS (N, R) = scale dy B.     dy (N, out), S (N, R), B (out, R)
// Bytes: 2 N out, read once. FLOPs: 4 N out R.
//
//   low_rank_kernel      a block a (512 columns of a target, range of rows). Pieces of 16 rows come through shared memory
//                        in a ring; a warp owns 64 columns. It multiplies a piece as it lies by its rows of B, which it
//                        keeps as fragments: its share of dS, added over the warps a piece later. And turned, by S:
//                        into dB, which stays in its registers to the end.
//   low_rank_sum_kernel  adds what the blocks found, in a fixed order: dB over ranges of rows, dS over chunks of columns
//                        where a target has more than one.
//
// Where rows are cut depends on N and on the widths alone, where columns are cut on the widths.
// In shared memory the 16-byte packs of a row trade places, so that neither the copies nor ldmatrix, as it lies or
// turned, meet a bank twice: at_pack().
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 16, kColumns = 64 * kWarps;  // of a piece
constexpr int kBlocks = 264;                       // wanted: two a multiprocessor of a large device
constexpr int kLeastSteps = 4;                     // pieces of a range of rows, for what a range costs besides
constexpr int kMostTerms = 3;                      // q, k, v

template <int R>
constexpr int kRing = R <= 16 ? 4 : 3;  // pieces on their way or in use

// Where pack `pack` of row `row` lies among rows of `columns` elements: eight rows' packs of one number are in eight
// different groups of four banks.
template <int columns>
__device__ __forceinline__ int at_pack(int row, int pack) {
    constexpr int packs = columns / 8 < 8 ? columns / 8 : 8, rows = 8 / packs;  // rows in 128 bytes
    return row * columns + (pack ^ (row / rows % packs)) * 8;
}

template <int R>
struct LowRankShared {
    bf16 dy[kRing<R>][kRows * kColumns];
    bf16 S[kRing<R>][kRows * R];
    union {
        bf16 B[kColumns * R];  // at first
        float dS[2][kWarps][R / 8][kRows * 8];  // each warp's share, columns 8 by 8
    };
};
// Likewise for quads of a share's 16 rows x 8 columns, number n of R / 8.
template <int R>
__device__ __forceinline__ int at_quad(int n, int row, int half) {
    return ((row * 2 + half) ^ (n * (64 / R))) * 4;
}

struct Target {
    const bf16 *dy, *S, *B;
    bf16* dS;
    int lds, columns, before;          // columns of the targets before
    int chunk0, chunks, chunk_columns;  // chunks are counted through all targets
};
struct Targets {
    Target target[kMostTerms];
    int n, columns, chunks;  // in all
};

// B fragments of mma from rows [row, row + 16) of an array (rows, R): a pair of registers for each 8 of its columns.
template <int R>
__device__ __forceinline__ void load_b(uint2 (&b)[R / 8], const bf16* rows, int row, int lane) {
#pragma unroll
    for (int n = 0; n < R / 8; n += 2) {
        const uint4 r = ldmatrix_x4_trans(rows + at_pack<R>(row + lane % 16, (n + lane / 16) % (R / 8)));
        b[n] = make_uint2(r.x, r.y);
        if (n + 1 < R / 8) b[n + 1] = make_uint2(r.z, r.w);
    }
}

template <int R>
__global__ void __launch_bounds__(kThreads, R <= 16 ? 2 : 1)
    low_rank_kernel(int N, int ldy, float scale, int range_steps, Targets targets, float* dB_parts, float* dS_parts) {
    constexpr int kTiles = R / 8, ring = kRing<R>;
    LowRankShared<R>& s = shared_memory<LowRankShared<R>>();
    const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
    const int chunk = static_cast<int>(blockIdx.x), range = static_cast<int>(blockIdx.y);
    int i = 0;
    while (i + 1 < targets.n && chunk >= targets.target[i + 1].chunk0) ++i;
    const Target& target = targets.target[i];
    const int column = (chunk - target.chunk0) * target.chunk_columns, left = target.columns - column;
    const int width = left < target.chunk_columns ? left : target.chunk_columns;
    const int first = range * range_steps * kRows, steps_left = (N - first + kRows - 1) / kRows;
    const int steps = steps_left < range_steps ? steps_left : range_steps;
    const bf16 *dy = target.dy + int64_t{first} * ldy + column, *S = target.S + int64_t{first} * target.lds;
    const bf16* B = target.B + int64_t{column} * R;

    // Warps without columns leave theirs as they are; the last one with columns has zeros behind them.
    const auto load = [&](int step) {
        constexpr int kPacks = kColumns / 8;
#pragma unroll
        for (int k = 0; k < kRows * kPacks / kThreads; ++k) {
            const int row = t / kPacks + k * (kThreads / kPacks), pack = t % kPacks, n = step * kRows + row;
            const bool valid = first + n < N && pack * 8 < width;
            if (pack / 8 * 64 < width)
                cp_async_16(&s.dy[step % ring][at_pack<kColumns>(row, pack)],
                            valid ? dy + int64_t{n} * ldy + pack * 8 : dy, valid);
        }
        if (t < kRows * kTiles) {
            const int row = t / kTiles, pack = t % kTiles, n = step * kRows + row;
            const bool valid = first + n < N;
            cp_async_16(&s.S[step % ring][at_pack<R>(row, pack)], valid ? S + int64_t{n} * target.lds + pack * 8 : S,
                        valid);
        }
    };
    for (int k = t; k < kColumns * kTiles; k += kThreads) {
        const int row = k / kTiles, pack = k % kTiles;
        cp_async_16(&s.B[at_pack<R>(row, pack)], row < width ? B + int64_t{row} * R + pack * 8 : B, row < width);
    }
    cp_async_commit();
#pragma unroll
    for (int step = 0; step < ring - 1; ++step) {
        if (step < steps) load(step);
        cp_async_commit();
    }
    cp_async_wait<ring - 1>();
    __syncthreads();
    uint2 b[4][kTiles];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_b<R>(b[k], s.B, warp * 64 + k * 16, lane);

    // dS of a step's rows, a thread four columns of one.
    const auto add_up = [&](int step) {
        const int row = t / (R / 4), r = t % (R / 4) * 4, n = first + step * kRows + row;
        if (row >= kRows || n >= N) return;
        Quad<float> sum{};
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const Quad<float> share = load_quad(&s.dS[step % 2][w][r / 8][at_quad<R>(r / 8, row, r % 8 / 4)]);
#pragma unroll
            for (int e = 0; e < 4; ++e) sum.v[e] += share.v[e];
        }
        if (target.chunks > 1) return store_quad(dS_parts + (int64_t{chunk} * N + n) * R + r, sum);
        Quad<bf16> out;
#pragma unroll
        for (int e = 0; e < 4; ++e) out.v[e] = from_float<bf16>(scale * sum.v[e]);
        store_quad(target.dS + int64_t{n} * target.lds + r, out);
    };

    float dB[4][kTiles][4] = {};
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<ring - 2>();
        __syncthreads();
        if (step + ring - 1 < steps) load(step + ring - 1);
        cp_async_commit();
        if (step > 0) add_up(step - 1);
        float dS[kTiles][4] = {};
        if (warp * 64 < width) {
            uint2 sb[kTiles];
            load_b<R>(sb, s.S[step % ring], 0, lane);
            const bf16* piece = s.dy[step % ring];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int pack = warp * 8 + k * 2;
                const uint4 a = ldmatrix_x4(piece + at_pack<kColumns>(lane % 16, pack + lane / 16));
                const uint4 turned =
                    ldmatrix_x4_trans(piece + at_pack<kColumns>(lane % 8 + lane / 16 * 8, pack + lane / 8 % 2));
#pragma unroll
                for (int n = 0; n < kTiles; ++n) {
                    mma_16x8x16(dS[n], a, b[k][n].x, b[k][n].y);
                    mma_16x8x16(dB[k][n], turned, sb[n].x, sb[n].y);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                store_vector(&s.dS[step % 2][warp][n][at_quad<R>(n, lane / 4 + half * 8, lane % 4 / 2) + lane % 2 * 2],
                             Vector<float, 2>{{dS[n][2 * half], dS[n][2 * half + 1]}});
    }
    __syncthreads();
    add_up(steps - 1);
    float* to = dB_parts + (int64_t{range} * targets.columns + target.before + column) * R;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int c = warp * 64 + k * 16 + lane / 4 + half * 8;
            if (c >= width) continue;
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                store_vector(to + c * R + n * 8 + lane % 4 * 2,
                             Vector<float, 2>{{dB[k][n][2 * half], dB[k][n][2 * half + 1]}});
        }
}

// One array that blocks left parts of: `parts` of them, `apart` floats from one to the next.
struct Sum {
    const float* from;
    float* dB;  // added to; null: this is a dS
    bf16* dS;   // (N, R) at distance lds
    int64_t apart, quads;
    int parts, R, lds, block0;
};
struct Sums {
    Sum sum[2 * kMostTerms];
    int n;
};
constexpr int kFewParts = 8;  // are added by one thread; more by a thread of every warp

inline int sum_blocks(const Sum& sum) {
    return static_cast<int>(blocks_for(sum.quads, sum.parts <= kFewParts ? kThreads : 32));
}

__global__ void __launch_bounds__(kThreads) low_rank_sum_kernel(float scale, Sums sums) {
    struct Shared {
        float total[kWarps][32 * 4];
    };
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32, block = static_cast<int>(blockIdx.x);
    int i = 0;
    while (i + 1 < sums.n && block >= sums.sum[i + 1].block0) ++i;
    const Sum& sum = sums.sum[i];
    const bool few = sum.parts <= kFewParts;
    const int64_t quad = int64_t{block - sum.block0} * (few ? kThreads : 32) + (few ? t : lane);
    Quad<float> total{};
    if (quad < sum.quads) {
#pragma unroll 8
        for (int part = few ? 0 : warp; part < sum.parts; part += few ? 1 : kWarps) {
            const Quad<float> more = load_quad(sum.from + part * sum.apart + quad * 4);
#pragma unroll
            for (int e = 0; e < 4; ++e) total.v[e] += more.v[e];
        }
    }
    if (!few) {
        store_quad(&s.total[warp][lane * 4], total);
        __syncthreads();
        if (warp > 0) return;
#pragma unroll
        for (int w = 1; w < kWarps; ++w) {
            const Quad<float> more = load_quad(&s.total[w][lane * 4]);
#pragma unroll
            for (int e = 0; e < 4; ++e) total.v[e] += more.v[e];
        }
    }
    if (quad >= sum.quads) return;
    if (sum.dB) {
        Quad<float> dB = load_quad(sum.dB + quad * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) dB.v[e] += total.v[e];
        store_quad(sum.dB + quad * 4, dB);
    } else {
        Quad<bf16> dS;
#pragma unroll
        for (int e = 0; e < 4; ++e) dS.v[e] = from_float<bf16>(scale * total.v[e]);
        store_quad(sum.dS + quad * 4 / sum.R * sum.lds + quad * 4 % sum.R, dS);
    }
}

Targets targets_of(int n, const LowRankTerm* terms, const bf16* dy) {
    Targets all{};
    all.n = n;
    for (int i = 0; i < n; ++i) {
        const LowRankTerm& t = terms[i];
        const int slices = (t.columns + 63) / 64, chunks = (slices + kWarps - 1) / kWarps;
        all.target[i] = {dy ? dy + t.column : nullptr, t.S,         t.B,        t.dS, t.lds, t.columns,
                         all.columns,   all.chunks, chunks, (slices + chunks - 1) / chunks * 64};
        all.columns += t.columns, all.chunks += chunks;
    }
    return all;
}
// Ranges of rows at most, and the pieces of a range.
int most_ranges(int N, const Targets& targets) {
    const int steps = (N + kRows - 1) / kRows, wanted = kBlocks / targets.chunks;
    const int most = (steps + kLeastSteps - 1) / kLeastSteps;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

template <int R>
void launch(Stream stream, int N, double scale, int ldy, const Targets& targets, const LowRankTerm* terms,
            float* scratch) {
    const int steps = (N + kRows - 1) / kRows, most = most_ranges(N, targets);
    const int range_steps = (steps + most - 1) / most, ranges = (steps + range_steps - 1) / range_steps;
    float* dB_parts = scratch;                                    // (ranges, columns, R)
    float* dS_parts = scratch + int64_t{ranges} * targets.columns * R;  // (chunks, N, R)
    constexpr int kBytes = sizeof(LowRankShared<R>);
    ALLOW_SHARED(low_rank_kernel<R>, kBytes);
    LAUNCH(low_rank_kernel<R>, dim3(static_cast<unsigned>(targets.chunks), static_cast<unsigned>(ranges)),
           dim3(kThreads), kBytes, stream, N, ldy, static_cast<float>(scale), range_steps, targets, dB_parts, dS_parts);
    Sums sums{};
    int blocks = 0;
    const auto add = [&](Sum sum) {
        sum.block0 = blocks;
        blocks += sum_blocks(sum);
        sums.sum[sums.n++] = sum;
    };
    for (int i = 0; i < targets.n; ++i) {
        const Target& t = targets.target[i];
        add({dB_parts + int64_t{t.before} * R, terms[i].dB, nullptr, int64_t{targets.columns} * R,
             int64_t{t.columns} * R / 4, ranges, R, 0, 0});
        if (t.chunks > 1)
            add({dS_parts + int64_t{t.chunk0} * N * R, nullptr, t.dS, int64_t{N} * R, int64_t{N} * R / 4, t.chunks, R,
                 t.lds, 0});
    }
    LAUNCH(low_rank_sum_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kWarps * 32 * 16, stream,
           static_cast<float>(scale), sums);
}

bool aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % static_cast<unsigned>(bytes) == 0; }

}  // namespace

int64_t low_rank_scratch(int N, int n, const LowRankTerm* terms) {
    if (n < 1 || n > kMostTerms) return 0;
    const int R = terms[0].R;
    if (R != 8 && R != 16 && R != 32) return 0;
    const Targets targets = targets_of(n, terms, nullptr);
    return (int64_t{most_ranges(N, targets)} * targets.columns + int64_t{targets.chunks} * N) * R;
}
bool low_rank_fits(const bf16* dy, int ldy, int n, const LowRankTerm* terms) {
    bool fits = aligned(dy, 16) && ldy % 8 == 0;
    for (int i = 0; i < n; ++i) {
        const LowRankTerm& t = terms[i];
        fits &= t.R == terms[0].R && t.column % 8 == 0 && t.columns % 8 == 0 && t.lds % 8 == 0 && aligned(t.S, 16) &&
                aligned(t.B, 16) && aligned(t.dB, 16) && aligned(t.dS, 8);
    }
    return fits;
}
void low_rank_backward(Stream stream, int N, double scale, const bf16* dy, int ldy, int n, const LowRankTerm* terms,
                       float* scratch) {
    const Targets targets = targets_of(n, terms, dy);
    switch (terms[0].R) {
        case 8: return launch<8>(stream, N, scale, ldy, targets, terms, scratch);
        case 16: return launch<16>(stream, N, scale, ldy, targets, terms, scratch);
        default: return launch<32>(stream, N, scale, ldy, targets, terms, scratch);
    }
}

}  // namespace orpo::cuda
