// Products with bf16 operands and fp32 sums, for processors with AVX512-BF16 or AMX. Two neighbours in k share one
// 32-bit element ("a pair"), so packed bf16 looks like packed fp32 with half of K: the loops are those of gemm.isa.h.
// K is padded to 32 with zeros (one AMX step). What is stored as bf16 is rounded once, when all of K is summed.
//
// Each element of C is again one chain over k: pairs (AVX512-BF16) or steps of 32 (AMX, whose own order within a step
// is fixed), independent of threads, rows and blocks.
#if defined(ORPO_AMX)
// Tiles: 0-3 C (2 x 2 blocks of 16 x 16 fp32), 4 A (16 rows x 32 bf16), 5 B (16 pairs x 16 columns).
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};

// Constant data: GCC's intrinsic names only the first 8 of the 64 bytes that it reads, so stores to a local are
// dropped.
static constexpr TileConfig kTileConfig;

// The tiles' shapes, set for as long as this lives: whoever calls panel_pairs holds one.
struct Tiles {
    Tiles() { _tile_loadconfig(&kTileConfig); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};
#else
struct [[maybe_unused]] Tiles {};
#endif

#if defined(__AVX512BF16__)

static inline int pairs_of(int K) { return (K + 31) / 32 * 16; }

// (a0 b0 a1 b1 ...) as pairs: a in the low halves, b in the high ones.
static inline V pair_up(__m512i a, __m512i b) {
    return {_mm512_castsi512_ps(_mm512_or_si512(a, _mm512_slli_epi32(b, 16)))};
}
static inline __m512i halves(V x) { return _mm512_cvtepu16_epi32(narrow(x)); }
static inline V pair_up(V a, V b) { return pair_up(halves(a), halves(b)); }
// 32 numbers in a row -> 16 pairs.
static inline void store_pairs(float* to, V a, V b) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}

// Row of K numbers -> pairs_of(K) pairs.
static inline void pack_row_pairs(int K, const bf16* from, float* to) {
    int k = 0;
    for (; k + 32 <= K; k += 32) _mm512_storeu_si512(to + k / 2, _mm512_loadu_si512(from + k));
    if (k < K)
        _mm512_storeu_si512(to + k / 2,
                            _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << (K - k)) - 1), from + k));
}
static inline void pack_row_pairs(int K, const float* from, float* to) {
    int k = 0;
    for (; k + 32 <= K; k += 32) store_pairs(to + k / 2, load(from + k), load(from + k + 16));
    if (k < K) {
        const int left = K - k;
        store_pairs(to + k / 2, load_up_to(from + k, left), left > 16 ? load_n(from + k + 16, left - 16) : set1(0.0f));
    }
}
static void pack_rows_pairs(int M, int K, const bf16* A, int64_t lda, float* packed) {
    for (int m = 0; m < M; ++m) pack_row_pairs(K, A + m * lda, packed + int64_t{m} * kALd);
}

// Two rows of 32 numbers -> 32 pairs.
static inline void pair_up_rows(const bf16* row0, const bf16* row1, float* to) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512i x = _mm512_loadu_si512(row0), y = _mm512_loadu_si512(row1);
    // Of every 8 columns: the first and the last 4.
    const __m512i low = _mm512_unpacklo_epi16(x, y), high = _mm512_unpackhi_epi16(x, y);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(low, second, high));
}

// (pairs_of(K), width) from B (K, n) at distance ldb.
static void pack_b_rows_pairs(int n, int K, const bf16* B, int64_t ldb, float* to, int width) {
    const int pairs = pairs_of(K);
    int p = 0;
    if (n == 32)
        for (; 2 * p + 1 < K; ++p) pair_up_rows(B + 2 * p * ldb, B + (2 * p + 1) * ldb, to + int64_t{p} * width);
    for (; p < pairs; ++p)
        for (int j = 0; j < width; j += 16) {
            const int left = n - j;
            const auto row = [&](int k) {
                return k >= K || left <= 0 ? _mm512_setzero_si512()
                       : left >= 16        ? halves(B + k * ldb + j)
                                           : halves_n(B + k * ldb + j, left);
            };
            store(to + int64_t{p} * width + j, pair_up(row(2 * p), row(2 * p + 1)));
        }
}

