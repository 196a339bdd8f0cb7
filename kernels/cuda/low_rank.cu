// What dy, the gradient of adapted linears, gives to their B and S, for all targets of a group at once:
//   dB (out, R) += dy^T S,   dS (N, R) = scale dy B.     dy (N, out), S (N, R), B (out, R)
// Bytes: 2 N out, read once, and the blocks' parts. FLOPs: 4 N out R.
//
//   low_rank_kernel      a block a (chunk of up to 512 columns of a target, range of rows): low_rank_cut.h. Pieces of
//                        32 rows come through shared memory in a ring; a warp owns 64 columns. It multiplies a piece
//                        as it lies by its rows of B, which it keeps as fragments: its share of dS, which is added
//                        over the warps while they work on the next piece. And turned, by S: into dB, which stays in
//                        its registers to the end.
//   low_rank_sum_kernel  adds the blocks' parts in a fixed order: dB over ranges of rows, dS over chunks of columns,
//                        where a target has more than one.
//
// In shared memory the 16-byte packs of a row trade places, so that neither the copies nor ldmatrix, as it lies or
// turned, meet a bank twice: at_pack().
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/low_rank_cut.h"

namespace orpo::cuda {

namespace {

constexpr int kColumns = LowRankCut::kColumns, kMostTerms = LowRankCut::kMostTerms;
constexpr int kWarps = kColumns / 64, kThreads = 32 * kWarps;
constexpr int kFewParts = 16;  // are added by one thread; more by a thread of every warp

// A rank's rows of a piece, and pieces on their way or in use: what fits into 99 KiB.
template <int R>
constexpr int kRows = R <= 16 ? 32 : 16;
template <int R>
constexpr int kRing = R <= 16 ? 2 : 3;

// Where pack `pack` of row `row` lies among rows of `columns` elements: eight rows' packs of one number are in eight
// different groups of four banks.
template <int columns>
__device__ __forceinline__ unsigned at_pack(unsigned row, unsigned pack) {
    constexpr unsigned packs = columns / 8 < 8 ? columns / 8 : 8, rows = 8 / packs;  // rows in 128 bytes
    return row * columns + (pack ^ (row / rows % packs)) * 8;
}

template <int R>
struct LowRankShared {
    bf16 dy[kRing<R>][kRows<R> * kColumns];
    bf16 S[kRing<R>][kRows<R> * R];
    union {
        bf16 B[kColumns * R];                      // at first
        float dS[2][kWarps][R / 8][kRows<R> * 8];  // each warp's share, columns 8 by 8
    };
};
// Likewise for halves of a row of a share's n-th 8 columns, so that whole rows of R can be read.
template <int R>
__device__ __forceinline__ unsigned at_half(unsigned n, unsigned row, unsigned half) {
    return ((row * 2 + half) ^ (n * (64 / R))) * 4;
}

struct Target {
    const bf16 *dy, *S, *B;
    bf16* dS;
    int lds, ldds, columns, before, first, chunks, chunk_columns;  // before, first: as in LowRankCut
};
struct Targets {
    Target target[kMostTerms];
    int n, columns;
};

// B fragments of mma from 16 rows of an array (rows, R): a pair of registers for each 8 of its columns.
template <int R>
__device__ __forceinline__ void load_b(uint2 (&b)[R / 8], const bf16* rows, unsigned row, unsigned lane) {
#pragma unroll
    for (int n = 0; n < R / 8; n += 2) {
        const uint4 r = ldmatrix_x4_trans(rows + at_pack<R>(row + lane % 16, (n + lane / 16) % (R / 8)));
        b[n] = make_uint2(r.x, r.y);
        if (n + 1 < R / 8) b[n + 1] = make_uint2(r.z, r.w);
    }
}

template <int R>
__global__ void __launch_bounds__(kThreads, R <= 16 ? 2 : 1)
    low_rank_kernel(int N, int ldy, float scale, int range_rows, Targets targets, float* dB_parts, float* dS_parts) {
    constexpr int kTiles = R / 8, kPacks = kColumns / 8, rows = kRows<R>, ring = kRing<R>;
    LowRankShared<R>& s = shared_memory<LowRankShared<R>>();
    const unsigned t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int chunk = static_cast<int>(blockIdx.x), range = static_cast<int>(blockIdx.y);
    int i = 0;
    while (i + 1 < targets.n && chunk >= targets.target[i + 1].first) ++i;
    const Target& target = targets.target[i];
    const int column = (chunk - target.first) * target.chunk_columns, left = target.columns - column;
    const int width = left < target.chunk_columns ? left : target.chunk_columns;
    const int first = range * range_rows, count = N - first < range_rows ? N - first : range_rows;
    const int steps = (count + rows - 1) / rows;
    const bool has_columns = static_cast<int>(warp * 64) < width;

    // Of a piece a thread copies one pack of every fourth row. Nothing is copied where no warp has columns, zeros where
    // one has some but not all.
    const int pack = static_cast<int>(t % kPacks), row0 = static_cast<int>(t / kPacks);
    const bool copies = pack / 8 * 64 < width, inside = pack * 8 < width;
    const unsigned to[2] = {at_pack<kColumns>(row0, pack), at_pack<kColumns>(row0 + 4, pack)};
    const int64_t four = inside ? int64_t{4} * ldy : 0;
    const bf16* from = target.dy + (inside ? (int64_t{first} + row0) * ldy + column + pack * 8 : 0);
    const int S_row = static_cast<int>(t / kTiles);
    const unsigned S_to = at_pack<R>(S_row, t % kTiles);
    const bf16* S_from = target.S + (int64_t{first} + S_row) * target.lds + t % kTiles * 8;
    const auto load = [&](int step) {  // one step after the other
        const int rows_left = count - step * rows, dy_rows = inside ? rows_left : 0;
        bf16* piece = s.dy[step % ring];
        if (copies)
#pragma unroll
            for (int k = 0; k < rows / 4; ++k)
                cp_async_16(piece + to[k % 2] + k / 2 * 8 * kColumns, from + k * four, row0 + k * 4 < dy_rows);
        from += rows / 4 * four;
        if (t < rows * kTiles) cp_async_16(&s.S[step % ring][S_to], S_from, S_row < rows_left);
        S_from += int64_t{rows} * target.lds;
    };
    for (unsigned k = t; k < kColumns * kTiles; k += kThreads) {
        const int row = static_cast<int>(k / kTiles);
        cp_async_16(&s.B[at_pack<R>(row, k % kTiles)], target.B + int64_t{column} * R + k * 8, row < width);
    }
    cp_async_commit();
#pragma unroll 1
    for (int step = 0; step < ring - 1; ++step) {
        if (step < steps) load(step);
        cp_async_commit();
    }
    cp_async_wait<ring - 1>();
    __syncthreads();
    uint2 b[4][kTiles];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_b<R>(b[k], s.B, warp * 64 + k * 16, lane);

    // dS of a piece's rows, a thread four columns of one.
    const auto add_up = [&](int step) {
        const int row = static_cast<int>(t / (R / 4)), n = step * rows + row;
        const unsigned r = t % (R / 4) * 4;
        if (row >= rows || n >= count) return;
        Quad<float> sum{};
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const Quad<float> share = load_quad(&s.dS[step % 2][w][r / 8][at_half<R>(r / 8, row, r % 8 / 4)]);
#pragma unroll
            for (int e = 0; e < 4; ++e) sum.v[e] += share.v[e];
        }
        if (target.chunks > 1) return store_quad(dS_parts + (int64_t{chunk} * N + first + n) * R + r, sum);
        Quad<bf16> dS;
#pragma unroll
        for (int e = 0; e < 4; ++e) dS.v[e] = from_float<bf16>(scale * sum.v[e]);
        store_quad(target.dS + (int64_t{first} + n) * target.ldds + r, dS);
    };

