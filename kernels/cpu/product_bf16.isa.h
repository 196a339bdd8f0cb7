// product.isa.h with bf16 operands: C is rounded to Out once, when all of K and the low-rank terms are summed.
#if defined(__AVX512BF16__)

// A block of sums on its way to C: rows of n columns become C = scale sums (+ C).
template <class Out>
struct Rounding {
    const float* sums = nullptr;  // (left, width)
    int left = 0, width = 0, n = 0;
    Out* C = nullptr;
    int64_t ldc = 0;
    float scale = 1;
    bool accumulate = false;
    bool large = false;  // a linear's C: much of it would leave the caches before it is read

    // 32 rows, each one whole cache line of bf16, that may pass the caches.
    bool streams() const {
        return large && sizeof(Out) == 2 && n == 32 && left == 32 && scale == 1.0f && !accumulate &&
               (reinterpret_cast<uintptr_t>(C) | static_cast<uintptr_t>(ldc) * sizeof(Out)) % 64 == 0;
    }
    // One row of a block that streams(): a line that is written whole is not read first. The product ends with a fence.
    void stream_row() {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(C),
                            (__m512i)_mm512_cvtne2ps_pbh(load(sums + 16).v, load(sums).v));
        sums += 32, C += ldc;
    }
    void finish() {
        for (; left > 0; --left, sums += width, C += ldc)
            for (int j = 0; j < n; j += 16) {
                const V x = mul(set1(scale), load(sums + j));
                store_up_to(C + j, accumulate ? add(load_up_to(C + j, n - j), x) : x, n - j);
            }
    }
};

#if defined(ORPO_AMX)
static constexpr int kGroup = 32;        // rows of a block
static constexpr int kPanelPairs = 288;  // rows of a panel of B: it stays in L1 (36 KB) while the rows of A pass by

// One block: begun with the sums `before`, null: with zeros; stored as `block`. first() runs beside the steps of the
// first pairs, then() beside the others.
template <int kTilesM, int kTilesN, class First, class Then>
static inline void sum_block(int first_pairs, int pairs, const float* a, int64_t lda, const float* b, int width,
                             const float* before, const LowPanel& low, int64_t row, float* block, const First& first,
                             const Then& then) {
    amx_begin<kTilesM, kTilesN>(before, width, before);
    a += row * lda;
    amx_steps<kTilesM, kTilesN, true>(first_pairs, a, lda, b, width, first);
    amx_steps<kTilesM, kTilesN, true>(pairs - first_pairs, a + first_pairs, lda, b + first_pairs * width, width, then);
    for (int t = 0; t < low.terms; ++t)
        amx_steps<kTilesM, kTilesN, true>(low.units[t], low.a[t] + row * kALd, kALd, low.b[t], width, [] {});
    amx_end<kTilesM, kTilesN>(block, width);
}

// Some pairs of K for all M rows, behind the sums of those before, `before`: (M rounded up to 16, width); null: none.
// keep: the sums stay there. Otherwise they become C, a whole block during the next one: the last one waits in `last`,
// one of the two `blocks`.
template <class Out>
static void multiply_panel(int M, int pairs, const float* a, int64_t lda, const float* b, int width,
                           const float* before, float* keep, const Rounding<Out>& to, Rounding<Out>& last,
                           float* blocks, const Ahead& ahead, const LowPanel& low) {
    // No branches that are hard to guess beside the tiles: a wrong guess would leave them without work.
    const float* W = ahead.from;  // what the next panel needs of W: an even share each step
    const int steps = pairs / 16, all_steps = (M + kGroup - 1) / kGroup * steps;
    const int lines = W ? (ahead.chunks * ahead.lines + all_steps - 1) / all_steps : 0;
    const auto ask = [&] {
        for (int i = 0; i < lines; ++i, W += 16) __builtin_prefetch(W, 0, 2);
    };
    int each = 2;  // rows a step, of the block before
    while (kGroup / each > steps) each *= 2;
    for (int m = 0; m < M; m += kGroup) {
        const int rows = M - m < kGroup ? M - m : kGroup;
        const float* const from = before ? before + int64_t{m} * width : nullptr;
        float* const block = keep ? keep + int64_t{m} * width : last.sums == blocks ? blocks + kGroup * 32 : blocks;
        if (rows == kGroup && width == 32 && !keep && last.streams()) {
            Rounding<Out> waiting = last;  // in registers
            const auto round = [&] {
                ask();
                for (int i = 0; i < each; ++i) waiting.stream_row();
            };
            // Late: the sums that it reads leave their tiles only when the block before is done.
            sum_block<2, 2>(pairs - kGroup / each * 16, pairs, a, lda, b, width, from, low, m, block, ask, round);
        } else {
            last.finish();
            for (int i = 0; i < rows && !keep; ++i) __builtin_prefetch(to.C + (m + i) * to.ldc, 1);
            const auto run = rows > 16 ? (width == 16 ? sum_block<2, 1, decltype(ask), decltype(ask)>
                                                      : sum_block<2, 2, decltype(ask), decltype(ask)>)
                                       : (width == 16 ? sum_block<1, 1, decltype(ask), decltype(ask)>
                                                      : sum_block<1, 2, decltype(ask), decltype(ask)>);
            run(0, pairs, a, lda, b, width, from, low, m, block, ask, ask);
        }
        if (keep) continue;
        last = to;
        last.sums = block, last.left = rows, last.width = width, last.C += m * to.ldc;
    }
}
#else
static constexpr int kGroup = 2 * kMR;
static constexpr int kPanelPairs = kKC;

