// One thread's share of a product in fp32, whatever form B has: gemm.isa.h has the order of every sum. A linear's
// low-rank terms are added to each panel of C behind the last block of K.

// scratch: gemm_scratch() floats.
static int64_t gemm_scratch() { return 2 * (int64_t{kMC} * kALd + int64_t{kKC} * kNR); }

// The weights of the panel at column n0 and row k0 of this share.
static inline Ahead weights_ahead(const GemmShare<float>& g, int n0, int k0, int kc) {
    if (k0 >= g.K) return {};
    if (kc > g.K - k0) kc = g.K - k0;
    if (g.form == BForm::kPacked) {
        const int width = panel_width(g.weight_rows, g.first + n0);
        return {g.W + (g.first + n0) * g.K + int64_t{k0} * width, 1, kc * width / 16, 0};
    }
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
    for (int block = 0, m0 = 0; block < m_blocks; ++block) {
        const int mc = (g.M - m0 + m_blocks - block - 1) / (m_blocks - block);
        pack_low_rows(g, g.added_row + m0, mc, low_a);
        for (int k0 = 0; k0 < g.K; k0 += k_step) {
            const int kc = g.K - k0 < k_step ? g.K - k0 : k_step;
            pack_rows(mc, kc, g.scale, g.A + m0 * g.lda + k0, g.lda, a);
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
                }
                const bool last = n0 + kNR >= g.N;
                panel<false>(mc, kc, a, 0, from, ldb, g.C + m0 * g.ldc + n0, g.ldc, n, g.accumulate || k0 > 0,
                             last ? weights_ahead(g, 0, k0 + k_step, k_step) : weights_ahead(g, n0 + kNR, k0, kc));
                if (k0 + kc < g.K) continue;
                const float* s = low_a;
                for (int i = 0; i < g.added_n; s += rank_units(g.added[i++]))
                    if (pack_low_panel(g.added[i], g.added_turned, g.first + n0, n, low_b, width))
                        panel<false>(mc, g.added[i].R, s, 0, low_b, width, g.C + m0 * g.ldc + n0, g.ldc, n, true);
            }
        }
        m0 += mc;
    }
}