    // Two packs further in a row are 16 elements, before the packs traded places and after.
    const unsigned at_a = at_pack<kColumns>(lane % 16, warp * 8 + lane / 16);
    const unsigned at_turned = at_pack<kColumns>(lane % 8 + lane / 16 * 8, warp * 8 + lane / 8 % 2);
    float dB[4][kTiles][4] = {};
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<ring - 2>();
        __syncthreads();
        if (step + ring - 1 < steps) load(step + ring - 1);
        cp_async_commit();
        if (step > 0) add_up(step - 1);
        float dS[rows / 16][kTiles][4] = {};
        if (has_columns) {
#pragma unroll
            for (int m = 0; m < rows / 16; ++m) {
                const bf16* piece = &s.dy[step % ring][m * 16 * kColumns];
                uint2 sb[kTiles];
                load_b<R>(sb, s.S[step % ring], m * 16, lane);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const uint4 a = ldmatrix_x4(piece + (at_a ^ k * 16u));
                    const uint4 turned = ldmatrix_x4_trans(piece + (at_turned ^ k * 16u));
#pragma unroll
                    for (int n = 0; n < kTiles; ++n) {
                        mma_16x8x16(dS[m][n], a, b[k][n].x, b[k][n].y);
                        mma_16x8x16(dB[k][n], turned, sb[n].x, sb[n].y);
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < rows / 16; ++m)
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const unsigned row = m * 16 + half * 8 + lane / 4, pair = lane % 4;
                    store_vector(&s.dS[step % 2][warp][n][at_half<R>(n, row, pair / 2) + pair % 2 * 2],
                                 Vector<float, 2>{{dS[m][n][2 * half], dS[m][n][2 * half + 1]}});
                }
    }
    __syncthreads();
    add_up(steps - 1);
    float* parts = dB_parts + (int64_t{range} * targets.columns + target.before + column) * R;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int c = static_cast<int>(warp * 64 + k * 16 + half * 8 + lane / 4);
            if (c >= width) continue;
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                store_vector(parts + c * R + n * 8 + lane % 4 * 2,
                             Vector<float, 2>{{dB[k][n][2 * half], dB[k][n][2 * half + 1]}});
        }
}