// `panels` times (pairs_of(K), 32), one after the other, from B (K, 32 panels). Rows that lie far apart are read in
// longer stretches so, and the next ones are asked for: few would be fetched ahead otherwise.
static void pack_panels_pairs(int panels, int K, const bf16* B, int64_t ldb, float* to) {
    static constexpr bf16 kZeros[32] = {};
    const int pairs = pairs_of(K);
    for (int p = 0; p < pairs; ++p) {
        const bf16* const row0 = B + 2 * p * ldb;
        for (int j = 0; j < panels; ++j) {
            const bf16* const x = row0 + j * 32;
            __builtin_prefetch(x + panels * 32);
            __builtin_prefetch(x + panels * 32 + ldb);
            pair_up_rows(2 * p < K ? x : kZeros, 2 * p + 1 < K ? x + ldb : kZeros, to + (int64_t{j} * pairs + p) * 32);
        }
    }
}

// (pairs_of(K), width) from B (n, K) at distance ldb; temp: 16 pairs_of(K) floats.
template <class From>
static void pack_b_columns_pairs(int n, int K, const From* B, int64_t ldb, float* to, int width, float* temp) {
    const int pairs = pairs_of(K);
    for (int j = 0; j < width; j += 16) {
        const int rows = n - j < 0 ? 0 : n - j < 16 ? n - j : 16;
        if (sizeof(From) == 2 && K % 32 == 0 && ldb % 2 == 0) {  // bf16 side by side are pairs already
            transpose_strip(rows, pairs, reinterpret_cast<const float*>(B + j * ldb), ldb / 2, to + j, width);
            continue;
        }
        for (int i = 0; i < rows; ++i) pack_row_pairs(K, B + (j + i) * ldb, temp + int64_t{i} * pairs);
        transpose_strip(rows, pairs, temp, pairs, to + j, width);
    }
}

