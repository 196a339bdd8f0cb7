// attention.isa.h with bf16 operands and fp32 sums and soft-max. Scores stand turned, S^T (keys, queries): a lane is a
// query row, so that its soft-max never crosses lanes, and P^T, dS^T are operands as they come:
//   S^T = K Q^T, dP^T = V dO^T       A: rows of K, V;                      B: Q^T, dO^T in pairs over HS
//   O^T = V^T P^T, dQ^T = K^T dS^T   A: columns of V, K, pairs over keys;  B: P^T, dS^T in pairs of keys
//   dV = P^T dO, dK = dS^T Q         A: rows of P^T, dS^T over queries;    B: dO, Q in pairs of query rows
// A panel is 32 queries. Its keys are the prompt's, padded to 32, then the own segment's up to its last query.
#if defined(__AVX512BF16__)

static constexpr int kBQ16 = kNR;  // query rows of a call forward: one panel
static constexpr int kPanels = 4;  // panels of a block backward
static constexpr int kAlong =
    kNR * kPanels / 2 + 16;  // row distance of P^T and dS^T of a block: pairs over its queries

// Keys of one segment and K/V head as A wants them: rows of K; backward rows of V, too; and columns of V (forward) or K
// (backward), `distance` apart: an odd number of cache lines.
struct PackedKeys {
    const float *k, *turned, *v;
    int64_t distance;
};
static inline int64_t turned_distance(int keys) { return 16 * int64_t{padded(keys) / 32 | 1}; }
static int64_t attention_packed_bf16(int keys, int HS, bool backward) {
    return int64_t{padded(keys)} * pairs_of(HS) * (backward ? 2 : 1) + padded(HS) * turned_distance(keys);
}
static inline PackedKeys packed_keys(const float* packed, int keys, int HS) {
    const float* const turned = packed + int64_t{padded(keys)} * pairs_of(HS);
    return {packed, turned, turned + padded(HS) * turned_distance(keys), turned_distance(keys)};
}
static int64_t attention_scratch_bf16(int keys, int HS) {
    const int64_t columns = padded(keys) + 2 * kNR, units = pairs_of(HS), block = kNR * kPanels, wide = padded(HS);
    const int64_t forward = units * kNR + columns * kNR + wide * kNR;
    // Q and dO as columns and as pairs of rows; S^T and dP^T of two blocks of keys; P^T and dS^T of one; dS^T in pairs
    // of keys; dQ^T.
    const int64_t backward =
        2 * block * units + block * wide + 4 * kNR * kNR + 2 * kNR * kAlong + columns / 2 * block + wide * kNR;
    return (forward > backward ? forward : backward) + 16 * units;
}

static void attention_pack_bf16(int keys, int HS, const bf16* k, const bf16* v, int64_t width, bool backward,
                                float* packed) {
    const int units = pairs_of(HS);
    const PackedKeys at = packed_keys(packed, keys, HS);
    const auto pack_rows = [&](const bf16* from, float* to) {
        for (int j = 0; j < keys; ++j) pack_row_pairs(HS, from + j * width, to + int64_t{j} * units);
        for (int64_t i = int64_t{keys} * units; i < int64_t{padded(keys)} * units; i += 16) store(to + i, set1(0.0f));
    };
    pack_rows(k, packed);
    if (backward) pack_rows(v, packed + (at.v - packed));
    float* const turned = packed + (at.turned - packed);
    pack_turned_pairs(keys, HS, backward ? k : v, width, turned, at.distance);
    for (int64_t i = HS * at.distance; i < padded(HS) * at.distance; i += 16) store(turned + i, set1(0.0f));
}

// x: 32 numbers of one key (rows of S^T) as bf16, y: of the next. In pairs they stand in this order of queries:
static inline int query_of(int column) { return column % 16 / 4 * 8 + column / 16 * 4 + column % 4; }
static inline void store_pairs_of_keys(float* to, __m512i x, __m512i y) {
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(x, y));
    _mm512_storeu_si512(to + 16, _mm512_unpackhi_epi16(x, y));
}
static inline __m512i narrow(V first, V second) { return (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v); }

