// product.isa.h with bf16 operands: C is rounded to Out once, when all of K and the low-rank terms are summed.
#if defined(__AVX512BF16__)

// The low-rank terms of a panel of columns: packed S of every row and packed B.
struct LowPanel {
    int terms = 0;
    int units[kMostAdded];
    const float *a[kMostAdded], *b[kMostAdded];
};

// A block of sums (rows, width) becomes rows of C, n columns: C = scale sums (+ C).
template <class Out>
static inline void finish_rows(int rows, int n, int width, float scale, const float* sums, Out* C, int64_t ldc,
                               bool accumulate) {
    for (int i = 0; i < rows; ++i, sums += width, C += ldc)
        for (int j = 0; j < n; j += 16) {
            const int left = n - j;
            const V x = mul(set1(scale), load(sums + j));
            store_up_to(C + j, accumulate ? add(load_up_to(C + j, left), x) : x, left);
        }
}

#if defined(ORPO_AMX)
static constexpr int kGroup = 32;  // rows of a block

// Rounding a block waits for its products, and the next block's products for its stores: it is done at once, between
// two blocks (spread over the next block's steps it takes longer, for tile loads wait for stores before them).
template <int kTilesM, int kTilesN, class Ask>
static inline void sum_block(int pairs, const float* a, int64_t lda, const float* b, int width, const float* before,
                             const LowPanel& low, int64_t row, float* block, const Ask& ask) {
    amx_begin<kTilesM, kTilesN>(before, width, before);
    amx_steps<kTilesM, kTilesN>(pairs, a + row * lda, lda, b, width, ask);
    for (int t = 0; t < low.terms; ++t)
        amx_steps<kTilesM, kTilesN>(low.units[t], low.a[t] + row * kALd, kALd, low.b[t], width, ask);
    amx_end<kTilesM, kTilesN>(block, width);
}

// The last `pairs` of K for all M rows; sums (M rounded up to 16, width): the k before, null: none.
template <class Out>
static void finish_panel(int M, int pairs, const float* a, int64_t lda, const float* b, int width, const float* sums,
                         float scale, Out* C, int64_t ldc, int n, bool accumulate, const Ahead& ahead = {},
                         const LowPanel& low = {}) {
    alignas(64) float block[kGroup * 32];
    // What the next panel needs of W: an even share each step.
    const float* W = ahead.from;
    int lines = ahead.from ? ahead.chunks * ahead.lines : 0;
    const int each = lines / ((M + kGroup - 1) / kGroup * (pairs / 16)) + 1;
    const auto ask = [&] {
        for (int i = 0; i < each && lines > 0; ++i, --lines, W += 16) __builtin_prefetch(W, 0, 2);
    };
    for (int m = 0; m < M; m += kGroup) {
        const int rows = M - m < kGroup ? M - m : kGroup;
        for (int i = 0; i < rows; ++i) __builtin_prefetch(C + (m + i) * ldc, 1);
        const auto run = rows > 16 ? (width == 16 ? sum_block<2, 1, decltype(ask)> : sum_block<2, 2, decltype(ask)>)
                                   : (width == 16 ? sum_block<1, 1, decltype(ask)> : sum_block<1, 2, decltype(ask)>);
        run(pairs, a, lda, b, width, sums ? sums + int64_t{m} * width : nullptr, low, m, block, ask);
        finish_rows(rows, n, width, scale, block, C + m * ldc, ldc, accumulate);
    }
}
#else
static constexpr int kGroup = 2 * kMR;

