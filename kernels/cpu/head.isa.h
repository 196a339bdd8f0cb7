// The head of some rows in one pass over the vocabulary, with no logits kept:
//   per block of kVB words:  z = n W^T;  running maximum m and sum of e^(z - m);  U += e^(z - m) W
//   at the end:              logp = log(e^(z_t - m) / total),  U = U / total - (others / total) W_t
// The target t is left out of the sums, so 1 - p_t = others / total keeps all its digits for a confident token.
// A new maximum scales U and the sum. W (packed) comes from memory once per call and is turned in L2 for the second
// product. FLOPs: 4 rows C V. Scratch: the rows' n and one block of z.

static constexpr int kVB = 384;

static int head_rows() { return kMC; }
// bf16: also the block's e^(z - m) as pairs, and U while it is being summed.
template <class T>
static int64_t head_scratch(int C) {
    const bool pairs = sizeof(T) == 2;
    const int64_t k_blocks = (C + kKC - 1) / kKC;
    return int64_t{kMC + 32} * kALd * (k_blocks + 1 + pairs) + int64_t{kVB} * kNR + pairs * int64_t{kMC} * C + 16;
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

#if defined(__AVX512BF16__)
// The same with the e^(z - m) as pairs, zero-padded to 32; what would be 0 (the target, too) is e^-87.
static float exponentials_to_pairs(int count, float m, int target, float* z, float* pairs) {
    V total = set1(0.0f);
    const V top = set1(m), zero = set1(0.0f);
    if (target >= 0) z[target] = -__builtin_inff();
    for (int v = 0; v < count; v += 32) {
        const int left = count - v;
        V e0 = exp_rough(sub(load_up_to(z + v, left), top)), e1 = zero;
        if (left < 16) e0 = first_lanes(e0, left);
        if (left > 16) e1 = exp_rough(sub(load_up_to(z + v + 16, left - 16), top));
        if (left > 16 && left < 32) e1 = first_lanes(e1, left - 16);
        total = add(total, add(e0, e1));
        store_pairs(pairs + v / 2, e0, e1);
    }
    return sum(total);
}
#endif

static float largest(int count, const float* z) {
    V top = set1(-__builtin_inff());
    int v = 0;
    for (; v + 16 <= count; v += 16) top = max(top, load(z + v));
    float m = max_lane(top);
    for (; v < count; ++v) m = z[v] > m ? z[v] : m;
    return m;
}

// Where U is summed: in its place, or in scratch where T would round every term.
static inline float* head_sums(const HeadShare<float>& s, float*) { return s.U; }
static inline float* head_sums(const HeadShare<bf16>& s, float* scratch) { return s.U ? scratch : nullptr; }

// bf16: the operands of both products are pairs (bf16.isa.h), and W is packed for each of them.
template <class T>
static void head(const HeadShare<T>& s, float* scratch) {
    constexpr bool kPairs = sizeof(T) == 2;
    const Tiles tiles{};
    constexpr int kRowsHeld = kMC + 32;
    const int C = s.C, units = kPairs ? (C + 31) / 32 * 16 : C;  // elements of a packed row
    const int64_t units_V = kPairs ? (s.V + 31) / 32 * 16 : s.V;
    const int k_blocks = (units + kKC - 1) / kKC;
    const int k_step = ((units + k_blocks - 1) / k_blocks + kChain - 1) / kChain * kChain;
    float* const z = scratch + int64_t{kRowsHeld} * kALd * k_blocks;
    float* const rounded = z + int64_t{kRowsHeld} * kALd;  // kPairs: the block's e^(z - m) as pairs
    float* const turned = rounded;                         // fp32: W of the block for the second product
    float* const U = head_sums(s, kPairs ? rounded + int64_t{kRowsHeld} * kALd : nullptr);
    // next: what the next product will read of W.
    const auto multiply = [&](int K, const float* a, const float* b, int width, float* c, int64_t ldc, int n, bool more,
                              const float* next) {
        const Ahead ahead{next, 1, next ? K * width / 16 : 0, 0};
#if defined(__AVX512BF16__)
        if constexpr (kPairs) return panel_pairs<true>(s.rows, K, a, kALd, b, width, c, ldc, n, more, ahead);
#endif
        panel<false>(s.rows, K, a, 0, b, width, c, ldc, n, more, ahead);
    };
    float m[kMC], z_target[kMC];
    double others[kMC];
    for (int i = 0; i < s.rows; ++i) {
        m[i] = -__builtin_inff(), others[i] = 0, z_target[i] = 0;
        const T* n = s.n + int64_t{s.heads[i].row} * C;
        for (int b = 0; b < k_blocks; ++b) {
            float* to = scratch + (int64_t{b} * kRowsHeld + i) * kALd;
#if defined(__AVX512BF16__)
            if constexpr (kPairs) {
                const int from = 2 * b * k_step;
                pack_row_pairs(C - from < 2 * k_step ? C - from : 2 * k_step, n + from, to);
            }
#endif
            if constexpr (!kPairs)
                pack_rows(1, C - b * k_step < k_step ? C - b * k_step : k_step, 1.0f, n + b * k_step, 0, to);
        }
    }
    for (int64_t v0 = 0; v0 < s.V; v0 += kVB) {
        const int count = s.V - v0 < kVB ? static_cast<int>(s.V - v0) : kVB;
        for (int v = 0; v < count; v += kNR) {
            const int width = panel_width(s.V, v0 + v), n = count - v < width ? count - v : width;
            for (int b = 0; b < k_blocks; ++b) {
                const int kc = units - b * k_step < k_step ? units - b * k_step : k_step;
                const float* from = s.W + (v0 + v) * units + int64_t{b} * k_step * width;
                multiply(kc, scratch + int64_t{b} * kRowsHeld * kALd, from, width, z + v, kALd, n, b > 0,
                         from + int64_t{kc} * width);
            }
        }
        for (int i = 0; i < s.rows; ++i) {
            float* row = z + int64_t{i} * kALd;
            const int64_t at = s.heads[i].target - v0;
            const int target = at >= 0 && at < count ? static_cast<int>(at) : -1;
            if (target >= 0) z_target[i] = row[target];
            const float top = largest(count, row);
            if (top > m[i]) {
                const float factor = v0 == 0 ? 0.0f : __builtin_expf(m[i] - top);
                m[i] = top;
                others[i] *= factor;
                if (U && v0 > 0)
                    for (int c = 0; c < C; ++c) U[int64_t{i} * C + c] *= factor;
            }
#if defined(__AVX512BF16__)
            if constexpr (kPairs) {
                const float rest = exponentials_to_pairs(count, m[i], target, row, rounded + int64_t{i} * kALd);
                others[i] += static_cast<double>(rest);
            }
#endif
            if constexpr (!kPairs) others[i] += static_cast<double>(exponentials(count, m[i], target, row));
        }
        if (!U) continue;
        for (int c = 0; c < C; c += kNR) {
            const int n = C - c < kNR ? C - c : kNR;
            if (kPairs) {
                const int width = panel_width(C, c);
                const float* from = s.W_back + c * units_V + v0 / 2 * width;
                multiply((count + 31) / 32 * 16, rounded, from, width, U + c, C, n, v0 > 0,
                         c + kNR < C ? from + kNR * units_V : nullptr);
            } else {
                const int width = n <= 16 ? 16 : kNR;
                pack_turned(s.V, C, s.W, v0, count, c, n, turned, width);
                multiply(count, z, turned, width, U + c, C, n, v0 > 0, nullptr);
            }
        }
    }
    for (int i = 0; i < s.rows; ++i) {
        const double e = __builtin_exp(static_cast<double>(z_target[i]) - m[i]), total = others[i] + e;
        s.logp[i] = e > others[i] ? -__builtin_log1p(others[i] / e)
                                  : static_cast<double>(z_target[i]) - m[i] - __builtin_log(total);
        if (!U) continue;
        const V inverse = set1(static_cast<float>(1 / total)), share = set1(static_cast<float>(others[i] / total));
#if defined(__AVX512BF16__)
        if constexpr (kPairs) unpack_weight_row_bf16(s.V, C, s.W, s.heads[i].target, z);
#endif
        if constexpr (!kPairs) unpack_weight_row(s.V, C, s.W, s.heads[i].target, z);
        for (int c = 0; c < C; c += 16) {
            const V sums = load_up_to(U + int64_t{i} * C + c, C - c);
            store_up_to(s.U + int64_t{i} * C + c, fnma(share, load_up_to(z + c, C - c), mul(inverse, sums)), C - c);
        }
    }
}