// to (rows, HS) at distance ld = factor[row] x^T, x (HS, padded to 32; 32) in the order of query_of().
static void store_turned(int rows, int HS, const float* x, const float* factor, bf16* to, int64_t ld) {
    alignas(16) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_loadu_si512(kInterleave);
    alignas(64) float strip[16 * 16], block[16 * 16], factors[kNR];
    for (int c = 0; c < kNR; ++c) factors[c] = factor[query_of(c)];
    for (int c = 0; c < kNR; c += 16) {
        const V f = load(factors + c);
        for (int d = 0; d < HS; d += 32) {
            for (int i = 0; i < 16; ++i) {  // rows d + 2 i and the next, in pairs
                const float* const at = x + (d + 2 * i) * kNR + c;
                const __m512i both = narrow(mul(load(at), f), mul(load(at + kNR), f));
                _mm512_storeu_si512(strip + 16 * i, _mm512_permutexvar_epi16(interleave, both));
            }
            transpose_strip(16, 16, strip, 16, block, 16);
            for (int i = 0; i < 16; ++i) {
                const int r = query_of(c + i);
                if (r >= rows) continue;
                const __m512i row = _mm512_loadu_si512(block + 16 * i);
                if (HS - d >= 32)
                    _mm512_storeu_si512(to + r * ld + d, row);
                else
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * ld + d), _mm512_castsi512_si256(row));
            }
        }
    }
}

// A block of 32 keys, of which `keys` exist, as the queries of a panel see it. On the diagonal they are the panel's own
// keys: query i sees the first i + 1.
struct Seen {
    int keys;
    bool diagonal;
    bool all() const { return keys >= kNR && !diagonal; }
    uint32_t lanes(int key) const { return key >= keys ? 0 : diagonal ? ~0u << key : ~0u; }
};
template <bool kAll>
static inline V only(uint32_t lanes, int half, V x) {
    return kAll ? x : V{_mm512_maskz_mov_ps(static_cast<__mmask16>(lanes >> 16 * half), x.v)};
}

// The largest score of each query so far: two chains for each half of the panel.
struct Top {
    V even[2], odd[2];

    // Two keys, S^T (2, 32).
    template <bool kAll>
    void two(const float* scores, uint32_t first, uint32_t second) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            const V x = load(scores + 16 * h), y = load(scores + kNR + 16 * h);
            even[h].v = _mm512_mask_max_ps(even[h].v, kAll ? 0xFFFF : first >> 16 * h, even[h].v, x.v);
            odd[h].v = _mm512_mask_max_ps(odd[h].v, kAll ? 0xFFFF : second >> 16 * h, odd[h].v, y.v);
        }
    }
    // Keys from .. to of a block.
    void look(const float* scores, const Seen& seen, int from, int to) {
        if (seen.all())
            for (int i = from; i < to; i += 2) two<true>(scores + i * kNR, 0, 0);
        else
            for (int i = from; i < to; i += 2) two<false>(scores + i * kNR, seen.lanes(i), seen.lanes(i + 1));
    }
};

// P^T of a block, not yet divided by its sums, in pairs of keys: (16, 32), which may stand where its S^T (32, 32) does
// or before.
struct Weights {
    V scale, minus_m0, minus_m1, total0, total1;

    template <bool kAll>
    __m512i key(const float* scores, uint32_t seen) {
        const V e0 = only<kAll>(seen, 0, exp_rough(fma(load(scores), scale, minus_m0)));
        const V e1 = only<kAll>(seen, 1, exp_rough(fma(load(scores + 16), scale, minus_m1)));
        total0 = add(total0, e0), total1 = add(total1, e1);
        return narrow(e0, e1);
    }
    template <bool kAll>
    void block(const float* scores, const Seen& seen, float* pairs) {
        for (int i = 0; i < kNR; i += 2) {
            const __m512i first = key<kAll>(scores + i * kNR, seen.lanes(i));
            store_pairs_of_keys(pairs + i / 2 * kNR, first, key<kAll>(scores + (i + 1) * kNR, seen.lanes(i + 1)));
        }
    }
};