// As above; A at distance kALd.
template <class Out>
static void finish_panel(int M, int pairs, const float* a, int64_t, const float* b, int width, const float* sums,
                         float scale, Out* C, int64_t ldc, int n, bool accumulate, const Ahead& ahead = {},
                         const LowPanel& low = {}) {
    alignas(64) float block[kGroup * 32];
    for (int m = 0; m < M; m += kGroup) {
        const int rows = M - m < kGroup ? M - m : kGroup;
        if (ahead.from) ahead.fetch(m / kGroup, (M + kGroup - 1) / kGroup);
        if (sums) __builtin_memcpy(block, sums + int64_t{m} * width, sizeof(float) * static_cast<size_t>(rows * width));
        panel_pairs(rows, pairs, a + int64_t{m} * kALd, kALd, b, width, block, width, width, sums);
        for (int t = 0; t < low.terms; ++t)
            panel_pairs(rows, low.units[t], low.a[t] + int64_t{m} * kALd, kALd, low.b[t], width, block, width, width,
                        true);
        finish_rows(rows, n, width, scale, block, C + m * ldc, ldc, accumulate);
    }
}
#endif

// A product over few features, such as a LoRA B: C is most of its memory traffic. B is packed for as many columns as
// fit, then C is walked row block by row block, along its rows. As gemm_bf16() with g.K <= kNarrow, B not packed
// before.
static constexpr int kNarrow = 64;
template <class Out>
static void gemm_narrow_bf16(const GemmShare<bf16, Out>& g, float* scratch) {
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
        for (int m0 = 0; m0 < g.M; m0 += kGroup) {
            const int rows = g.M - m0 < kGroup ? g.M - m0 : kGroup;
            pack_rows_pairs(rows, g.K, g.A + m0 * g.lda, g.lda, a);
            for (int n0 = 0; n0 < columns; n0 += kNR) {
                const int n = columns - n0 < kNR ? columns - n0 : kNR;
                finish_panel(rows, pairs, a, kALd, b + int64_t{n0} * pairs, n <= 16 ? 16 : kNR, nullptr, g.scale,
                             g.C + m0 * g.ldc + c0 + n0, g.ldc, n, g.accumulate);
            }
        }
    }
}

// Rows of A already lie as pairs where they start and end with whole ones: tiles are read from them. A last few rows
// that fill no tile are packed as everything else, for nothing behind A may be read.
template <class Out>
static inline bool rows_in_place(const GemmShare<bf16, Out>& g) {
#if defined(ORPO_AMX)
    return g.K % 32 == 0 && g.lda % 2 == 0 && reinterpret_cast<uintptr_t>(g.A) % 4 == 0;
#else
    return false;
#endif
}

