// One thread's share of a product in fp32, whatever form B has: gemm.isa.h has the order of every sum. A linear's
// low-rank terms are further chains of the last block of K.

// scratch: gemm_scratch() floats.
static int64_t gemm_scratch() { return 2 * (int64_t{kMC} * kALd + int64_t{kKC} * kNR); }

// Columns [n0, n0 + n) of this share's W, rows [k0, k0 + kc).
static inline Ahead weights_ahead(const GemmShare<float>& g, int n0, int k0, int kc) {
    if (k0 >= g.K) return {};
    if (kc > g.K - k0) kc = g.K - k0;
    if (g.form == BForm::kPacked) {
        const int width = panel_width(g.weight_rows, g.first + n0);
        return {g.W + (g.first + n0) * g.K + int64_t{k0} * width, 1, kc * width / 16, 0};
    }
    if (g.form == BForm::kTurned)  // whole panels of W
        return {g.W + k0 * g.ldb + (g.first + n0) * kNR, kc / kNR, kNR * kNR / 16, kNR * g.ldb};
    return {};
}

static void gemm(const GemmShare<float>& g, float* scratch) {
    float* const a = scratch;
    float* const b = a + int64_t{kMC} * kALd;
    float* const low_a = b + int64_t{kKC} * kNR;
    float* const low_b = low_a + int64_t{kMC} * kALd;
    const int k_blocks = (g.K + kKC - 1) / kKC;
    const int k_step = ((g.K + k_blocks - 1) / k_blocks + kChain - 1) / kChain * kChain;
    const int m_blocks = (g.M + kMC - 1) / kMC;
    const bool packed_before = g.again && m_blocks == 1;
    for (int block = 0, m0 = 0; block < m_blocks; ++block) {
        const int mc = (g.M - m0 + m_blocks - block - 1) / (m_blocks - block);
        if (!packed_before) pack_low_rows(g, g.added_row + m0, mc, low_a);
        for (int k0 = 0; k0 < g.K; k0 += k_step) {
            const int kc = g.K - k0 < k_step ? g.K - k0 : k_step;
            if (!packed_before || k_blocks > 1) pack_rows(mc, kc, g.scale, g.A + m0 * g.lda + k0, g.lda, a);
            for (int n0 = 0; n0 < g.N; n0 += kNR) {
                const int n = g.N - n0 < kNR ? g.N - n0 : kNR;
                const int width = n <= 16 ? 16 : kNR;
                const float* from = b;
                int64_t ldb = width;
                switch (g.form) {
                    case BForm::kRows:
                        if (n == width) {
                            from = g.B + k0 * g.ldb + g.first + n0, ldb = g.ldb;
                        } else {
                            for (int k = 0; k < kc; ++k)
                                for (int j = 0; j < width; ++j)
                                    b[k * width + j] = j < n ? g.B[(k0 + k) * g.ldb + g.first + n0 + j] : 0.0f;
                        }
                        break;
                    case BForm::kColumns:
                        pack_columns(n, kc, g.B + (g.first + n0) * g.ldb + k0, g.ldb, b, width);
                        break;
                    case BForm::kPacked:
                        ldb = panel_width(g.weight_rows, g.first + n0);
                        from = g.W + (g.first + n0) * g.K + k0 * ldb;
                        break;
                    case BForm::kTurned:
                        pack_turned(g.K, static_cast<int>(g.ldb), g.W, k0, kc, static_cast<int>(g.first) + n0, n, b,
                                    width);
                        break;
                }
                const LowPanel low = k0 + kc == g.K ? low_panel(g, low_a, n0, n, low_b, width) : LowPanel{};
                const bool last = n0 + kNR >= g.N;
                panel<false>(mc, kc, a, 0, from, ldb, g.C + m0 * g.ldc + n0, g.ldc, n, g.accumulate || k0 > 0,
                             last ? weights_ahead(g, 0, k0 + k_step, k_step) : weights_ahead(g, n0 + kNR, k0, kc), low);
            }
        }
        m0 += mc;
    }
}