static void attention_bf16(const AttentionShare<bf16>& s, float* scratch) {
    const Tiles tiles{};
    const int HS = s.HS, wide = padded(HS), units = pairs_of(HS);
    const int prompt = padded(s.keys0), columns = prompt + padded(s.first + s.rows);
    const PackedKeys keys0 = packed_keys(s.packed0, s.total0, HS), keys1 = packed_keys(s.packed1, s.total1, HS);
    float* const q = scratch;               // (units, 32)
    float* const scores = q + units * kNR;  // S^T (columns, 32), and in the same place P^T in pairs (columns / 2, 32)
    float* const out = scores + columns * kNR;  // O^T (HS, 32)
    pack_b_columns_pairs(s.rows, HS, s.q, s.width, q, kNR, out + wide * kNR);
    const auto seen = [&](int c) {
        return c < prompt ? Seen{s.keys0 - c, false} : Seen{s.first + s.rows - (c - prompt), c - prompt == s.first};
    };

    // Beside the scores of a block, the largest of the one before: some of its keys, in twos, at every step.
    const int slice = (Sums::kRows * 16 / units + 1) / 2 * 2;
    const V least = set1(-__builtin_inff());
    Top top{{least, least}, {least, least}};
    for (int c = 0; c < columns; c += kNR) {
        const float* const k = c < prompt ? keys0.k + c * units : keys1.k + (c - prompt) * units;
        int from = c > 0 ? 0 : kNR;
        block_pairs<false>(units, k, units, q, scores + c * kNR, false, [&] {
            const int to = from + slice < kNR ? from + slice : kNR;
            top.look(scores + (c - kNR) * kNR, seen(c - kNR), from, to);
            from = to;
        });
    }
    top.look(scores + (columns - kNR) * kNR, seen(columns - kNR), 0, kNR);

    // Beside the weights of a block, its part of the first columns of O.
    const V scale = set1(1.0f / __builtin_sqrtf(static_cast<float>(HS))), zero = set1(0.0f);
    const V m0 = mul(max(top.even[0], top.odd[0]), scale), m1 = mul(max(top.even[1], top.odd[1]), scale);
    Weights weights{scale, sub(zero, m0), sub(zero, m1), zero, zero};
    Sums sums(out);
    for (int c = 0; c < columns; c += kNR) {
        float* const pairs = scores + c / 2 * kNR;
        const Seen keys = seen(c);
        if (keys.all())
            weights.block<true>(scores + c * kNR, keys, pairs);
        else
            weights.block<false>(scores + c * kNR, keys, pairs);
        const PackedKeys& from = c < prompt ? keys0 : keys1;
        sums.add<false>(16, from.turned + (c < prompt ? c : c - prompt) / 2, from.distance, pairs, [] {});
    }
    sums.end();
    if (constexpr int done = Sums::kRows; wide > done) {
        const float *const v0 = keys0.turned + done * keys0.distance, *const v1 = keys1.turned + done * keys1.distance;
        float* const rest = out + done * kNR;
        panel_pairs<true>(wide - done, prompt / 2, v0, keys0.distance, scores, kNR, rest, kNR, kNR, false);
        panel_pairs<true>(wide - done, (columns - prompt) / 2, v1, keys1.distance, scores + prompt / 2 * kNR, kNR, rest,
                          kNR, kNR, prompt > 0);
    }
    alignas(64) float m[kNR], all[kNR];
    store(m, m0), store(m + 16, m1);
    store(all, weights.total0), store(all + 16, weights.total1);
    for (int r = 0; r < s.rows; ++r) s.lse[r * s.H] = m[r] + __builtin_logf(all[r]);
    for (float& x : all) x = 1.0f / x;
    store_turned(s.rows, HS, out, all, s.o, s.o_width);
}

