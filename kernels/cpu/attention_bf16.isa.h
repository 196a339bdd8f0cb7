// attention.isa.h with bf16 operands and fp32 sums and soft-max. The loops over keys and blocks are the same;
// what differs is how operands are laid out as pairs (bf16.isa.h):
//   S = Q K^T, dP = dO V^T      A: rows of Q, dO as they are stored;  B: panels of K, V (HS pairs, kNR keys)
//   O = P V,   dQ = dS K        A: rows of P, dS in pairs over keys;  B: V, K in pairs of keys, (keys / 2, HS)
//   dV^T = dO^T P, dK^T = Q^T dS    A: columns of dO, Q in pairs over query rows;  B: P, dS in pairs of query rows
// The last two are summed turned, (HS, keys), in scratch, so that neither P nor dS has to be turned.
#if defined(__AVX512BF16__)

static constexpr int kBQ16 = 64;                                // query rows in a block
static constexpr int64_t kABlock = int64_t{kBQ16 + 32} * kALd;  // floats of one packed A block
static constexpr int64_t kTurned = int64_t{256 + 32} * kALd;    // and of one with HS rows

static int64_t attention_packed_bf16(int keys, int HS, bool backward) {
    return int64_t{padded(keys)} * (backward ? 2 : 1) * (pairs_of(HS) + HS / 2);
}
// Rows of `columns` floats lie one cache line further apart: columns are often a power of two, whose lines would share
// few sets of the cache.
static inline int64_t row_distance(int columns) { return int64_t{columns} + 16; }
static inline int score_blocks(int columns) { return (columns + kKC - 1) / kKC; }
static int64_t attention_scratch_bf16(int keys, int HS) {
    const int columns = padded(keys) + 2 * kNR;
    // Q and dO as rows and as columns; scores, dP and the pairs of P or dS; P and dS in pairs of rows; dk, dv turned; O
    // or dQ.
    return 2 * kABlock + 2 * kTurned + 3 * score_blocks(columns) * kABlock + (kBQ16 + 2 * HS) * row_distance(columns) +
           int64_t{kBQ16} * HS;
}

static void attention_pack_bf16(int keys, int HS, const bf16* k, const bf16* v, int64_t width, bool backward,
                                float* packed) {
    const int rows = padded(keys), units = pairs_of(HS);
    float* const kt = packed;
    float* const vn = kt + int64_t{rows} * units;
    float* const vt = vn + int64_t{rows} * HS / 2;
    float* const kn = vt + int64_t{rows} * units;
    float temp[16 * 128];  // HS <= 256
    for (int j = 0; j < rows; j += kNR) {
        const int left = keys - j < kNR ? keys - j : kNR;
        pack_b_columns_pairs(left, HS, k + j * width, width, kt + int64_t{j} * units, kNR, temp);
        if (backward) pack_b_columns_pairs(left, HS, v + j * width, width, vt + int64_t{j} * units, kNR, temp);
    }
    const auto row = [&](const bf16* x, int j, int d) {
        return j < keys ? halves(x + j * width + d) : _mm512_setzero_si512();
    };
    for (int j = 0; j < rows; j += 2)
        for (int d = 0; d < HS; d += 16) {
            store(vn + int64_t{j} * HS / 2 + d, pair_up(row(v, j, d), row(v, j + 1, d)));
            if (backward) store(kn + int64_t{j} * HS / 2 + d, pair_up(row(k, j, d), row(k, j + 1, d)));
        }
}

// Sub-arrays of packed keys: K panels, V pairs, V panels, K pairs.
static inline const float* packed_part(const float* packed, int total, int HS, int part) {
    const int64_t rows = padded(total), panels = rows * pairs_of(HS), pairs = rows * HS / 2;
    return packed + (part > 0 ? panels : 0) + (part > 1 ? pairs : 0) + (part > 2 ? panels : 0);
}
static inline float* block_at(float* blocks, int column, int shrink) {
    return blocks + column / kKC * kABlock + column % kKC / shrink;
}

static void score_block_bf16(const AttentionShare<bf16>& s, const Columns& cols, const float* a, int part,
                             float* scores) {
    const int units = pairs_of(s.HS);
    const float* prompt = s.keys0 ? packed_part(s.packed0, s.total0, s.HS, part) : nullptr;
    const float* own = packed_part(s.packed1, s.total1, s.HS, part);
    for (int c = 0; c < cols.end(); c += kNR) {
        const int key = c - cols.prompt;
        const float* b = c < cols.prompt ? prompt + int64_t{c} * units : own + int64_t{key} * units;
        const int r0 = key > cols.first ? (key - cols.first) / 32 * 32 : 0;  // rows above do not see this panel
        panel_pairs(cols.rows - r0, units, a + int64_t{r0} * kALd, kALd, b, kNR, block_at(scores, c, 1) + r0 * kALd,
                    kALd, kNR, false);
    }
}