// As gemm().
// Where K takes several blocks, the sums of kSumColumns columns wait in scratch.
static constexpr int kSumColumns = 640;
static int64_t gemm_scratch_bf16() {
    return 2 * (int64_t{kMC + 32} * kALd + int64_t{kKC} * kNR) + 16 * int64_t{kKC + 16} +
           int64_t{kMC + 32} * kSumColumns;
}
template <class Out>
static void gemm_bf16(const GemmShare<bf16, Out>& g, float* scratch) {
    const Tiles tiles{};
    const bool packed = g.form == BForm::kPacked;
    if (!packed && g.K <= kNarrow) return gemm_narrow_bf16(g, scratch);
    float* const a = scratch;
    float* const b = a + int64_t{kMC + 32} * kALd;
    float* const temp = b + int64_t{kKC} * kNR;
    float* const low_a = temp + 16 * int64_t{kKC + 16};
    float* const low_b = low_a + int64_t{kMC + 32} * kALd;
    float* const sums = low_b + int64_t{kKC} * kNR;
    const int pairs_all = pairs_of(g.K), k_blocks = (pairs_all + kKC - 1) / kKC;
    const int p_step = ((pairs_all + k_blocks - 1) / k_blocks + 15) / 16 * 16;
    const bool readable = rows_in_place(g);
    const int m_blocks = (g.M + kMC - 1) / kMC, c_step = k_blocks == 1 ? g.N : kSumColumns;
    for (int block = 0, m0 = 0; block < m_blocks; ++block) {
        int mc = (g.M - m0 + m_blocks - block - 1) / (m_blocks - block);
        if (block + 1 < m_blocks) mc = (mc + 15) / 16 * 16;
        const int rows = (mc + 15) / 16 * 16, in_place = readable ? mc / 16 * 16 : 0;
        pack_low_rows(g, g.added_row + m0, mc, low_a);
        for (int c0 = 0; c0 < g.N; c0 += c_step) {
            const int c1 = g.N - c0 < c_step ? g.N : c0 + c_step;
            for (int p0 = 0; p0 < pairs_all; p0 += p_step) {
                const int pairs = pairs_all - p0 < p_step ? pairs_all - p0 : p_step, k0 = 2 * p0;
                const int kc = g.K - k0 < 2 * pairs ? g.K - k0 : 2 * pairs;
                const bf16* const A = g.A + m0 * g.lda + k0;
                pack_rows_pairs(mc - in_place, kc, A + in_place * g.lda, g.lda, a);
                for (int n0 = c0; n0 < c1; n0 += kNR) {
                    const int n = c1 - n0 < kNR ? c1 - n0 : kNR;
                    int width = n <= 16 ? 16 : kNR;
                    const float* from = b;
                    if (packed) {
                        width = panel_width(g.weight_rows, g.first + n0);
                        from = g.W + (g.first + n0) * pairs_all + int64_t{p0} * width;
                    } else if (g.form == BForm::kRows) {
                        pack_b_rows_pairs(n, kc, g.B + k0 * g.ldb + g.first + n0, g.ldb, b, width);
                    } else {
                        pack_b_columns_pairs(n, kc, g.B + (g.first + n0) * g.ldb + k0, g.ldb, b, width, temp);
                    }
                    Ahead ahead;
                    if (packed) {  // the next panel, or the first one of the next block of k
                        const bool last = n0 + kNR >= c1;
                        const int n1 = last ? c0 : n0 + kNR, p1 = last ? p0 + p_step : p0;
                        const int next = panel_width(g.weight_rows, g.first + n1);
                        const int count = pairs_all - p1 < p_step ? pairs_all - p1 : p_step;
                        if (count > 0)
                            ahead = {g.W + (g.first + n1) * pairs_all + int64_t{p1} * next, 1, count * next / 16, 0};
                    }
                    float* const before = sums + int64_t{n0 - c0} * rows;  // (rows, width)
                    if (p0 + pairs < pairs_all) {
                        if (in_place)
                            panel_pairs(in_place, pairs, reinterpret_cast<const float*>(A), g.lda / 2, from, width,
                                        before, width, width, p0 > 0, ahead);
                        if (in_place < mc)
                            panel_pairs(kGroup == 32 ? rows - in_place : mc - in_place, pairs, a, kALd, from, width,
                                        before + in_place * width, width, width, p0 > 0, ahead);
                        continue;
                    }
                    LowPanel low;
                    const float* s = low_a;
                    float* to = low_b;
                    for (int i = 0; i < g.added_n; s += rank_units(g.added[i++])) {
                        if (!pack_low_panel(g.added[i], g.added_turned, g.first + n0, n, to, width)) continue;
                        low.units[low.terms] = rank_units(g.added[i]), low.a[low.terms] = s, low.b[low.terms++] = to;
                        to += rank_units(g.added[i]) * width;
                    }
                    const float* sum = p0 > 0 ? before : nullptr;
                    Out* C = g.C + m0 * g.ldc + n0;
                    if (in_place)
                        finish_panel(in_place, pairs, reinterpret_cast<const float*>(A), g.lda / 2, from, width, sum,
                                     g.scale, C, g.ldc, n, g.accumulate, ahead, low);
                    if (in_place == mc) continue;
                    for (int t = 0; t < low.terms; ++t) low.a[t] += int64_t{in_place} * kALd;
                    finish_panel(mc - in_place, pairs, a, kALd, from, width, sum ? sum + in_place * width : nullptr,
                                 g.scale, C + in_place * g.ldc, g.ldc, n, g.accumulate, ahead, low);
                }
            }
        }
        m0 += mc;
    }
}

#endif
