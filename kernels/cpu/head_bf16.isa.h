// head.isa.h with bf16 operands, fp32 sums and soft-max. Scores z stand in blocks of 32 rows and 32 words, in L1, and
// are weighed beside the products of the next block's; their weights p = e^(z - m) are an operand as they come.
//   per kWords words:  z = n W^T; p = e^(z - m) (0 at the target); others += sum of p; U += p W
// m is a height of the row, not its largest z: that of the first words, and raised only if a sum would overflow. So the
// scores of a part's first words are made twice, all others once.
#if defined(__AVX512BF16__)

static constexpr int kHeadRows = 256;                // most rows of a call: n, p and U lie in L2
static constexpr int kWords = 512;                   // a panel of W for the second product is 32 KB and stays in L1
static constexpr int kAlongWords = kWords / 2 + 16;  // row distance of p, in pairs: an odd number of cache lines

static int head_rows_bf16() { return kHeadRows; }
static int64_t head_scratch_bf16(int C) { return int64_t{kHeadRows} * (pairs_of(C) + 16 + kAlongWords + 2 * kNR + 16); }

// A block of z, (32, 32), that waits to become p.
struct Scores {
    float* z;
    float* p;       // (32, 16) pairs of words at distance kAlongWords
    float* totals;  // (32, 16): lanes of each row's sum
    const float* m;

    void weigh(int i) const {
        const V height = set1(m[i]);
        const V e0 = exp_rough(sub(load(z + i * kNR), height)), e1 = exp_rough(sub(load(z + i * kNR + 16), height));
        store(totals + i * 16, add(load(totals + i * 16), add(e0, e1)));
        _mm512_storeu_si512(p + i * kAlongWords, narrow(e0, e1));
    }
};

// Which of 32 rows have their target among the 32 words from `first` on. Not inlined: where registers were short (under
// sanitizers), GCC 12 kept a mask in memory and read more bits of it than it had written.
[[gnu::noinline]] static uint32_t aiming_at(const int32_t* targets, int first) {
    const __m512i from = _mm512_set1_epi32(first), width = _mm512_set1_epi32(kNR);
    const auto half = [&](const int32_t* at) -> uint32_t {
        return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(_mm512_load_si512(at), from), width);
    };
    return half(targets) | half(targets + 16) << 16;
}