// out (rows, HS) = weights (pairs over keys) times V or K in pairs of keys.
static void weigh_block_bf16(const AttentionShare<bf16>& s, const Columns& cols, float* weights, int part, float* out,
                             int64_t ldo) {
    const float* prompt = s.keys0 ? packed_part(s.packed0, s.total0, s.HS, part) : nullptr;
    const float* own = packed_part(s.packed1, s.total1, s.HS, part);
    for (int r = 0; r < cols.rows; r += 32) {
        const int rows = cols.rows - r < 32 ? cols.rows - r : 32;
        const int end = cols.prompt + padded(cols.first + r + rows);
        for (int c = 0; c < end;) {
            int stop = (c / kKC + 1) * kKC < end ? (c / kKC + 1) * kKC : end;
            if (c < cols.prompt && stop > cols.prompt) stop = cols.prompt;
            const float* b =
                c < cols.prompt ? prompt + int64_t{c} / 2 * s.HS : own + int64_t{c - cols.prompt} / 2 * s.HS;
            for (int d = 0; d < s.HS; d += kNR)
                panel_pairs(rows, (stop - c) / 2, block_at(weights, c, 2) + int64_t{r} * kALd, kALd, b + d, s.HS,
                            out + r * ldo + d, ldo, s.HS - d < kNR ? s.HS - d : kNR, c > 0);
            c = stop;
        }
    }
}

// to (rows, HS) at distance ld = x (rows, HS) times each row's factor, or as it is.
static void store_rows(int rows, int HS, const float* x, const float* factors, bf16* to, int64_t ld) {
    for (int r = 0; r < rows; ++r)
        for (int d = 0; d < HS; d += 16) {
            const V value = load(x + r * HS + d);
            store(to + r * ld + d, factors ? mul(value, set1(factors[r])) : value);
        }
}

static void attention_bf16(const AttentionShare<bf16>& s, float* scratch) {
    const Tiles tiles{};
    const Columns cols{s.keys0, padded(s.keys0), s.first, s.rows};
    const V scale = set1(1.0f / __builtin_sqrtf(static_cast<float>(s.HS)));
    float* const a = scratch;
    float* const out = a + kABlock;
    float* const scores = out + kBQ16 * s.HS;
    float* const weights = scores + score_blocks(cols.end()) * kABlock;
    pack_rows_pairs(s.rows, s.HS, s.q, s.width, a);
    score_block_bf16(s, cols, a, 0, scores);
    float inverse[kBQ16];
    for (int r = 0; r < s.rows; ++r) {
        const int64_t row = int64_t{r} * kALd;
        V top0 = set1(-__builtin_inff()), top1 = top0;
        for (int c = 0; c < cols.end(); c += kNR) {
            const float* at = block_at(scores, c, 1) + row;
            const int n = cols.seen(r, c, kNR);
            top0.v = _mm512_mask_max_ps(top0.v, lanes(n), top0.v, load(at).v);
            top1.v = _mm512_mask_max_ps(top1.v, lanes(n - 16), top1.v, load(at + 16).v);
        }
        const V m = mul(scale, set1(max_lane(max(top0, top1)))), minus_m = sub(set1(0.0f), m);
        V total = set1(0.0f);
        for (int c = 0; c < cols.end(); c += kNR) {
            const float* at = block_at(scores, c, 1) + row;
            const int n = cols.seen(r, c, kNR);
            V e0 = set1(0.0f), e1 = e0;
            if (n > 0) {
                e0 = exp_rough(fma(load(at), scale, minus_m)), e1 = exp_rough(fma(load(at + 16), scale, minus_m));
                if (n < kNR) e0 = first_lanes(e0, n), e1 = first_lanes(e1, n - 16);
                total = add(total, add(e0, e1));
            }
            store_pairs(block_at(weights, c, 2) + row, e0, e1);
        }
        const float all = sum(total);
        s.lse[r * s.H] = max_lane(m) + __builtin_logf(all);
        inverse[r] = 1.0f / all;
    }
    weigh_block_bf16(s, cols, weights, 1, out, s.HS);
    store_rows(s.rows, s.HS, out, inverse, s.o, s.o_width);
}

