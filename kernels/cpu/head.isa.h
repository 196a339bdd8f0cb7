// The head of some rows in one pass over the vocabulary, with no logits kept:
//   per block of kVB words:  z = n W^T;  running maximum m and sum of e^(z - m);  U += e^(z - m) W
//   at the end:              logp = log(e^(z_t - m) / total),  U = U / total - (others / total) W_t
// The target t is left out of the sums, so 1 - p_t = others / total keeps all its digits for a confident token.
// A new maximum scales U and the sum. W (packed) comes from memory once per call and is turned in L2 for the second
// product. FLOPs: 4 rows C V. Scratch: the rows' n and one block of z.
// A call takes one part of the vocabulary, the same part for any number of threads; the parts are added in their order.

static constexpr int kVB = 384;

static int head_rows() { return kMC; }
static int64_t head_scratch(int C) {
    const int64_t k_blocks = (C + kKC - 1) / kKC;
    return int64_t{kMC + 32} * kALd * (k_blocks + 1) + int64_t{kVB} * kNR + 16;
}
// U stands in panels of kNR columns, each (rows padded, kNR).
static inline int64_t head_panel(int rows) { return int64_t{(rows + 31) / 32 * 32} * kNR; }
static inline float* head_at(float* U, int rows, int i, int c) {
    return U + c / kNR * head_panel(rows) + i * kNR + c % kNR;
}

// z (count) -> e^(z - m) with 0 at the target, rest summed. Returns the sum over all but the target.
static float exponentials(int count, float m, int target, float* z) {
    V total = set1(0.0f);
    const V top = set1(m);
    if (target >= 0) z[target] = -__builtin_inff();
    int v = 0;
    for (; v + 16 <= count; v += 16) {
        const V e = exp(sub(load(z + v), top));
        store(z + v, e);
        total = add(total, e);
    }
    if (v < count) {
        store_n(z + v, exp(sub(load_n(z + v, count - v), top)), count - v);
        total = add(total, load_n(z + v, count - v));
    }
    return sum(total);
}

static float largest(int count, const float* z) {
    V top = set1(-__builtin_inff());
    int v = 0;
    for (; v + 16 <= count; v += 16) top = max(top, load(z + v));
    float m = max_lane(top);
    for (; v < count; ++v) m = z[v] > m ? z[v] : m;
    return m;
}

static void head(const HeadShare<float>& s, float* scratch) {
    constexpr int kRowsHeld = kMC + 32;
    const int C = s.C;
    const int k_blocks = (C + kKC - 1) / kKC;
    const int k_step = ((C + k_blocks - 1) / k_blocks + kChain - 1) / kChain * kChain;
    float* const z = scratch + int64_t{kRowsHeld} * kALd * k_blocks;
    float* const turned = z + int64_t{kRowsHeld} * kALd;  // W of the block for the second product
    for (int i = 0; i < s.rows; ++i) {
        s.sums[i] = {0, -__builtin_inff(), -__builtin_inff()};
        const float* n = s.n + int64_t{s.heads[i].row} * C;
        for (int b = 0; b < k_blocks; ++b)
            pack_rows(1, C - b * k_step < k_step ? C - b * k_step : k_step, 1.0f, n + b * k_step, 0,
                      scratch + (int64_t{b} * kRowsHeld + i) * kALd);
    }
    for (int64_t v0 = s.first; v0 < s.last; v0 += kVB) {
        const int count = s.last - v0 < kVB ? static_cast<int>(s.last - v0) : kVB;
        for (int v = 0; v < count; v += kNR) {
            const int width = panel_width(s.V, v0 + v), n = count - v < width ? count - v : width;
            for (int b = 0; b < k_blocks; ++b) {
                const int kc = C - b * k_step < k_step ? C - b * k_step : k_step;
                const float* from = s.W + (v0 + v) * C + int64_t{b} * k_step * width;
                panel<false>(s.rows, kc, scratch + int64_t{b} * kRowsHeld * kALd, 0, from, width, z + v, kALd, n, b > 0,
                             {from + int64_t{kc} * width, 1, kc * width / 16, 0});
            }
        }
        for (int i = 0; i < s.rows; ++i) {
            HeadSums& row = s.sums[i];
            float* const scores = z + int64_t{i} * kALd;
            const int64_t at = s.heads[i].target - v0;
            const int target = at >= 0 && at < count ? static_cast<int>(at) : -1;
            if (target >= 0) row.z_target = scores[target];
            const float top = largest(count, scores);
            if (top > row.m) {
                const float factor = v0 == s.first ? 0.0f : __builtin_expf(row.m - top);
                row.m = top;
                row.others *= static_cast<double>(factor);
                for (int c = 0; s.U && v0 > s.first && c < C; ++c) *head_at(s.U, s.rows, i, c) *= factor;
            }
            row.others += static_cast<double>(exponentials(count, row.m, target, scores));
        }
        if (!s.U) continue;
        for (int c = 0; c < C; c += kNR) {
            const int n = C - c < kNR ? C - c : kNR, width = n <= 16 ? 16 : kNR;
            pack_turned(s.V, C, s.W, v0, count, c, n, turned, width);
            panel<false>(s.rows, count, z, 0, turned, width, head_at(s.U, s.rows, 0, c), kNR, n, v0 > s.first);
        }
    }
}

static inline void head_target_row(const HeadEnd<float>& s, int64_t target, float* to) {
    unpack_weight_row(s.V, s.C, s.W, target, to);
}
#if defined(__AVX512BF16__)
static inline void head_target_row(const HeadEnd<bf16>& s, int64_t target, float* to) {
    unpack_weight_row_bf16(s.V, s.C, s.W, target, to);
}
#endif

// scratch: C floats.
template <class T>
static void head_end(const HeadEnd<T>& s, float* scratch) {
    for (int i = 0; i < s.rows; ++i) {
        const auto part = [&](int p) { return s.sums[p * s.sums_step + i]; };
        float m = part(0).m, factors[kMostHeadParts];
        for (int p = 1; p < s.parts; ++p) m = part(p).m > m ? part(p).m : m;
        double others = 0, z_target = -__builtin_inf();
        for (int p = 0; p < s.parts; ++p) {
            factors[p] = s.parts == 1 ? 1.0f : __builtin_expf(part(p).m - m);
            others += static_cast<double>(factors[p]) * part(p).others;
            if (!(part(p).z_target == -__builtin_inff())) z_target = static_cast<double>(part(p).z_target);
        }
        const double e = __builtin_exp(z_target - m), total = others + e;
        s.logp[i] = e > others ? -__builtin_log1p(others / e) : z_target - m - __builtin_log(total);
        if (!s.to) continue;
        const V share = set1(static_cast<float>(others / total));
        for (int p = 0; p < s.parts; ++p) factors[p] = static_cast<float>(static_cast<double>(factors[p]) / total);
        head_target_row(s, s.heads[i].target, scratch);
        for (int c = 0; c < s.C; c += 16) {
            const float* const at = s.U + c / kNR * head_panel(s.rows) + i * kNR + c % kNR;
            V sums = mul(set1(factors[0]), load(at));
            for (int p = 1; p < s.parts; ++p) sums = fma(set1(factors[p]), load(at + p * s.U_step), sums);
            store_up_to(s.to + int64_t{i} * s.C + c, fnma(share, load_up_to(scratch + c, s.C - c), sums), s.C - c);
        }
    }
}
