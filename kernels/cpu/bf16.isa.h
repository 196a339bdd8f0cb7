// Products with bf16 operands and fp32 sums, for processors with AVX512-BF16 or AMX. Activations and adapters stay fp32
// in memory; they are rounded on the way into the packed A block and the panels of B. Two neighbours in k share one
// 32-bit element, so packed bf16 looks like packed fp32 with half of K: the loops are those of gemm.isa.h.
// K is padded to 32 with zeros (one AMX step).
//
// Each element of C is again one chain over k: pairs (AVX512-BF16) or steps of 32 (AMX, whose own order within a step
// is fixed), independent of threads, rows and blocks.
#if defined(ORPO_AMX)
// Tiles: 0-3 C (2 x 2 blocks of 16 x 16 fp32), 4-5 A (16 rows x 32 bf16), 6-7 B (16 pairs x 16 columns).
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles' shapes, set for as long as this lives: whoever calls panel_pairs holds one.
struct Tiles {
    Tiles() {
        const TileConfig config;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};
#else
struct [[maybe_unused]] Tiles {};
#endif

#if defined(__AVX512BF16__)

static inline int pairs_of(int K) { return (K + 31) / 32 * 16; }

// 16 floats -> 16 bf16 in the low halves of 32-bit lanes.
static inline __m512i low_halves(V x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.v)); }
// (a0 b0 a1 b1 ...) as pairs: a in the low halves, b in the high ones.
static inline V pair_up(V a, V b) {
    return {_mm512_castsi512_ps(_mm512_or_si512(low_halves(a), _mm512_slli_epi32(low_halves(b), 16)))};
}
// 32 floats in a row -> 16 pairs.
static inline void store_pairs(float* to, V a, V b) {
    _mm512_storeu_ps(to, _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(b.v, a.v)));
}

// Row of K floats times scale -> pairs_of(K) pairs.
static inline void pack_row_pairs(int K, V scale, const float* from, float* to) {
    int k = 0;
    for (; k + 32 <= K; k += 32) store_pairs(to + k / 2, mul(scale, load(from + k)), mul(scale, load(from + k + 16)));
    if (k < K) {
        const int left = K - k;
        store_pairs(to + k / 2, mul(scale, left >= 16 ? load(from + k) : load_n(from + k, left)),
                    left > 16 ? mul(scale, load_n(from + k + 16, left - 16)) : set1(0.0f));
    }
}
static void pack_rows_pairs(int M, int K, float scale, const float* A, int64_t lda, float* packed) {
    for (int m = 0; m < M; ++m) pack_row_pairs(K, set1(scale), A + m * lda, packed + int64_t{m} * kALd);
}

// (pairs_of(K), width) from B (K, n) at distance ldb.
static void pack_b_rows_pairs(int n, int K, const float* B, int64_t ldb, float* to, int width) {
    const int pairs = pairs_of(K);
    for (int p = 0; p < pairs; ++p)
        for (int j = 0; j < width; j += 16) {
            const int left = n - j;
            const auto row = [&](int k) {
                return k >= K || left <= 0 ? set1(0.0f)
                       : left >= 16        ? load(B + k * ldb + j)
                                           : load_n(B + k * ldb + j, left);
            };
            store(to + int64_t{p} * width + j, pair_up(row(2 * p), row(2 * p + 1)));
        }
}

// (pairs_of(K), width) from B (n, K) at distance ldb; temp: 16 pairs_of(K) floats.
static void pack_b_columns_pairs(int n, int K, const float* B, int64_t ldb, float* to, int width, float* temp) {
    const int pairs = pairs_of(K);
    for (int j = 0; j < width; j += 16) {
        const int rows = n - j < 16 ? n - j : 16;
        for (int i = 0; i < rows; ++i) pack_row_pairs(K, set1(1.0f), B + (j + i) * ldb, temp + int64_t{i} * pairs);
        transpose_strip(rows > 0 ? rows : 0, pairs, temp, pairs, to + j, width);
    }
}