// As above; A at distance kALd.
template <class Out>
static void multiply_panel(int M, int pairs, const float* a, int64_t, const float* b, int width, const float* before,
                           float* keep, const Rounding<Out>& to, Rounding<Out>&, float* blocks, const Ahead& ahead,
                           const LowPanel& low) {
    if (keep) return panel_pairs(M, pairs, a, kALd, b, width, keep, width, width, before, ahead);
    for (int m = 0; m < M; m += kGroup) {
        const int rows = M - m < kGroup ? M - m : kGroup;
        if (ahead.from) ahead.fetch(m / kGroup, (M + kGroup - 1) / kGroup);
        if (before)
            __builtin_memcpy(blocks, before + int64_t{m} * width, sizeof(float) * static_cast<size_t>(rows * width));
        panel_pairs(rows, pairs, a + int64_t{m} * kALd, kALd, b, width, blocks, width, width, before);
        for (int t = 0; t < low.terms; ++t)
            panel_pairs(rows, low.units[t], low.a[t] + int64_t{m} * kALd, kALd, low.b[t], width, blocks, width, width,
                        true);
        Rounding<Out> block = to;
        block.sums = blocks, block.left = rows, block.width = width, block.C += m * to.ldc;
        block.finish();
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
    alignas(64) float blocks[2 * kGroup * 32];
    Rounding<Out> last;
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
                const Rounding<Out> to = {nullptr, 0, 0, n, g.C + m0 * g.ldc + c0 + n0, g.ldc, g.scale, g.accumulate};
                multiply_panel(rows, pairs, a, kALd, b + int64_t{n0} * pairs, n <= 16 ? 16 : kNR, nullptr, nullptr, to,
                               last, blocks, {}, {});
            }
        }
    }
    last.finish();
}

// A that few panels pass is multiplied where it lies, if it is whole pairs and whole tiles: packing would take longer
// than it saves.
template <class Out>
static inline bool in_place(const GemmShare<bf16, Out>& g, int rows) {
#if defined(ORPO_AMX)
    return g.N <= 3 * kNR && rows % 16 == 0 && g.K % 32 == 0 && g.lda % 2 == 0 &&
           reinterpret_cast<uintptr_t>(g.A) % 4 == 0;
#else
    return false;
#endif
}

// Where K takes several blocks, the sums of kSumColumns columns wait in scratch.
static constexpr int kSumColumns = 640;
static int64_t gemm_scratch_bf16() {
    return 2 * (int64_t{kMC + 32} * kALd + int64_t{kKC} * kNR) + 16 * int64_t{kKC + 16} +
           int64_t{kMC + 32} * kSumColumns;
}
// As gemm().
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
    const int pairs_all = pairs_of(g.K), k_blocks = (pairs_all + kPanelPairs - 1) / kPanelPairs;
    const int p_step = ((pairs_all + k_blocks - 1) / k_blocks + 15) / 16 * 16;
    const int m_blocks = (g.M + kMC - 1) / kMC, c_step = k_blocks == 1 ? g.N : kSumColumns;
    alignas(64) float blocks[2 * kGroup * 32];
    Rounding<Out> last;
    // Where all of A fits it is packed once, for every share of these rows.
    const bool once = m_blocks == 1 && pairs_all <= kKC && (k_blocks > 1 || g.some_columns);
    if (once && !g.again) pack_rows_pairs(g.M, g.K, g.A, g.lda, a);
    for (int block = 0, m0 = 0; block < m_blocks; ++block) {
        int mc = (g.M - m0 + m_blocks - block - 1) / (m_blocks - block);
        if (block + 1 < m_blocks) mc = (mc + 15) / 16 * 16;
        const int rows = (mc + 15) / 16 * 16;
        if (!once || !g.again) pack_low_rows(g, g.added_row + m0, mc, low_a);
        for (int c0 = 0; c0 < g.N; c0 += c_step) {
            const int c1 = g.N - c0 < c_step ? g.N : c0 + c_step;
            for (int p0 = 0; p0 < pairs_all; p0 += p_step) {
                const int pairs = pairs_all - p0 < p_step ? pairs_all - p0 : p_step, k0 = 2 * p0;
                const int kc = g.K - k0 < 2 * pairs ? g.K - k0 : 2 * pairs;
                const bf16* const A = g.A + m0 * g.lda + k0;
                const bool lies = !once && in_place(g, mc);
                if (!once && !lies) pack_rows_pairs(mc, kc, A, g.lda, a);
                const float* const rows_a = lies ? reinterpret_cast<const float*>(A) : once ? a + p0 : a;
                const int64_t lda = lies ? g.lda / 2 : kALd;
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
                        const bool after = n0 + kNR >= c1;
                        const int n1 = after ? c0 : n0 + kNR, p1 = after ? p0 + p_step : p0;
                        const int next = panel_width(g.weight_rows, g.first + n1);
                        const int count = pairs_all - p1 < p_step ? pairs_all - p1 : p_step;
                        if (count > 0)
                            ahead = {g.W + (g.first + n1) * pairs_all + int64_t{p1} * next, 1, count * next / 16, 0};
                    }
                    float* const before = sums + int64_t{n0 - c0} * rows;  // (rows, width)
                    const bool whole = p0 + pairs == pairs_all;
                    const LowPanel low = whole ? low_panel(g, low_a, n0, n, low_b, width) : LowPanel{};
                    const Rounding<Out> rounding = {
                        nullptr, 0, 0, n, g.C + m0 * g.ldc + n0, g.ldc, g.scale, g.accumulate, packed};
                    multiply_panel(kGroup == 32 && !whole ? rows : mc, pairs, rows_a, lda, from, width,
                                   p0 > 0 ? before : nullptr, whole ? nullptr : before, rounding, last, blocks, ahead,
                                   low);
                }
            }
        }
        m0 += mc;
    }
    last.finish();
    _mm_sfence();
}

#endif
