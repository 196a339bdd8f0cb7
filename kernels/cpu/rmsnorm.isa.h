// y = x r w, r = 1 / sqrt(mean(x^2) + eps), and its gradient by x; with the residual's addition in the same pass.
// A row stays in L1 between its two passes. The sum of squares runs in 16 lanes, folded by one fixed tree.

template <class T>
static void normalize(int rows, int C, const T* x, const float* w, const float* r, T* y, int ldy) {
    for (int n = 0; n < rows; ++n, x += C, y += ldy) {
        const V rn = set1(r[n]);
        for (int c = 0; c < C; c += 16) {
            const int left = C - c;
            store_up_to(y + c, mul(mul(load_up_to(x + c, left), rn), load_up_to(w + c, left)), left);
        }
    }
}

template <class T>
static void rmsnorm(int rows, int C, float eps, const T* x, const float* w, T* y, int ldy, float* r) {
    for (int n = 0; n < rows; ++n, x += C, y += ldy) {
        V squares = set1(0.0f);
        for (int c = 0; c < C; c += 16) {
            const V xc = load_up_to(x + c, C - c);
            squares = fma(xc, xc, squares);
        }
        r[n] = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(C) + eps);
        normalize(1, C, x, w, r + n, y, ldy);
    }
}

// x2 may be x; y may be d. bf16: x_low (null: zeros) is added too, and x2_low (may be x_low) gets what rounding x2 cut
// off; r and y are those of the whole sum.
template <class T>
static void add_rmsnorm(int rows, int C, float eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy,
                        float* r, const T* x_low, T* x2_low) {
    for (int n = 0; n < rows; ++n, y += ldy) {
        const int64_t at = int64_t{n} * C;
        V squares = set1(0.0f);
        for (int c = 0; c < C; c += 16) {
            const int left = C - c;
            V s = load_up_to(x + at + c, left);
            if (x_low) s = add(s, load_up_to(x_low + at + c, left));
            s = add(s, load_up_to(d + at + c, left));
            const V kept = rounded(s, T{});
            store_up_to(x2 + at + c, kept, left);
            if (x2_low) {
                const V low = rounded(sub(s, kept), T{});
                store_up_to(x2_low + at + c, low, left);
                s = add(kept, low);
            } else {
                s = kept;
            }
            squares = fma(s, s, squares);
        }
        const float rn = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(C) + eps);
        r[n] = rn;
        for (int c = 0; c < C; c += 16) {
            const int left = C - c;
            V s = load_up_to(x2 + at + c, left);
            if (x2_low) s = add(s, load_up_to(x2_low + at + c, left));
            store_up_to(y + c, mul(mul(s, set1(rn)), load_up_to(w + c, left)), left);
        }
    }
}

// dx = r (w dy - x r^2 mean(x w dy)), added to dx when `accumulate`.
template <class T>
static void rmsnorm_backward(int rows, int C, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                             bool accumulate) {
    const V zero = set1(0.0f);
    for (int n = 0; n < rows; ++n, dy += C, x += C, dx += lddx) {
        V dot = zero;
        for (int c = 0; c < C; c += 16) {
            const int left = C - c;
            dot = fma(mul(load_up_to(x + c, left), load_up_to(w + c, left)), load_up_to(dy + c, left), dot);
        }
        const V pull = set1(sum(dot) / static_cast<float>(C) * r[n] * r[n]), rn = set1(r[n]);
        for (int c = 0; c < C; c += 16) {
            const int left = C - c;
            const V wdy = mul(load_up_to(w + c, left), load_up_to(dy + c, left));
            const V inner = fnma(load_up_to(x + c, left), pull, wdy);
            store_up_to(dx + c, fma(rn, inner, accumulate ? load_up_to(dx + c, left) : zero), left);
        }
    }
}
