// C (M, N) = A B or C += A B, one thread's share; every product of the backend ends here.
//
// Every element of C is a sum in one order that depends on K alone, so its bits depend on nothing but its own row of A
// and column of B, not on threads, tiles or the number of rows:
//   over features  short chains of fused multiply-adds, kChain terms each, begun at 0 and added up in the order of k
//                  within a block of kKC, then the blocks to C.
//                  One chain of 1,536 terms would round like sqrt(1536 / 2) last places, these like a quarter of that.
//   over tokens    (kCols) one chain that begins at C, so that two calls give the bits of one.
//
// The register tile is MR rows by 16 NV columns: per k, NV loads of B and MR broadcasts of A feed MR NV fused
// multiply-adds. AVX-512 holds 14 x 32 (28 of 32 registers), AVX2 6 x 16 (12 of 16), SSE2 3 x 16 (12 of 16).
// Reads per tile and k: 4 (MR + 16 NV) bytes for 32 MR NV FLOPs; the A block of one thread stays in L2, panels of B
// stream through it.

#if defined(__AVX512F__)
static constexpr int kMR = 14, kNV = 2;
#elif defined(__AVX2__)
static constexpr int kMR = 6, kNV = 1;
#else
static constexpr int kMR = 3, kNV = 1;
#endif
static constexpr int kNR = 16 * kNV;
static constexpr int kChain = 96;      // terms summed before they are added to C
static constexpr int kKC = 576;        // rows of B, columns of A in one cache block: whole chains
static constexpr int kALd = kKC + 16;  // row distance of packed A: one cache line past a power of two's aliasing

// A of this tile: element (m, k) at A[m * (kCols ? 1 : kPairs ? lda : kALd) + k * (kCols ? lda : 1)].
// B: (K, 16 NV) at distance ldb. C: (MR, 16 NV) at distance ldc.
// kPairs: A and B hold pairs of bf16 (k and k + 1) in each 32-bit element, K counts pairs (bf16.isa.h).
template <int MR, int NV, bool kCols, bool kPairs>
[[gnu::noinline]] static void tile(int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                                   int64_t ldc, bool accumulate) {
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = set1(0.0f);
    if (kCols && accumulate) {
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) acc[i][j] = load(C + i * ldc + 16 * j);
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
        V b[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) b[j] = load(B + 16 * j);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
            const V a = set1(kCols ? A[i] : A[i * (kPairs ? lda : kALd)]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) acc[i][j] = kPairs ? fma_pairs(a, b[j], acc[i][j]) : fma(a, b[j], acc[i][j]);
        }
        A += kCols ? lda : 1;
        B += ldb;
    }
    if (!kCols && accumulate) {
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) acc[i][j] = add(load(C + i * ldc + 16 * j), acc[i][j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) store(C + i * ldc + 16 * j, acc[i][j]);
}

template <int NV, bool kCols, bool kPairs, int MR = kMR>
static inline void tile_of(int rows, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                           int64_t ldc, bool accumulate) {
    if constexpr (MR > 0) {
        if (rows == MR)
            tile<MR, NV, kCols, kPairs>(K, A, lda, B, ldb, C, ldc, accumulate);
        else
            tile_of<NV, kCols, kPairs, MR - 1>(rows, K, A, lda, B, ldb, C, ldc, accumulate);
    }
}

// What the next panel will read: `chunks` stretches of `lines` cache lines, `step` floats apart. The tiles of this
// panel ask for it bit by bit, so that it is in L2 when its turn comes.
struct Ahead {
    const float* from = nullptr;
    int chunks = 0, lines = 0;
    int64_t step = 0;

    // Part `part` of `parts`.
    void fetch(int part, int parts) const {
        const int total = chunks * lines, end = static_cast<int>(int64_t{total} * (part + 1) / parts);
        for (int i = static_cast<int>(int64_t{total} * part / parts); i < end; ++i)
            __builtin_prefetch(from + (i / lines) * step + (i % lines) * 16, 0, 2);
    }
};

// The low-rank terms of a panel of columns, in units (R numbers, or pairs of bf16): packed S of every row, at distance
// kALd, and packed B (units, width). Each term is one more chain, however long.
struct LowPanel {
    int terms = 0;
    int units[kMostAdded];
    const float *a[kMostAdded], *b[kMostAdded];
};

