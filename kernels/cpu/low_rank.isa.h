// The low-rank terms of a linear (kernels/low_rank.h): S of all of them is packed once for a block of rows, side by
// side, and B for every panel of columns, with zeros in the columns that are not the term's.

// Floats that R numbers take in packed S and B.
static inline int rank_units(const LowRank<float>& t) { return t.R; }

// S, rows [row, row + M) -> (M, kALd) from column 0 on.
static void pack_low_rows(const GemmShare<float>& g, int64_t row, int M, float* to) {
    for (int i = 0; i < g.added_n; ++i) {
        const LowRank<float>& t = g.added[i];
        pack_rows(M, t.R, 1.0f, t.S + row * t.lds, t.lds, to);
        to += rank_units(t);
    }
}

// The columns [column, column + n) that the term has; false: none.
template <class T>
static inline bool columns_of(const LowRank<T>& t, int64_t column, int n, int* from, int* to) {
    const int64_t first = t.column - column, last = first + t.columns;
    *from = first > 0 ? static_cast<int>(first) : 0;
    *to = last < n ? static_cast<int>(last) : n;
    return *from < *to;
}

// B for columns [column, column + n) -> (R, width). false: the term has none of them.
static bool pack_low_panel(const LowRank<float>& t, bool turned, int64_t column, int n, float* to, int width) {
    int from, end;
    if (!columns_of(t, column, n, &from, &end)) return false;
    const float* B = t.B + (column - t.column) * (turned ? 1 : t.ldb);
    if (!turned && from == 0 && end == n) {
        pack_columns(n, t.R, B, t.ldb, to, width);
        return true;
    }
    for (int r = 0; r < t.R; ++r)
        for (int j = 0; j < width; ++j)
            to[r * width + j] = j < from || j >= end ? 0.0f : turned ? B[int64_t{r} * t.ldb + j] : B[j * t.ldb + r];
    return true;
}

#if defined(__AVX512BF16__)
static inline int rank_units(const LowRank<bf16>& t) { return pairs_of(t.R); }

template <class Out>
static void pack_low_rows(const GemmShare<bf16, Out>& g, int64_t row, int M, float* to) {
    for (int i = 0; i < g.added_n; ++i) {
        const LowRank<bf16>& t = g.added[i];
        pack_rows_pairs(M, t.R, t.S + row * t.lds, t.lds, to);
        to += rank_units(t);
    }
}

// (pairs_of(R), width) pairs.
static bool pack_low_panel(const LowRank<bf16>& t, bool turned, int64_t column, int n, float* to, int width) {
    int from, end;
    if (!columns_of(t, column, n, &from, &end)) return false;
    const bf16* B = t.B + (column - t.column) * (turned ? 1 : t.ldb);
    if (turned && from == 0 && end == n) {
        pack_b_rows_pairs(n, t.R, B, t.ldb, to, width);
        return true;
    }
    const int units = pairs_of(t.R);
    if (from == 0 && end == n && units <= 128) {
        float temp[16 * 128];
        pack_b_columns_pairs(n, t.R, B, t.ldb, to, width, temp);
        return true;
    }
    const auto half = [&](int r, int j) -> uint32_t {
        if (j < from || j >= end || r >= t.R) return 0;
        return (turned ? B[int64_t{r} * t.ldb + j] : B[j * t.ldb + r]).bits;
    };
    for (int p = 0; p < units; ++p)
        for (int j = 0; j < width; ++j) {
            const uint32_t pair = half(2 * p, j) | half(2 * p + 1, j) << 16;
            __builtin_memcpy(to + p * width + j, &pair, 4);
        }
    return true;
}
#endif

// The terms that columns [n0, n0 + n) of the share have. packed_s: what pack_low_rows() packed; to: room for B.
template <class T, class Out>
static LowPanel low_panel(const GemmShare<T, Out>& g, const float* packed_s, int n0, int n, float* to, int width) {
    LowPanel low;
    for (int i = 0; i < g.added_n; packed_s += rank_units(g.added[i++])) {
        if (!pack_low_panel(g.added[i], g.added_turned, g.first + n0, n, to, width)) continue;
        const int units = rank_units(g.added[i]);
        low.units[low.terms] = units, low.a[low.terms] = packed_s, low.b[low.terms++] = to;
        to += units * width;
    }
    return low;
}