// One array that blocks left parts of: `parts` of them, `apart` floats from one to the next.
struct Sum {
    const float* from;
    float* dB;  // added to; null: this is a dS
    bf16* dS;   // (N, R) at distance ldds
    int64_t apart, quads;
    int parts, R, ldds, block0;
};
struct Sums {
    Sum sum[2 * kMostTerms];
    int n;
};

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
        store_quad(sum.dS + quad * 4 / sum.R * sum.ldds + quad * 4 % sum.R, dS);
    }
}

template <int R>
void launch(Stream stream, int N, double scale, const bf16* dy, int ldy, int n, const LowRankTerm* terms,
            float* scratch) {
    const LowRankCut cut(N, n, terms);
    float* dB_parts = scratch;                                          // (ranges, columns, R)
    float* dS_parts = scratch + int64_t{cut.ranges} * cut.columns * R;  // (chunks, N, R)
    Targets targets{};
    targets.n = n, targets.columns = cut.columns;
    Sums sums{};
    int blocks = 0;
    const auto add = [&](Sum sum) {
        sum.block0 = blocks;
        blocks += static_cast<int>(blocks_for(sum.quads, sum.parts <= kFewParts ? kThreads : 32));
        sums.sum[sums.n++] = sum;
    };
    for (int i = 0; i < n; ++i) {
        const LowRankTerm& t = terms[i];
        const int chunks = LowRankCut::chunks_of(t.columns);
        targets.target[i] = {dy + t.column,
                             t.S,
                             t.B,
                             t.dS,
                             t.lds,
                             t.ldds,
                             t.columns,
                             cut.before[i],
                             cut.first[i],
                             chunks,
                             LowRankCut::chunk_columns(t.columns)};
        add({dB_parts + int64_t{cut.before[i]} * R, t.dB, nullptr, int64_t{cut.columns} * R, int64_t{t.columns} * R / 4,
             cut.ranges, R, 0, 0});
        if (chunks > 1)
            add({dS_parts + int64_t{cut.first[i]} * N * R, nullptr, t.dS, int64_t{N} * R, int64_t{N} * R / 4, chunks, R,
                 t.ldds, 0});
    }
    constexpr int kBytes = sizeof(LowRankShared<R>);
    static_assert(kBytes <= 99 * 1024, "fits every device");
    static_assert(kThreads == 4 * (kColumns / 8) && LowRankCut::kRows % kRows<R> == 0);
    ALLOW_SHARED(low_rank_kernel<R>, kBytes);
    LAUNCH(low_rank_kernel<R>, dim3(static_cast<unsigned>(cut.chunks), static_cast<unsigned>(cut.ranges)),
           dim3(kThreads), kBytes, stream, N, ldy, static_cast<float>(scale), cut.range_rows, targets, dB_parts,
           dS_parts);
    LAUNCH(low_rank_sum_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kThreads * sizeof(Quad<float>),
           stream, static_cast<float>(scale), sums);
}

bool aligned(const void* p, unsigned bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

bool low_rank_fits(const bf16* dy, int ldy, int n, const LowRankTerm* terms) {
    bool fits = aligned(dy, 16) && ldy % 8 == 0;
    for (int i = 0; i < n; ++i) {
        const LowRankTerm& t = terms[i];
        fits &= t.R == terms[0].R && t.column % 8 == 0 && t.columns % 8 == 0 && t.lds % 8 == 0 && t.ldds % 4 == 0 &&
                aligned(t.S, 16) && aligned(t.B, 16) && aligned(t.dB, 16) && aligned(t.dS, 8);
    }
    return fits;
}
void low_rank_backward(Stream stream, int N, double scale, const bf16* dy, int ldy, int n, const LowRankTerm* terms,
                       float* scratch) {
    switch (terms[0].R) {
        case 8:
            return launch<8>(stream, N, scale, dy, ldy, n, terms, scratch);
        case 16:
            return launch<16>(stream, N, scale, dy, ldy, n, terms, scratch);
        default:
            return launch<32>(stream, N, scale, dy, ldy, n, terms, scratch);
    }
}

}  // namespace orpo::cuda