// All M rows against one panel of B (K, 16 or kNR columns), of which the first n are columns of C; not kCols: the
// products of `low` are added.
template <bool kCols, bool kPairs = false>
[[gnu::noinline]] static void panel(int M, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                                    int64_t ldc, int n, bool accumulate, const Ahead& ahead = {},
                                    const LowPanel& low = {}) {
    const int width = n <= 16 ? 16 : kNR, blocks = (M + kMR - 1) / kMR;
    const int chain = kCols ? K : kChain, chains = (K + chain - 1) / chain;
    const auto chain_of = [&](int rows, int length, const float* a, const float* b, int64_t distance, float* c,
                              int64_t ld, bool add) {
        if (kNV > 1 && width == 16)
            tile_of<1, kCols, kPairs>(rows, length, a, lda, b, distance, c, ld, add);
        else
            tile_of<kNV, kCols, kPairs>(rows, length, a, lda, b, distance, c, ld, add);
    };
    // Where C is narrower than the panel, and where chains are added up: a column of C's rows may share few cache
    // lines.
    float local[kMR * kNR + 16];
    const bool once = K <= chain && low.terms == 0;
    const bool direct = n == width && once, onto = accumulate && once;
    for (int b = 0, m = 0; b < blocks; ++b) {
        const int rows = (M - m + blocks - b - 1) / (blocks - b);  // balanced: 14 or 13, never a last one of 1
        const float* a = A + m * (kCols ? 1 : kPairs ? lda : kALd);
        float* c = direct ? C + m * ldc : local;
        const int64_t ld = direct ? ldc : width;
        if (!direct && onto)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < width; ++j) local[i * width + j] = j < n ? C[(m + i) * ldc + j] : 0.0f;
        for (int k = 0, part = 0; k < K; k += chain, ++part) {
            if (ahead.from) ahead.fetch(b * chains + part, blocks * chains);
            // The next block's C, which a store would have to wait for.
            if (!kCols && b + 1 < blocks)
                for (int i = rows * part / chains; i < rows * (part + 1) / chains; ++i)
                    for (int j = 0; j < n; j += 16) __builtin_prefetch(C + (m + rows + i) * ldc + j, 1, 3);
            chain_of(rows, K - k < chain ? K - k : chain, a + k * (kCols ? lda : 1), B + k * ldb, ldb, c, ld,
                     onto || k > 0);
        }
        for (int t = 0; !kCols && t < low.terms; ++t)
            chain_of(rows, low.units[t], low.a[t] + m * kALd, low.b[t], width, c, ld, true);
        const bool add_c = accumulate && !onto;
        for (int i = 0; i < rows && !direct; ++i) {
            float* to = C + (m + i) * ldc;
            if (n == width) {
                for (int j = 0; j < width; j += 16) {
                    const V sum = load(local + i * width + j);
                    store(to + j, add_c ? add(load(to + j), sum) : sum);
                }
            } else {
                for (int j = 0; j < n && j < width; ++j)
                    to[j] = add_c ? to[j] + local[i * width + j] : local[i * width + j];
            }
        }
        m += rows;
    }
}

// A (M, K) at distance lda, times scale -> packed (M, kALd).
static void pack_rows(int M, int K, float scale, const float* A, int64_t lda, float* packed) {
    const V s = set1(scale);
    for (int m = 0; m < M; ++m) {
        const float* from = A + m * lda;
        float* to = packed + int64_t{m} * kALd;
        int k = 0;
        for (; k + 16 <= K; k += 16) store(to + k, mul(s, load(from + k)));
        for (; k < K; ++k) to[k] = scale * from[k];
    }
}

// to (cols, ldt) = from (rows, cols)^T, rows <= 16 lanes of one V; lanes past `rows` become 0.
static void transpose_strip(int rows, int cols, const float* from, int64_t ldf, float* to, int64_t ldt) {
    int c = 0;
#if defined(__AVX512F__)
    if (rows == 16)
        for (; c + 16 <= cols; c += 16) {
            __m512 r[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * ldf + c);
            __m512 t[16];
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
                r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
                r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
                r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
                t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
                t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
                t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                _mm512_storeu_ps(to + (c + i) * ldt, _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88));
                _mm512_storeu_ps(to + (c + 4 + i) * ldt, _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88));
                _mm512_storeu_ps(to + (c + 8 + i) * ldt, _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd));
                _mm512_storeu_ps(to + (c + 12 + i) * ldt, _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd));
            }
        }