static void head_bf16(const HeadShare<bf16>& s, float* scratch) {
    const Tiles tiles{};
    const int C = s.C, units = pairs_of(C), rows = padded(s.rows), along = units + 16;
    const int64_t units_V = (s.V + 31) / 32 * 16;
    const int stretches = (units + kPanelPairs - 1) / kPanelPairs;  // of n and W: a panel of W stays in L1
    const int stretch = ((units + stretches - 1) / stretches + 15) / 16 * 16;
    float* const n = scratch;                      // (rows, units)
    float* const z = n + int64_t{rows} * along;    // blocks of (32, 32)
    float* const p = z + int64_t{rows} * 2 * kNR;  // (rows, pairs of kWords words)
    float* const totals = p + int64_t{rows} * kAlongWords;
    alignas(64) float m[kHeadRows];
    float total[kHeadRows];  // of a block of words; not a number before the first
    const auto fits = [&](int i) { return total[i] < 1e20f; };
    alignas(64) int32_t targets[kHeadRows];
    for (int i = 0; i < rows; ++i) {
        float* const to = n + int64_t{i} * along;
        if (i < s.rows) s.sums[i].others = 0, s.sums[i].z_target = -__builtin_inff();
        targets[i] = i < s.rows ? s.heads[i].target : -1;
        m[i] = -__builtin_inff(), total[i] = __builtin_nanf("");
        if (i < s.rows)
            pack_row_pairs(C, s.n + int64_t{s.heads[i].row} * C, to);
        else
            __builtin_memset(to, 0, sizeof(float) * static_cast<size_t>(units));
    }

    // Scores of words v0 .. v0 + count, a block at a time: ready(row, word from v0, block) when one is whole. It stays
    // until the next one is; meanwhile() runs beside that one's products.
    const auto scores = [&](int64_t v0, int count, const auto& meanwhile, const auto& ready) {
        for (int v = 0, turn = 0; v < count; v += kNR) {
            const int words = count - v < kNR ? count - v : kNR, width = panel_width(s.V, v0 + v);
            const float* const W = s.W + (v0 + v) * units;
            const float* next = W + int64_t{units} * width;
            const int steps = units / 16 * (rows / Sums::kRows), lines = (units * 2 + steps - 1) / steps;
            for (int u = 0; u < units; u += stretch) {
                const int some = units - u < stretch ? units - u : stretch;
                for (int r = 0; r < rows; r += kNR, turn ^= 1) {
                    float* const block = z + (stretches == 1 ? turn * kNR : v / kNR % 2 * rows + r) * kNR;
                    const float* const a = n + int64_t{r} * along + u;
                    if (width == kNR) {
                        block_pairs<true>(some, a, along, W + int64_t{u} * width, block, u > 0, [&] {
                            for (int i = 0; i < lines; ++i, next += 16) __builtin_prefetch(next, 0, 2);
                            meanwhile();
                        });
                    } else {
                        panel_pairs(kNR, some, a, along, W + int64_t{u} * width, width, block, kNR, width, u > 0);
                    }
                    if (u + some < units) continue;
                    for (int i = 0; i < kNR && words < kNR; ++i)
                        for (int j = words; j < kNR; ++j) block[i * kNR + j] = -__builtin_inff();
                    ready(r, v, block);
                }
            }
        }
    };
    // m = the largest of these words' scores, for rows whose `total` is too large; what was summed is scaled to it.
    const auto raise = [&](int64_t v0, int count) {
        float before[kHeadRows];
        for (int i = 0; i < rows; ++i) {
            before[i] = m[i];
            if (!fits(i)) m[i] = -__builtin_inff();
        }
        scores(
            v0, count, [] {},
            [&](int r, int, const float* block) {
                for (int i = r; i < r + kNR; ++i) {
                    if (fits(i)) continue;
                    const float* const z_row = block + (i - r) * kNR;
                    const float top = max_lane(max(load(z_row), load(z_row + 16)));
                    if (top > m[i]) m[i] = top;
                }
            });
        for (int i = 0; i < s.rows && v0 > s.first; ++i) {
            if (fits(i)) continue;
            const float factor = __builtin_expf(before[i] - m[i]);
            s.sums[i].others *= static_cast<double>(factor);
            for (int c = 0; s.U && c < C; ++c) *head_at(s.U, s.rows, i, c) *= factor;
        }
    };
    const int slice = (Sums::kRows * 16 + stretch - 1) / stretch;  // rows that are weighed at every step
    const auto weigh = [&](int64_t v0, int count) {
        Scores waiting{};
        int weighed = kNR;
        __builtin_memset(totals, 0, sizeof(float) * static_cast<size_t>(rows) * 16);
        const auto until = [&](int to) {
            for (; weighed < to; ++weighed) waiting.weigh(weighed);
        };
        scores(
            v0, count, [&] { until(weighed + slice < kNR ? weighed + slice : kNR); },
            [&](int r, int v, float* block) {
                until(kNR);
                for (uint32_t here = aiming_at(targets + r, static_cast<int>(v0 + v)); here; here &= here - 1) {
                    const int i = __builtin_ctz(here);
                    float& score = block[i * kNR + targets[r + i] - (v0 + v)];
                    s.sums[r + i].z_target = score, score = -__builtin_inff();
                }
                waiting = {block, p + int64_t{r} * kAlongWords + v / 2, totals + int64_t{r} * 16, m + r};
                weighed = 0;
            });
        until(kNR);
    };

    for (int64_t v0 = s.first; v0 < s.last; v0 += kWords) {
        const int count = s.last - v0 < kWords ? static_cast<int>(s.last - v0) : kWords;
        if (v0 == s.first) raise(v0, count);
        weigh(v0, count);
        bool all = true;
        for (int i = 0; i < s.rows; ++i) {
            total[i] = sum(load(totals + i * 16));
            all &= fits(i);
        }
        if (!all) {
            raise(v0, count);
            weigh(v0, count);
            for (int i = 0; i < s.rows; ++i) total[i] = sum(load(totals + i * 16));
        }
        for (int i = 0; i < s.rows; ++i) s.sums[i].others += static_cast<double>(total[i]);
        if (!s.U) continue;
        const int pairs = (count + 31) / 32 * 16;
        for (int c = 0; c < C; c += kNR) {
            const int width = panel_width(C, c);
            const float* const W = s.W_back + c * units_V + v0 / 2 * width;
            const float* next = W + kNR * units_V;
            const int steps = pairs / 16 * (rows / Sums::kRows),
                      lines = c + kNR < C ? (pairs * 2 + steps - 1) / steps : 0;
            for (int r = 0; r < rows; r += kNR) {
                float* const to = head_at(s.U, s.rows, r, c);
                if (width < kNR) {
                    panel_pairs(kNR, pairs, p + int64_t{r} * kAlongWords, kAlongWords, W, width, to, kNR, width,
                                v0 > s.first);
                    continue;
                }
                const float* after = to + kNR * kNR;  // the next block of U
                block_pairs<true>(pairs, p + int64_t{r} * kAlongWords, kAlongWords, W, to, v0 > s.first, [&] {
                    for (int i = 0; i < lines; ++i, next += 16) __builtin_prefetch(next, 0, 2);
                    for (int i = 0; i < 2; ++i, after += 16) __builtin_prefetch(after, 1);
                });
            }
        }
    }
    for (int i = 0; i < s.rows; ++i) s.sums[i].m = m[i];
}

#endif