// A block of 32 keys and 32 queries backward.
struct Backward {
    const float *scores, *dp;              // S^T, dP^T (32, 32)
    const float *minus_lse, *minus_delta;  // (32); minus_delta, as dP, times the scale
    Seen seen;
    float *p, *ds;  // (32, 16) pairs over queries at distance kAlong
    float* pairs;   // dS^T in pairs of keys (16, 32)
};
// P^T = exp(scale S^T - lse), dS^T = P^T (scale dP^T - delta) of keys from .. to.
template <bool kAll>
static inline void weigh(const Backward& b, V scale, int from, int to) {
    const V lse[2] = {load(b.minus_lse), load(b.minus_lse + 16)};
    const V delta[2] = {load(b.minus_delta), load(b.minus_delta + 16)};
    for (int i = from; i < to; i += 2) {
        __m512i two[2];
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            const uint32_t seen = b.seen.lanes(i + k);
            V weight[2], d[2];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const int at = (i + k) * kNR + 16 * h;
                weight[h] = only<kAll>(seen, h, exp_rough(fma(load(b.scores + at), scale, lse[h])));
                d[h] = only<kAll>(seen, h, mul(weight[h], fma(load(b.dp + at), scale, delta[h])));
            }
            two[k] = narrow(d[0], d[1]);
            _mm512_storeu_si512(b.p + (i + k) * kAlong, narrow(weight[0], weight[1]));
            _mm512_storeu_si512(b.ds + (i + k) * kAlong, two[k]);
        }
        store_pairs_of_keys(b.pairs + i / 2 * kNR, two[0], two[1]);
    }
}