#if defined(ORPO_AMX)
// (16 kTilesM) x (16 kTilesN) of C; A: kALd apart, all rows readable. The barriers: GCC's tile loads and stores do not
// tell the compiler that they touch memory. next_c: the block of C that will be written next, `next_rows` rows of it at
// distance ldc: its lines are asked for while this block is being multiplied, for a store that misses waits for memory.
template <int kTilesM, int kTilesN>
static inline void amx_block(int pairs, const float* A, const float* B, int64_t ldb, float* C, int64_t ldc,
                             bool accumulate, const float* next_c, int next_rows) {
    const int64_t a_step = kALd * 4, b_step = ldb * 4, c_step = ldc * 4;
    __asm__ volatile("" ::: "memory");
    if (accumulate) {
        _tile_loadd(0, C, c_step);
        if (kTilesN == 2) _tile_loadd(1, C + 16, c_step);
        if (kTilesM == 2) _tile_loadd(2, C + 16 * ldc, c_step);
        if (kTilesM == 2 && kTilesN == 2) _tile_loadd(3, C + 16 * ldc + 16, c_step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    int asked = 0;
    for (int p = 0; p < pairs; p += 16) {
        for (const int until = asked + 2; asked < until && asked < next_rows; ++asked) {
            __builtin_prefetch(next_c + asked * ldc, 1);
            if (kTilesN == 2) __builtin_prefetch(next_c + asked * ldc + 16, 1);
        }
        _tile_loadd(6, B + p * ldb, b_step);
        _tile_loadd(4, A + p, a_step);
        _tile_dpbf16ps(0, 4, 6);
        if (kTilesM == 2) {
            _tile_loadd(5, A + 16 * kALd + p, a_step);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (kTilesN == 2) {
            _tile_loadd(7, B + p * ldb + 16, b_step);
            _tile_dpbf16ps(1, 4, 7);
            if (kTilesM == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, C, c_step);
    if (kTilesN == 2) _tile_stored(1, C + 16, c_step);
    if (kTilesM == 2) _tile_stored(2, C + 16 * ldc, c_step);
    if (kTilesM == 2 && kTilesN == 2) _tile_stored(3, C + 16 * ldc + 16, c_step);
    __asm__ volatile("" ::: "memory");
}

// As panel<false, true>; A must have 31 readable rows behind its last one. The caller holds Tiles.
[[gnu::noinline]] static void panel_pairs(int M, int pairs, const float* A, const float* B, int64_t ldb, float* C,
                                          int64_t ldc, int n, bool accumulate, const Ahead& ahead = {}) {
    const int width = n <= 16 ? 16 : 32;
    alignas(64) float edge[32 * 32];
    for (int m = 0; m < M; m += 32) {
        const int rows = M - m < 32 ? M - m : 32;
        if (ahead.from) ahead.fetch(m / 32, (M + 31) / 32);
        const bool whole = (rows == 32 || rows == 16) && n == width;
        float* c = whole ? C + m * ldc : edge;
        const int64_t ld = whole ? ldc : 32;
        const int next_rows = !whole ? 0 : M - m - 32 < 32 ? M - m - 32 : 32;
        if (!whole && accumulate)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < n; ++j) edge[i * 32 + j] = C[(m + i) * ldc + j];
        const auto block = rows > 16 ? (width == 16 ? amx_block<2, 1> : amx_block<2, 2>)
                                     : (width == 16 ? amx_block<1, 1> : amx_block<1, 2>);
        block(pairs, A + int64_t{m} * kALd, B, ldb, c, ld, accumulate, c + 32 * ld, next_rows);
        if (!whole)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < n; ++j) C[(m + i) * ldc + j] = edge[i * 32 + j];
    }
}
#else
static void panel_pairs(int M, int pairs, const float* A, const float* B, int64_t ldb, float* C, int64_t ldc, int n,
                        bool accumulate, const Ahead& ahead = {}) {
    panel<false, true>(M, pairs, A, 0, B, ldb, C, ldc, n, accumulate, ahead);
}
#endif

// Packed weights in bf16: as in gemm.isa.h, panels of kNR rows of W (N, K), each (pairs_of(K), kNR). rows: (count, K)
// fp32; temp: 16 pairs_of(K) floats.
static void pack_weight_panel_bf16(int64_t N, int K, int64_t first, const float* rows, float* packed, float* temp) {
    const int width = panel_width(N, first);
    const int64_t left = N - first;
    pack_b_columns_pairs(left < width ? static_cast<int>(left) : width, K, rows, K, packed + first * pairs_of(K), width,
                         temp);
}
// The same for W^T, (K, N): panels of kNR columns of W, each (pairs_of(N), kNR). Rows first .. first + count of W,
// first and (unless they are the last) count even.
static void pack_weight_turned_bf16(int64_t N, int K, int64_t first, int count, const float* rows, float* packed) {
    const int64_t pairs = (N + 31) / 32 * 16;
    for (int i0 = 0; i0 < K; i0 += kNR) {
        const int width = panel_width(K, i0), n = K - i0 < width ? K - i0 : width;
        float* to = packed + i0 * pairs + first / 2 * width;
        for (int k = 0; k < count; k += 2)
            for (int j = 0; j < width; j += 16) {
                const int left = n - j;
                const auto row = [&](int r) {
                    return r >= count || left <= 0 ? set1(0.0f)
                           : left >= 16            ? load(rows + int64_t{r} * K + i0 + j)
                                                   : load_n(rows + int64_t{r} * K + i0 + j, left);
                };
                store(to + int64_t{k / 2} * width + j, pair_up(row(k), row(k + 1)));
            }
        if (first + count == N)  // the padding of the last step
            for (int64_t p = (N + 1) / 2; p < pairs; ++p)
                for (int j = 0; j < width; j += 16) store(packed + (i0 * pairs + p * width) + j, set1(0.0f));
    }
}

static void unpack_weight_row_bf16(int64_t N, int K, const float* packed, int64_t r, float scale, float* row) {
    const int64_t first = r / kNR * kNR;
    const int width = panel_width(N, first);
    const float* from = packed + first * pairs_of(K) + (r - first);
    for (int k = 0; k < K; ++k) {
        uint32_t bits;
        __builtin_memcpy(&bits, from + int64_t{k / 2} * width, 4);
        bits = k % 2 ? bits & 0xFFFF0000u : bits << 16;
        float value;
        __builtin_memcpy(&value, &bits, 4);
        row[k] = scale * value;
    }
}

// A product over few features, such as a LoRA B: C is most of its memory traffic. B is packed for as many columns as
// fit, then C is walked row block by row block, along its rows. As gemm_bf16() with g.K <= kNarrow, B not packed
// before.
static constexpr int kNarrow = 64;
static void gemm_narrow_bf16(const GemmShare& g, float* scratch) {
    float* const a = scratch;
    float* const b = a + int64_t{kMC + 32} * kALd;
    float* const temp = b + int64_t{kKC} * kNR;
    const int pairs = pairs_of(g.K), most = kKC / pairs * kNR;
    for (int c0 = 0; c0 < g.N; c0 += most) {
        const int columns = g.N - c0 < most ? g.N - c0 : most;
        for (int n0 = 0; n0 < columns; n0 += kNR) {
            const int n = columns - n0 < kNR ? columns - n0 : kNR, width = n <= 16 ? 16 : kNR;
            const int64_t at = g.first + c0 + n0;
            if (g.form == BForm::kRows)
                pack_b_rows_pairs(n, g.K, g.B + at, g.ldb, b + int64_t{n0} * pairs, width);
            else
                pack_b_columns_pairs(n, g.K, g.B + at * g.ldb, g.ldb, b + int64_t{n0} * pairs, width, temp);
        }
        for (int m0 = 0; m0 < g.M; m0 += 32) {
            const int rows = g.M - m0 < 32 ? g.M - m0 : 32;
            pack_rows_pairs(rows, g.K, g.scale, g.A + m0 * g.lda, g.lda, a);
            for (int n0 = 0; n0 < columns; n0 += kNR) {
                const int n = columns - n0 < kNR ? columns - n0 : kNR;
                panel_pairs(rows, pairs, a, b + int64_t{n0} * pairs, n <= 16 ? 16 : kNR, g.C + m0 * g.ldc + c0 + n0,
                            g.ldc, n, g.accumulate);
            }
        }
    }
}

// As gemm(); kPacked and kPackedTurned: g.B is packed for the direction that is asked for (for kPackedTurned: W^T).
static void gemm_bf16(const GemmShare& g, float* scratch) {
    const Tiles tiles{};
    const bool packed = g.form == BForm::kPacked || g.form == BForm::kPackedTurned;
    if (!packed && g.K <= kNarrow) return gemm_narrow_bf16(g, scratch);
    float* const a = scratch;
    float* const b = a + int64_t{kMC + 32} * kALd;
    float* const temp = b + int64_t{kKC} * kNR;
    const int pairs_all = pairs_of(g.K), k_blocks = (pairs_all + kKC - 1) / kKC;
    const int p_step = ((pairs_all + k_blocks - 1) / k_blocks + 15) / 16 * 16;
    const int m_blocks = (g.M + kMC - 1) / kMC;
    for (int block = 0, m0 = 0; block < m_blocks; ++block) {
        const int mc = (g.M - m0 + m_blocks - block - 1) / (m_blocks - block);
        for (int p0 = 0; p0 < pairs_all; p0 += p_step) {
            const int pairs = pairs_all - p0 < p_step ? pairs_all - p0 : p_step, k0 = 2 * p0;
            const int kc = g.K - k0 < 2 * pairs ? g.K - k0 : 2 * pairs;
            pack_rows_pairs(mc, kc, g.scale, g.A + m0 * g.lda + k0, g.lda, a);
            for (int n0 = 0; n0 < g.N; n0 += kNR) {
                const int n = g.N - n0 < kNR ? g.N - n0 : kNR;
                int width = n <= 16 ? 16 : kNR;
                const float* from = b;
                if (packed) {
                    width = panel_width(g.weight_rows, g.first + n0);
                    from = g.B + (g.first + n0) * pairs_all + int64_t{p0} * width;
                } else if (g.form == BForm::kRows) {
                    pack_b_rows_pairs(n, kc, g.B + k0 * g.ldb + g.first + n0, g.ldb, b, width);
                } else {
                    pack_b_columns_pairs(n, kc, g.B + (g.first + n0) * g.ldb + k0, g.ldb, b, width, temp);
                }
                Ahead ahead;
                if (packed) {  // the next panel, or the first one of the next block of k
                    const bool last = n0 + kNR >= g.N;
                    const int n1 = last ? 0 : n0 + kNR, p1 = last ? p0 + p_step : p0;
                    const int next = panel_width(g.weight_rows, g.first + n1);
                    const int count = pairs_all - p1 < p_step ? pairs_all - p1 : p_step;
                    if (count > 0)
                        ahead = {g.B + (g.first + n1) * pairs_all + int64_t{p1} * next, 1, count * next / 16, 0};
                }
                panel_pairs(mc, pairs, a, from, width, g.C + m0 * g.ldc + n0, g.ldc, n, g.accumulate || p0 > 0, ahead);
            }
        }
        m0 += mc;
    }
}
static int64_t gemm_scratch_bf16() { return int64_t{kMC + 32} * kALd + int64_t{kKC} * kNR + 16 * int64_t{kKC + 16}; }

// As gemm_tokens(): blocks of kTokens16 tokens, whose rows are read along, while the sums wait in C. A (K, M) is turned
// and rounded into rows of pairs.
static constexpr int kTokens16 = 64;
static int64_t tokens_scratch_bf16(int M, int N) {
    return int64_t{M + 32} * kALd + kTokens16 / 2 * kNR + int64_t{M} * ((N + kNR - 1) / kNR * kNR + 16);
}
static void gemm_tokens_bf16(int M, int N, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                             int64_t ldc, bool turned, float* scratch) {
    const Tiles tiles{};
    float* const a = scratch;
    float* const b = a + int64_t{M + 32} * kALd;
    float* c = C;
    int64_t ld = ldc;
    if (turned) {
        c = b + kTokens16 / 2 * kNR;
        ld = (N + kNR - 1) / kNR * kNR + 16;
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) c[m * ld + n] = C[n * ldc + m];
    }
    for (int k0 = 0; k0 < K; k0 += kTokens16) {
        const int kc = K - k0 < kTokens16 ? K - k0 : kTokens16, pairs = pairs_of(kc);
        for (int m = 0; m < M; m += 16) {  // pairs of tokens as columns: turn (2 tokens) x 16 channels
            const int channels = M - m < 16 ? M - m : 16;
            for (int p = 0; p < pairs; ++p) {
                const auto row = [&](int k) {
                    return k >= kc          ? set1(0.0f)
                           : channels == 16 ? load(A + (k0 + k) * lda + m)
                                            : load_n(A + (k0 + k) * lda + m, channels);
                };
                float lanes[16];
                store(lanes, pair_up(row(2 * p), row(2 * p + 1)));
                for (int i = 0; i < channels; ++i) a[int64_t{m + i} * kALd + p] = lanes[i];
            }
        }
        for (int n0 = 0; n0 < N; n0 += kNR) {
            const int n = N - n0 < kNR ? N - n0 : kNR, width = n <= 16 ? 16 : kNR;
            pack_b_rows_pairs(n, kc, B + k0 * ldb + n0, ldb, b, width);
            panel_pairs(M, pairs, a, b, width, c + n0, ld, n, true);
        }
    }
    if (turned)
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) C[n * ldc + m] = c[m * ld + n];
}

#endif
