// y = x r w, r = 1 / sqrt(mean(x^2) + eps), and its gradient by x; with the residual's addition in the same pass.
// A row stays in L1 between its two passes. The sum of squares runs in 16 lanes, folded by one fixed tree.

static float sum_of_squares(int C, const float* x) {
    V squares = set1(0.0f);
    int c = 0;
    for (; c + 16 <= C; c += 16) squares = fma(load(x + c), load(x + c), squares);
    if (c < C) {
        const V last = load_n(x + c, C - c);
        squares = fma(last, last, squares);
    }
    return sum(squares);
}

static void normalize(int rows, int C, const float* x, const float* w, const float* r, float* y) {
    for (int n = 0; n < rows; ++n, x += C, y += C) {
        const V rn = set1(r[n]);
        int c = 0;
        for (; c + 16 <= C; c += 16) store(y + c, mul(mul(load(x + c), rn), load(w + c)));
        if (c < C) store_n(y + c, mul(mul(load_n(x + c, C - c), rn), load_n(w + c, C - c)), C - c);
    }
}

static void rmsnorm(int rows, int C, float eps, const float* x, const float* w, float* y, float* r) {
    for (int n = 0; n < rows; ++n, x += C, y += C) {
        r[n] = 1.0f / __builtin_sqrtf(sum_of_squares(C, x) / static_cast<float>(C) + eps);
        normalize(1, C, x, w, r + n, y);
    }
}

// x2 may be x; y may be d.
static void add_rmsnorm(int rows, int C, float eps, const float* x, const float* d, const float* w, float* x2, float* y,
                        float* r) {
    for (int n = 0; n < rows; ++n, x += C, d += C, x2 += C, y += C) {
        int c = 0;
        for (; c + 16 <= C; c += 16) store(x2 + c, add(load(x + c), load(d + c)));
        for (; c < C; ++c) x2[c] = x[c] + d[c];
        rmsnorm(1, C, eps, x2, w, y, r + n);
    }
}

// dx = r (w dy - x r^2 mean(x w dy)), added to dx when `accumulate`.
static void rmsnorm_backward(int rows, int C, const float* dy, const float* x, const float* w, const float* r, float* dx,
                             bool accumulate) {
    const V zero = set1(0.0f);
    for (int n = 0; n < rows; ++n, dy += C, x += C, dx += C) {
        V dot = zero;
        int c = 0;
        for (; c + 16 <= C; c += 16) dot = fma(mul(load(x + c), load(w + c)), load(dy + c), dot);
        if (c < C) dot = fma(mul(load_n(x + c, C - c), load_n(w + c, C - c)), load_n(dy + c, C - c), dot);
        const V pull = set1(sum(dot) / static_cast<float>(C) * r[n] * r[n]), rn = set1(r[n]);
        for (c = 0; c + 16 <= C; c += 16) {
            const V inner = fnma(load(x + c), pull, mul(load(w + c), load(dy + c)));
            store(dx + c, fma(rn, inner, accumulate ? load(dx + c) : zero));
        }
        if (c < C) {
            const int left = C - c;
            const V inner = fnma(load_n(x + c, left), pull, mul(load_n(w + c, left), load_n(dy + c, left)));
            store_n(dx + c, fma(rn, inner, accumulate ? load_n(dx + c, left) : zero), left);
        }
    }
}