// A whole segment and every query head of its K/V head: first = 0, rows = the segment's, q, o, lse, d_o, dq at its
// first row and head. Blocks of kPanels panels: what a block adds to dk and dv of 32 keys is summed in the tiles.
static void attention_backward_bf16(const AttentionShare<bf16>& whole, float* scratch) {
    const Tiles tiles{};
    const int HS = whole.HS, wide = padded(HS), units = pairs_of(HS), prompt = padded(whole.keys0);
    const int64_t columns = prompt + padded(whole.total1);
    const PackedKeys keys0 = packed_keys(whole.packed0, whole.total0, HS);
    const PackedKeys keys1 = packed_keys(whole.packed1, whole.total1, HS);
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(HS));
    const V scale = set1(factor);
    float* const q = scratch;  // panels of (units, 32)
    float* const d_o = q + kPanels * kNR * units;
    float* const q_rows = d_o + kPanels * kNR * units;  // panels of 32 columns, each (pairs of rows, 32)
    float* const d_o_rows = q_rows + kPanels * kNR * wide / 2;
    float* const scores = d_o_rows + kPanels * kNR * wide / 2;  // two (32 keys, 32), taken in turn
    float* const dp = scores + 2 * kNR * kNR;
    float* const p = dp + 2 * kNR * kNR;  // (32 keys, pairs over queries)
    float* const ds = p + kNR * kAlong;
    float* const dq = ds + kNR * kAlong;      // (HS, 32)
    float* const ds_pairs = dq + wide * kNR;  // panels of (pairs of keys, 32)
    float* const temp = ds_pairs + columns / 2 * kNR * kPanels;
    const auto query_block = [&](const AttentionShare<bf16>& s) {
        const int panels = (s.rows + kNR - 1) / kNR;
        alignas(64) float minus_lse[kNR * kPanels] = {}, minus_delta[kNR * kPanels] = {}, ones[kNR];
        for (int j = 0; j < panels; ++j) {
            const int first = j * kNR, rows = s.rows - first < kNR ? s.rows - first : kNR;
            pack_b_columns_pairs(rows, HS, s.q + first * s.width, s.width, q + first * units, kNR, temp);
            pack_b_columns_pairs(rows, HS, s.d_o + first * s.o_width, s.o_width, d_o + first * units, kNR, temp);
        }
        for (int d = 0; d < HS; d += kNR) {
            const int n = HS - d < kNR ? HS - d : kNR;
            pack_b_rows_pairs(n, s.rows, s.q + d, s.width, q_rows + d / 2 * panels * kNR, kNR);
            pack_b_rows_pairs(n, s.rows, s.d_o + d, s.o_width, d_o_rows + d / 2 * panels * kNR, kNR);
        }
        for (int r = 0; r < s.rows; ++r) {
            V dot = set1(0.0f);
            for (int d = 0; d < HS; d += 16)
                dot = fma(load(s.d_o + r * s.o_width + d), load(s.o + r * s.o_width + d), dot);
            minus_lse[r] = -s.lse[r * s.H], minus_delta[r] = -factor * sum(dot);
        }
        // The block whose scores are ready: it is weighed beside the products of the next one's scores, some of its
        // keys, in twos, at every step.
        const int slice = (Sums::kRows * 8 / units + 1) / 2 * 2;
        Backward ready{};
        int weighed = kNR, turn = 0;
        const auto weigh_until = [&](int to) {
            if (weighed == to) return;
            if (ready.seen.all())
                weigh<true>(ready, scale, weighed, to);
            else
                weigh<false>(ready, scale, weighed, to);
            weighed = to;
        };
        // The keys whose P^T and dS^T are ready when `ready` is weighed: dv, dk += .
        struct {
            int n = 0, j0 = 0;
            float *dk = nullptr, *dv = nullptr;
        } sum;
        const auto add_up = [&] {
            for (int d = 0; d < HS; d += kNR) {
                const int64_t rows = d / 2 * panels * kNR + sum.j0 * kNR / 2 * kNR;
                const int width = HS - d < kNR ? HS - d : kNR, along = sum.j0 * kNR / 2;
                const int row_pairs = (panels - sum.j0) * kNR / 2;
                panel_pairs(sum.n, row_pairs, p + along, kAlong, d_o_rows + rows, kNR, sum.dv + d, HS, width, true);
                panel_pairs(sum.n, row_pairs, ds + along, kAlong, q_rows + rows, kNR, sum.dk + d, HS, width, true);
            }
            sum.n = 0;
        };
        // `count` keys, S^T's rows from `base` on; own keys are seen from their own query on.
        const auto see = [&](const PackedKeys& keys, int count, int base, bool own, float* dk, float* dv) {
            for (int c = 0; c < count; c += kNR) {
                const int n = count - c < kNR ? count - c : kNR;
                const int j0 = own && c > s.first ? (c - s.first) / kNR : 0;  // panels before do not see these keys
                for (int j = j0; j < panels; ++j, turn ^= 1) {
                    const auto meanwhile = [&] {
                        const int to = weighed + slice;
                        weigh_until(to < kNR ? to : kNR);
                    };
                    const int64_t here = turn * kNR * kNR, queries = j * kNR * units;
                    block_pairs<false>(units, keys.k + c * units, units, q + queries, scores + here, false, meanwhile);
                    block_pairs<false>(units, keys.v + c * units, units, d_o + queries, dp + here, false, meanwhile);
                    weigh_until(kNR);
                    if (j == j0) {
                        if (sum.n) add_up();
                        sum.n = n, sum.j0 = j0, sum.dk = dk + c * HS, sum.dv = dv + c * HS;
                    }
                    ready = {scores + turn * kNR * kNR,
                             dp + turn * kNR * kNR,
                             minus_lse + j * kNR,
                             minus_delta + j * kNR,
                             {n, own && c == s.first + j * kNR},
                             p + j * kNR / 2,
                             ds + j * kNR / 2,
                             ds_pairs + (j * columns + base + c) / 2 * kNR};
                    weighed = 0;
                }
            }
        };
        see(keys0, s.keys0, 0, false, s.dk0, s.dv0);
        see(keys1, s.first + s.rows, prompt, true, s.dk1, s.dv1);
        weigh_until(kNR);
        add_up();
        for (float& one : ones) one = 1.0f;
        for (int j = 0; j < panels; ++j) {
            const int first = j * kNR, rows = s.rows - first < kNR ? s.rows - first : kNR;
            const float* const pairs = ds_pairs + j * columns / 2 * kNR;
            panel_pairs<true>(wide, prompt / 2, keys0.turned, keys0.distance, pairs, kNR, dq, kNR, kNR, false);
            panel_pairs<true>(wide, (s.first + first + kNR) / 2, keys1.turned, keys1.distance, pairs + prompt / 2 * kNR,
                              kNR, dq, kNR, kNR, prompt > 0);
            store_turned(rows, HS, dq, ones, s.dq + first * s.width, s.width);
        }
    };
    constexpr int block = kPanels * kNR;
    for (int h = 0; h < whole.heads; ++h)
        for (int first = 0; first < whole.rows; first += block) {
            AttentionShare<bf16> s = whole;
            s.first = first, s.rows = whole.rows - first < block ? whole.rows - first : block;
            s.q += first * s.width + h * HS, s.dq += first * s.width + h * HS;
            s.o += first * s.o_width + h * HS, s.d_o += first * s.o_width + h * HS;
            s.lse += first * s.H + h;
            query_block(s);
        }
}

#endif
