// o = softmax(q k^T / sqrt(HS)) v over [prompt | chosen | rejected], and dq, dk, dv, one block of query rows of one
// head at a time. A pair is two segments: prompt and chosen rows (row i sees rows 0..i), and rejected rows, which see
// the prompt and the rejected rows up to themselves. The scores of a block, kBQ rows by the keys they see, live in
// scratch: memory grows with T, never with T x T, and the soft-max needs no rescaling.
//
// Keys are packed once per segment and K/V head: panels of K^T (HS, kNR), then V (keys, HS); for backward also panels
// of V^T and K (keys, HS). A row's columns are [the prompt's keys, padded to a panel | the own segment's keys]; padding
// gets weight 0. Panels beyond the diagonal are never computed. Every sum runs over the visible keys (for dk and dv:
// over the query rows) in order, so a row's bits do not depend on where its pair lies nor on the blocks. FLOPs: 4 HS
// per visible (row, key) forward, 10 HS backward (the scores are made again).

static constexpr int kBQ = 4 * kMR;  // query rows in a block

static int attention_block() { return kBQ; }
static inline int padded(int keys) { return (keys + kNR - 1) / kNR * kNR; }
static int64_t attention_packed(int keys, int HS, bool backward) {
    return int64_t{padded(keys)} * HS * (backward ? 4 : 2);
}
static inline int64_t score_floats(int columns) { return (int64_t{columns} + kKC - 1) / kKC * kBQ * kALd; }
static int64_t attention_scratch(int keys, int) {
    return 2 * score_floats(padded(keys) + 2 * kNR) + 2 * int64_t{kBQ} * kALd;
}
// Where the scores of column `column` begin: cache blocks of kKC columns, each (kBQ, kALd), as packed A wants them.
static inline float* score_at(float* scores, int column) {
    return scores + int64_t{column / kKC} * kBQ * kALd + column % kKC;
}

static void attention_pack(int keys, int HS, const float* k, const float* v, int64_t width, bool backward,
                           float* packed) {
    const int rows = padded(keys);
    float* const kt = packed;
    float* const vn = packed + int64_t{rows} * HS;
    float* const vt = vn + int64_t{rows} * HS;
    float* const kn = vt + int64_t{rows} * HS;
    for (int j = 0; j < rows; j += kNR) {
        const int left = keys - j < kNR ? keys - j : kNR;
        pack_columns(left, HS, k + j * width, width, kt + int64_t{j} * HS, kNR);
        if (backward) pack_columns(left, HS, v + j * width, width, vt + int64_t{j} * HS, kNR);
    }
    for (int j = 0; j < rows; ++j)
        for (int d = 0; d < HS; d += 16) {
            store(vn + int64_t{j} * HS + d, j < keys ? load(v + j * width + d) : set1(0.0f));
            if (backward) store(kn + int64_t{j} * HS + d, j < keys ? load(k + j * width + d) : set1(0.0f));
        }
}

// What a block sees: columns [0, prompt) are the prompt's keys (the first keys0 of them real), the own keys follow.
struct Columns {
    int keys0, prompt, first, rows;
    int end() const { return prompt + padded(first + rows); }  // one past the last computed column
    // Of the `count` columns from `c`, how many does row r see? They are the first ones.
    int seen(int r, int c, int count = 16) const {
        const int left = (c < prompt ? keys0 : prompt + first + r + 1) - c;
        return left < 0 ? 0 : left < count ? left : count;
    }
};

// scores = A (rows, HS; packed) times the panels of every visible key.
static void score_block(const AttentionShare<float>& s, const Columns& cols, const float* a, int64_t skip,
                        float* scores) {
    for (int c = 0; c < cols.prompt; c += kNR)
        panel<false>(s.rows, s.HS, a, 0, s.packed0 + skip * padded(s.total0) * s.HS + int64_t{c} * s.HS, kNR,
                     score_at(scores, c), kALd, kNR, false);
    for (int c = cols.prompt; c < cols.end(); c += kNR) {
        const int key = c - cols.prompt, r0 = key > s.first ? key - s.first : 0;  // rows above r0 do not see this panel
        panel<false>(s.rows - r0, s.HS, a + int64_t{r0} * kALd, 0,
                     s.packed1 + skip * padded(s.total1) * s.HS + int64_t{key} * s.HS, kNR,
                     score_at(scores, c) + int64_t{r0} * kALd, kALd, kNR, false);
    }
}

// out (rows, HS) at distance ldo = weights times the (keys, HS) matrices kept `skip` sub-arrays into the packed keys.
static void weigh_block(const AttentionShare<float>& s, const Columns& cols, float* weights, int64_t skip, float* out,
                        int64_t ldo) {
    for (int r = 0; r < s.rows; r += kMR) {
        const int rows = s.rows - r < kMR ? s.rows - r : kMR;
        const int end = cols.prompt + s.first + r + rows;
        for (int c = 0; c < end;) {
            int stop = (c / kKC + 1) * kKC < end ? (c / kKC + 1) * kKC : end;
            if (c < cols.prompt && stop > cols.prompt) stop = cols.prompt;
            const float* b = c < cols.prompt
                                 ? s.packed0 + skip * padded(s.total0) * s.HS + int64_t{c} * s.HS
                                 : s.packed1 + skip * padded(s.total1) * s.HS + int64_t{c - cols.prompt} * s.HS;
            for (int d = 0; d < s.HS; d += kNR) {
                const int n = s.HS - d < kNR ? s.HS - d : kNR;
                panel<false>(rows, stop - c, score_at(weights, c) + int64_t{r} * kALd, 0, b + d, s.HS,
                             out + r * ldo + d, ldo, n, c > 0);
            }
            c = stop;
        }
    }
}