// A whole segment and every query head of its K/V head: first = 0, rows = the segment's, q, o, lse, d_o, dq at its
// first row and head. dk and dv are summed in scratch and written at the end.
static void attention_backward_bf16(const AttentionShare<bf16>& whole, float* scratch) {
    const Tiles tiles{};
    const int HS = whole.HS, prompt = padded(whole.keys0), columns = prompt + padded(whole.total1);
    const V scale = set1(1.0f / __builtin_sqrtf(static_cast<float>(HS)));
    const int blocks = score_blocks(columns);
    float* const q = scratch;
    float* const d_o = q + kABlock;
    float* const q_turned = d_o + kABlock;
    float* const d_o_turned = q_turned + kTurned;
    float* const scores = d_o_turned + kTurned;
    float* const dp = scores + blocks * kABlock;
    float* const ds = dp + blocks * kABlock;  // pairs over keys
    const int64_t ld = row_distance(columns);
    float* const p_rows = ds + blocks * kABlock;  // (kBQ16 / 2, columns) pairs of rows
    float* const ds_rows = p_rows + kBQ16 / 2 * ld;
    float* const dk = ds_rows + kBQ16 / 2 * ld;  // (HS, columns)
    float* const dv = dk + HS * ld;
    float* const dq = dv + HS * ld;  // (kBQ16, HS)
    for (int64_t i = 0; i < 2 * HS * ld; i += 16) store(dk + i, set1(0.0f));
    const auto query_block = [&](const AttentionShare<bf16>& s) {
        const int first = s.first;
        const Columns cols{s.keys0, prompt, first, s.rows};
        pack_rows_pairs(s.rows, HS, s.q, s.width, q);
        pack_rows_pairs(s.rows, HS, s.d_o, s.o_width, d_o);
        pack_turned_pairs(s.rows, HS, s.q, s.width, q_turned);
        pack_turned_pairs(s.rows, HS, s.d_o, s.o_width, d_o_turned);
        score_block_bf16(s, cols, q, 0, scores);
        score_block_bf16(s, cols, d_o, 2, dp);
        const int row_pairs = (s.rows + 31) / 32 * 16;
        for (int p = 0; p < row_pairs; ++p) {
            V delta[2], minus_lse[2];
            for (int h = 0; h < 2; ++h) {
                const int r = 2 * p + h;
                V dot = set1(0.0f);
                for (int d = 0; r < s.rows && d < HS; d += 16)
                    dot = fma(load(s.d_o + r * s.o_width + d), load(s.o + r * s.o_width + d), dot);
                delta[h] = set1(sum(dot)), minus_lse[h] = set1(r < s.rows ? -s.lse[r * s.H] : 0.0f);
            }
            for (int c = 0; c < cols.end(); c += kNR) {
                V weight[2][2], d[2][2];  // [row][half]
                for (int h = 0; h < 2; ++h)
                    for (int j = 0; j < 2; ++j) {
                        const int r = 2 * p + h, n = r < s.rows ? cols.seen(r, c + 16 * j) : 0;
                        const int64_t at = int64_t{r} * kALd + 16 * j;
                        weight[h][j] = d[h][j] = set1(0.0f);
                        if (n == 0) continue;
                        weight[h][j] = exp_rough(fma(load(block_at(scores, c, 1) + at), scale, minus_lse[h]));
                        if (n < 16) weight[h][j] = first_lanes(weight[h][j], n);
                        d[h][j] = mul(mul(weight[h][j], scale), sub(load(block_at(dp, c, 1) + at), delta[h]));
                        if (n < 16) d[h][j] = first_lanes(d[h][j], n);
                    }
                for (int j = 0; j < 2; ++j) {
                    store(p_rows + p * ld + c + 16 * j, pair_up(weight[0][j], weight[1][j]));
                    store(ds_rows + p * ld + c + 16 * j, pair_up(d[0][j], d[1][j]));
                }
                for (int h = 0; h < 2; ++h)
                    store_pairs(block_at(ds, c, 2) + int64_t{2 * p + h} * kALd, d[h][0], d[h][1]);
            }
        }
        weigh_block_bf16(s, cols, ds, 3, dq, HS);
        store_rows(s.rows, HS, dq, nullptr, s.dq, s.width);
        for (int c = 0; c < cols.end(); c += kNR) {
            const int key = c - prompt, p0 = key > first ? (key - first) / 32 * 16 : 0;  // rows above do not see it
            panel_pairs(HS, row_pairs - p0, d_o_turned + p0, kALd, p_rows + p0 * ld + c, static_cast<int>(ld), dv + c,
                        ld, kNR, true);
            panel_pairs(HS, row_pairs - p0, q_turned + p0, kALd, ds_rows + p0 * ld + c, static_cast<int>(ld), dk + c,
                        ld, kNR, true);
        }
    };
    for (int h = 0; h < whole.heads; ++h)
        for (int first = 0; first < whole.rows; first += kBQ16) {
            AttentionShare<bf16> s = whole;
            s.first = first, s.rows = whole.rows - first < kBQ16 ? whole.rows - first : kBQ16;
            s.q += first * s.width + h * HS, s.dq += first * s.width + h * HS;
            s.o += first * s.o_width + h * HS, s.d_o += first * s.o_width + h * HS;
            s.lse += first * s.H + h;
            query_block(s);
        }
    for (int d = 0; d < HS; d += 16) {
        const float *from_k = dk + d * ld, *from_v = dv + d * ld;
        transpose_strip(16, whole.keys0, from_k, ld, whole.dk0 + d, HS);
        transpose_strip(16, whole.keys0, from_v, ld, whole.dv0 + d, HS);
        transpose_strip(16, whole.total1, from_k + prompt, ld, whole.dk1 + d, HS);
        transpose_strip(16, whole.total1, from_v + prompt, ld, whole.dv1 + d, HS);
    }
}

#endif