#if defined(ORPO_AMX)
// (16 kTilesM) x (16 kTilesN) of C in tiles 0-3: begun, added to over any number of stretches of K, and stored. All
// rows of A readable. The barriers: GCC's tile loads and stores do not tell the compiler that they touch memory.
template <int kTilesM, int kTilesN>
static inline void amx_begin(const float* C, int64_t ldc, bool accumulate) {
    __asm__ volatile("" ::: "memory");
    if (accumulate) {
        _tile_loadd(0, C, ldc * 4);
        if (kTilesN == 2) _tile_loadd(1, C + 16, ldc * 4);
        if (kTilesM == 2) _tile_loadd(2, C + 16 * ldc, ldc * 4);
        if (kTilesM == 2 && kTilesN == 2) _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}
// meanwhile() is called once for every 16 pairs: vector instructions run beside the tiles' products.
// kPassing: A does not come again before B does, so it shall not take B's place in L1: a product of a panel of 36 KB
// takes 16 cycles so, 24 otherwise.
// Two tiles hold all operands, though there are four and one block of B is loaded twice: while a core is shared there
// seem to be few registers for a tile to be renamed to, fewer the more tiles are in use. With four operand tiles a
// product takes 68 cycles then, with two 39. Blocks of 1 x 2 take fewer tiles still, and more loads: with a panel as
// above 38 cycles instead of 51 shared, 16.7 instead of 15.9 alone. Linears are made of 2 x 2, all else of 1 x 2.
// Tables: docs/results.
template <int kTilesM, int kTilesN, bool kPassing = false, class Meanwhile>
static inline void amx_steps(int pairs, const float* A, int64_t lda, const float* B, int64_t ldb,
                             const Meanwhile& meanwhile) {
    for (int p = 0; p < pairs; p += 16) {
        _tile_loadd(5, B + p * ldb, ldb * 4);
        if (kPassing)
            _tile_stream_loadd(4, A + p, lda * 4);
        else
            _tile_loadd(4, A + p, lda * 4);
        _tile_dpbf16ps(0, 4, 5);
        if (kTilesN == 2) {
            _tile_loadd(5, B + p * ldb + 16, ldb * 4);
            _tile_dpbf16ps(1, 4, 5);
        }
        if (kTilesM == 2) {
            if (kPassing)
                _tile_stream_loadd(4, A + 16 * lda + p, lda * 4);
            else
                _tile_loadd(4, A + 16 * lda + p, lda * 4);
            if (kTilesN == 2) {
                _tile_dpbf16ps(3, 4, 5);
                _tile_loadd(5, B + p * ldb, ldb * 4);
            }
            _tile_dpbf16ps(2, 4, 5);
        }
        meanwhile();
    }
}
template <int kTilesM, int kTilesN>
static inline void amx_end(float* C, int64_t ldc) {
    _tile_stored(0, C, ldc * 4);
    if (kTilesN == 2) _tile_stored(1, C + 16, ldc * 4);
    if (kTilesM == 2) _tile_stored(2, C + 16 * ldc, ldc * 4);
    if (kTilesM == 2 && kTilesN == 2) _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
    __asm__ volatile("" ::: "memory");
}

// A block of sums, (kRows, 32), that grows by stretches of K: += A (kRows, K; pairs) B (K, 32; pairs).
struct Sums {
    static constexpr int kRows = 16;
    float* C;
    explicit Sums(float* C, bool accumulate = false) : C(C) { amx_begin<1, 2>(C, kNR, accumulate); }
    template <bool kPassing, class Meanwhile>
    void add(int pairs, const float* A, int64_t lda, const float* B, const Meanwhile& meanwhile) {
        __asm__ volatile("" ::: "memory");
        amx_steps<1, 2, kPassing>(pairs, A, lda, B, kNR, meanwhile);
    }
    void end() { amx_end<1, 2>(C, kNR); }
};

// next_c: the block of C that will be written next, `next_rows` rows of it at distance ldc: its lines are asked for
// while this block is being multiplied, for a store that misses waits for memory.
template <int kTilesN, bool kPassing>
static inline void amx_block(int pairs, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc,
                             bool accumulate, const float* next_c, int next_rows) {
    amx_begin<1, kTilesN>(C, ldc, accumulate);
    int asked = 0;
    amx_steps<1, kTilesN, kPassing>(pairs, A, lda, B, ldb, [&] {
        for (const int until = asked + 2; asked < until && asked < next_rows; ++asked) {
            __builtin_prefetch(next_c + asked * ldc, 1);
            if (kTilesN == 2) __builtin_prefetch(next_c + asked * ldc + 16, 1);
        }
    });
    amx_end<1, kTilesN>(C, ldc);
}

// As panel<false, true>; A, at distance lda, must be readable up to a multiple of 16 rows. The caller holds Tiles.
template <bool kPassing = false>
[[gnu::noinline]] static void panel_pairs(int M, int pairs, const float* A, int64_t lda, const float* B, int64_t ldb,
                                          float* C, int64_t ldc, int n, bool accumulate) {
    const int width = n <= 16 ? 16 : 32;
    alignas(64) float edge[16 * 32];
    const auto block = width == 16 ? amx_block<1, kPassing> : amx_block<2, kPassing>;
    for (int m = 0; m < M; m += 16) {
        const int rows = M - m < 16 ? M - m : 16;
        const bool whole = rows == 16 && n == width;
        float* c = whole ? C + m * ldc : edge;
        const int64_t ld = whole ? ldc : 32;
        const int next_rows = !whole ? 0 : M - m - 16 < 16 ? M - m - 16 : 16;
        if (!whole && accumulate)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < n; ++j) edge[i * 32 + j] = C[(m + i) * ldc + j];
        block(pairs, A + m * lda, lda, B, ldb, c, ld, accumulate, c + 16 * ld, next_rows);
        if (!whole)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < n; ++j) C[(m + i) * ldc + j] = edge[i * 32 + j];
    }
}
#else
template <bool kPassing = false>
static void panel_pairs(int M, int pairs, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                        int64_t ldc, int n, bool accumulate, const Ahead& ahead = {}) {
    panel<false, true>(M, pairs, A, lda, B, ldb, C, ldc, n, accumulate, ahead);
}

struct Sums {
    static constexpr int kRows = 32;
    float* C;
    bool begun;
    explicit Sums(float* C, bool accumulate = false) : C(C), begun(accumulate) {}
    template <bool kPassing, class Meanwhile>
    void add(int pairs, const float* A, int64_t lda, const float* B, const Meanwhile& meanwhile) {
        panel_pairs(kRows, pairs, A, lda, B, kNR, C, kNR, kNR, begun);
        begun = true;
        for (int p = 0; p < pairs; p += 16) meanwhile();
    }
    void end() {}
};
#endif

// C (32, 32) = (+) A (32, K; pairs) B (K, 32; pairs); meanwhile() is called kNR / Sums::kRows times for every 16 pairs.
// kPassing as in amx_steps().
template <bool kPassing, class Meanwhile>
static inline void block_pairs(int pairs, const float* A, int64_t lda, const float* B, float* C, bool accumulate,
                               const Meanwhile& meanwhile) {
    for (int r = 0; r < kNR; r += Sums::kRows) {
        Sums sums(C + r * kNR, accumulate);
        sums.add<kPassing>(pairs, A + r * lda, lda, B, meanwhile);
        sums.end();
    }
}

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