#endif
    for (; c + 4 <= cols && rows == 16; c += 4) {
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            __m128 r0 = _mm_loadu_ps(from + (4 * q) * ldf + c), r1 = _mm_loadu_ps(from + (4 * q + 1) * ldf + c);
            __m128 r2 = _mm_loadu_ps(from + (4 * q + 2) * ldf + c), r3 = _mm_loadu_ps(from + (4 * q + 3) * ldf + c);
            _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
            _mm_storeu_ps(to + c * ldt + 4 * q, r0), _mm_storeu_ps(to + (c + 1) * ldt + 4 * q, r1);
            _mm_storeu_ps(to + (c + 2) * ldt + 4 * q, r2), _mm_storeu_ps(to + (c + 3) * ldt + 4 * q, r3);
        }
    }
    for (; c < cols; ++c)
        for (int i = 0; i < 16; ++i) to[c * ldt + i] = i < rows ? from[i * ldf + c] : 0.0f;
}

// (K, width) = B^T from B (n, K) at distance ldb; columns past n are 0.
static void pack_columns(int n, int K, const float* B, int64_t ldb, float* to, int width) {
    for (int j = 0; j < width; j += 16) transpose_strip(n - j < 16 ? n - j : 16, K, B + j * ldb, ldb, to + j, width);
}

// Packed weights W (N, K): panels of kNR rows of W, each stored (K, kNR); a last one of up to 16 rows is (K, 16). This
// is the one copy that is kept: linear_backward turns 32 x 32 blocks of it (contiguous, 4 KB) into a panel of W^T.
static inline int panel_width(int64_t N, int64_t first) { return N - first <= 16 ? 16 : kNR; }

// rows: (count, K), rows first .. first + count of W, count <= kNR and a whole panel (or the last).
static void pack_weight_panel(int64_t N, int K, int64_t first, const float* rows, float* packed, float*) {
    const int width = panel_width(N, first);
    const int64_t left = N - first;
    pack_columns(left < width ? static_cast<int>(left) : width, K, rows, K, packed + first * K, width);
}

// row (K) = row r of W.
template <class T>
static void unpack_weight_row(int64_t N, int K, const float* packed, int64_t r, T* row) {
    const int64_t first = r / kNR * kNR;
    const int width = panel_width(N, first);
    const float* from = packed + first * K + (r - first);
    for (int k = 0; k < K; ++k) row[k] = from[int64_t{k} * width];
}

// (count, width) = rows [first, first + count) and columns [i0, i0 + n) of W; first is a multiple of kNR.
static void pack_turned(int64_t N, int K, const float* packed, int64_t first, int count, int i0, int n, float* to,
                        int width) {
    for (int o = 0; o < count; o += kNR) {
        const int from_width = panel_width(N, first + o);
        const int rows = count - o < from_width ? count - o : from_width;
        const float* from = packed + (first + o) * K + int64_t{i0} * from_width;
        for (int j = 0; j < width; j += 16) {
            const int columns = n - j < 16 ? n - j : 16;
            transpose_strip(columns, rows, from + int64_t{j} * from_width, from_width, to + int64_t{o} * width + j,
                            width);
        }
    }
}

static constexpr int kMC = 28 * kMR;  // most rows of A packed at once

// C (M, columns [first, first + N)) += A^T B, A (K, M) lda, B (K, columns) ldb: sums over tokens. The chains run in C;
// blocks of 32 tokens keep the rows being read in the first-level TLB.
// turned: C is stored (columns, M) instead, for B wide and A narrow: then both are still read along their rows.
// scratch: tokens_scratch(M, N) floats.
static int64_t tokens_scratch(int M, int N) { return int64_t{M} * ((N + kNR - 1) / kNR * kNR) + 32 * kNR; }
static void gemm_tokens(int M, int N, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                        int64_t ldc, bool turned, float* scratch) {
    float* c = C;
    int64_t ld = ldc;
    if (turned) {
        ld = (N + kNR - 1) / kNR * kNR;
        c = scratch + 32 * kNR;
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) c[m * ld + n] = C[n * ldc + m];
    }
    for (int k0 = 0; k0 < K; k0 += 32) {
        const int kc = K - k0 < 32 ? K - k0 : 32;
        for (int n0 = 0; n0 < N; n0 += kNR) {
            const int n = N - n0 < kNR ? N - n0 : kNR;
            const float* from = B + k0 * ldb + n0;
            int64_t distance = ldb;
            if (n != kNR && n != 16) {
                for (int k = 0; k < kc; ++k)
                    for (int j = 0; j < kNR; ++j) scratch[k * kNR + j] = j < n ? from[k * ldb + j] : 0.0f;
                from = scratch, distance = kNR;
            }
            panel<true>(M, kc, A + k0 * lda, lda, from, distance, c + n0, ld, n, true);
        }
    }
    if (turned)
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) C[n * ldc + m] = c[m * ld + n];
}