static void attention(const AttentionShare<float>& s, float* scratch) {
    const Columns cols{s.keys0, padded(s.keys0), s.first, s.rows};
    float* const a = scratch;
    float* const scores = scratch + 2 * int64_t{kBQ} * kALd;
    pack_rows(s.rows, s.HS, 1.0f / __builtin_sqrtf(static_cast<float>(s.HS)), s.q, s.width, a);
    score_block(s, cols, a, 0, scores);
    float inverse[kBQ];
    for (int r = 0; r < s.rows; ++r) {
        V top = set1(-__builtin_inff());
        for (int c = 0; c < cols.end(); c += 16) {
            const int n = cols.seen(r, c);
            const float* at = score_at(scores, c) + int64_t{r} * kALd;
            if (n == 16) {
                top = max(top, load(at));
            } else if (n > 0) {
                float lanes[16];
                for (int j = 0; j < 16; ++j) lanes[j] = j < n ? at[j] : -__builtin_inff();
                top = max(top, load(lanes));
            }
        }
        const float m = max_lane(top);
        V total = set1(0.0f);
        for (int c = 0; c < cols.end(); c += 16) {
            const int n = cols.seen(r, c);
            float* at = score_at(scores, c) + int64_t{r} * kALd;
            if (n == 16) {
                const V e = exp(sub(load(at), set1(m)));
                store(at, e);
                total = add(total, e);
            } else if (n == 0) {
                store(at, set1(0.0f));
            } else {
                float lanes[16];
                store(lanes, exp(sub(load_n(at, n), set1(m))));
                for (int j = n; j < 16; ++j) lanes[j] = 0.0f;
                store(at, load(lanes));
                total = add(total, load(lanes));
            }
        }
        const float all = sum(total);
        s.lse[r * s.H] = m + __builtin_logf(all);
        inverse[r] = 1.0f / all;
    }
    weigh_block(s, cols, scores, 1, s.o, s.o_width);
    for (int r = 0; r < s.rows; ++r)
        for (int d = 0; d < s.HS; d += 16) {
            float* o = s.o + r * s.o_width + d;
            store(o, mul(load(o), set1(inverse[r])));
        }
}

// sums (keys, HS) += weights^T B, where B (rows, HS) at distance ldb belongs to the block's query rows.
static void gather_block(const AttentionShare<float>& s, const Columns& cols, float* weights, const float* B,
                         int64_t ldb, float* sums0, float* sums1) {
    for (int c = 0; c < cols.end(); c += kNR) {
        const bool prompt = c < cols.prompt;
        const int key = prompt ? c : c - cols.prompt;
        const int total = prompt ? s.keys0 : s.first + s.rows;
        const int keys = total - key < kNR ? total - key : kNR;
        const int r0 = !prompt && key > s.first ? key - s.first : 0;
        float* sums = (prompt ? sums0 : sums1) + int64_t{key} * s.HS;
        for (int d = 0; d < s.HS; d += kNR)
            panel<true>(keys, s.rows - r0, score_at(weights, c) + int64_t{r0} * kALd, kALd, B + r0 * ldb + d, ldb,
                        sums + d, s.HS, s.HS - d < kNR ? s.HS - d : kNR, true);
    }
}

// P = exp(S - lse);  dV += P^T dO;  dP = dO V^T;  dS = P (dP - rowsum(dO O)) / sqrt(HS);  dQ = dS K;  dK += dS^T Q
static void attention_backward_head(const AttentionShare<float>& s, float* scratch) {
    const Columns cols{s.keys0, padded(s.keys0), s.first, s.rows};
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(s.HS));
    float* const q = scratch;
    float* const d_o = scratch + int64_t{kBQ} * kALd;
    float* const p = scratch + 2 * int64_t{kBQ} * kALd;
    float* const ds = p + score_floats(cols.end());
    pack_rows(s.rows, s.HS, scale, s.q, s.width, q);
    pack_rows(s.rows, s.HS, 1.0f, s.d_o, s.o_width, d_o);
    score_block(s, cols, q, 0, p);
    score_block(s, cols, d_o, 2, ds);
    for (int r = 0; r < s.rows; ++r) {
        V dot = set1(0.0f);
        for (int d = 0; d < s.HS; d += 16)
            dot = fma(load(s.d_o + r * s.o_width + d), load(s.o + r * s.o_width + d), dot);
        const V delta = set1(sum(dot)), lse = set1(s.lse[r * s.H]);
        for (int c = 0; c < cols.end(); c += 16) {
            const int n = cols.seen(r, c);
            float* pr = score_at(p, c) + int64_t{r} * kALd;
            float* dr = score_at(ds, c) + int64_t{r} * kALd;
            if (n == 0) {
                store(pr, set1(0.0f)), store(dr, set1(0.0f));
                continue;
            }
            const V weight = exp(sub(load(pr), lse));
            const V d = mul(mul(weight, sub(load(dr), delta)), set1(scale));
            store(pr, weight), store(dr, d);
            for (int j = n; j < 16; ++j) pr[j] = 0.0f, dr[j] = 0.0f;
        }
    }
    weigh_block(s, cols, ds, 3, s.dq, s.width);
    gather_block(s, cols, p, s.d_o, s.o_width, s.dv0, s.dv1);
    gather_block(s, cols, ds, s.q, s.width, s.dk0, s.dk1);
}

// Every query head of the K/V head.
static void attention_backward(const AttentionShare<float>& whole, float* scratch) {
    AttentionShare<float> s = whole;
    for (int h = 0; h < whole.heads; ++h) {
        attention_backward_head(s, scratch);
        s.q += s.HS, s.dq += s.HS, s.o += s.HS, s.d_o += s.HS, ++s.lse;
    }
}