// row (K) = row r of W.
static inline void half_to(uint32_t bits, bf16* to) { to->bits = static_cast<uint16_t>(bits); }
static inline void half_to(uint32_t bits, float* to) { bits <<= 16, __builtin_memcpy(to, &bits, 4); }
template <class T>
static void unpack_weight_row_bf16(int64_t N, int K, const float* packed, int64_t r, T* row) {
    const int64_t first = r / kNR * kNR;
    const int width = panel_width(N, first);
    const float* from = packed + first * pairs_of(K) + (r - first);
    for (int k = 0; k < K; ++k) {
        uint32_t bits;
        __builtin_memcpy(&bits, from + int64_t{k / 2} * width, 4);
        half_to(k % 2 ? bits >> 16 : bits & 0xFFFF, row + k);
    }
}

// to (columns, pairs_of(rows)) at distance ldt: columns of x (rows, columns) in pairs over rows, zero-padded to 32
// rows.
static void pack_turned_pairs(int rows, int columns, const bf16* x, int64_t ld, float* to, int64_t ldt) {
    alignas(64) float strip[16 * 16];
    for (int p0 = 0; p0 < pairs_of(rows); p0 += 16)
        for (int d = 0; d < columns; d += 16) {
            const int left = columns - d < 16 ? columns - d : 16;
            const auto row = [&](int r) {
                return r >= rows    ? _mm512_setzero_si512()
                       : left == 16 ? halves(x + r * ld + d)
                                    : halves_n(x + r * ld + d, left);
            };
            for (int p = 0; p < 16; ++p) store(strip + 16 * p, pair_up(row(2 * (p0 + p)), row(2 * (p0 + p) + 1)));
            transpose_strip(16, left, strip, 16, to + d * ldt + p0, ldt);
        }
}

// As gemm_tokens(): blocks of kTokens16 tokens while the sums wait in C. A (K, M) is turned into rows of pairs. Of B,
// kTokenPanels panels are packed at a time: stretches of a row that are long enough to be fetched ahead.
static constexpr int kTokens16 = 256, kTokenPanels = 4;
static int64_t tokens_scratch_bf16(int M, int N) {
    return int64_t{M + 32} * kALd + kTokenPanels * kTokens16 / 2 * kNR +
           int64_t{M + 16} * ((N + kNR - 1) / kNR * kNR + 16);
}
static void gemm_tokens_bf16(int M, int N, int K, const bf16* A, int64_t lda, const bf16* B, int64_t ldb, float* C,
                             int64_t ldc, bool turned, float* scratch) {
    const Tiles tiles{};
    float* const a = scratch;
    float* const b = a + int64_t{M + 32} * kALd;
    float* c = C;
    int64_t ld = ldc;
    if (turned) {  // (M, N)
        c = b + kTokenPanels * kTokens16 / 2 * kNR;
        ld = (N + kNR - 1) / kNR * kNR + 16;
        for (int n = 0; n < N; n += 16) transpose_strip(N - n < 16 ? N - n : 16, M, C + n * ldc, ldc, c + n, ld);
    }
    for (int k0 = 0; k0 < K; k0 += kTokens16) {
        const int kc = K - k0 < kTokens16 ? K - k0 : kTokens16, pairs = pairs_of(kc);
        pack_turned_pairs(kc, M, A + k0 * lda, lda, a, kALd);
        for (int n0 = 0; n0 < N;) {
            const int whole = (N - n0) / kNR, panels = whole > kTokenPanels ? kTokenPanels : whole;
            const bf16* const from = B + k0 * ldb + n0;
            if (panels > 0)
                pack_panels_pairs(panels, kc, from, ldb, b);
            else
                pack_b_rows_pairs(N - n0, kc, from, ldb, b, N - n0 <= 16 ? 16 : kNR);
            for (int j = 0; j < (panels > 0 ? panels : 1); ++j, n0 += kNR) {
                const int n = N - n0 < kNR ? N - n0 : kNR, width = n <= 16 ? 16 : kNR;
                panel_pairs(M, pairs, a, kALd, b + int64_t{j} * pairs * kNR, width, c + n0, ld, n, true);
            }
        }
    }
    if (turned)
        for (int n = 0; n < N; n += 16) {
            const int left = N - n < 16 ? N - n : 16;
            for (int m = 0; m < M; m += 16) {
                alignas(64) float block[16 * 16];
                transpose_strip(M - m < 16 ? M - m : 16, left, c + m * ld + n, ld, block, 16);
                for (int j = 0; j < left; ++j) store_up_to(C + (n + j) * ldc + m, load(block + 16 * j), M - m);
            }
        }
}

#endif
