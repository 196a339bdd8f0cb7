// h = silu(g) u, silu(g) = g sigma(g); gradient: dg = dh u sigma (1 + g (1 - sigma)), du = dh g sigma, in place of g,
// u.

static inline V sigmoid(V g) { return div(set1(1.0f), add(set1(1.0f), exp(sub(set1(0.0f), g)))); }

static void swiglu(int rows, int I, const float* gu, float* h) {
    for (int n = 0; n < rows; ++n, gu += 2 * int64_t{I}, h += I) {
        int i = 0;
        for (; i + 16 <= I; i += 16) {
            const V g = load(gu + i);
            store(h + i, mul(mul(g, sigmoid(g)), load(gu + I + i)));
        }
        if (i < I) {
            const V g = load_n(gu + i, I - i);
            store_n(h + i, mul(mul(g, sigmoid(g)), load_n(gu + I + i, I - i)), I - i);
        }
    }
}

static void swiglu_backward(int rows, int I, const float* dh, float* gu) {
    for (int n = 0; n < rows; ++n, gu += 2 * int64_t{I}, dh += I)
        for (int i = 0; i < I; i += 16) {
            const int left = I - i;
            const V g = left >= 16 ? load(gu + i) : load_n(gu + i, left);
            const V u = left >= 16 ? load(gu + I + i) : load_n(gu + I + i, left);
            const V d = left >= 16 ? load(dh + i) : load_n(dh + i, left);
            const V sigma = sigmoid(g), one = set1(1.0f);
            const V dg = mul(mul(mul(d, u), sigma), fma(g, sub(one, sigma), one));
            const V du = mul(mul(d, g), sigma);
            if (left >= 16)
                store(gu + i, dg), store(gu + I + i, du);
            else
                store_n(gu + i, dg, left), store_n(gu + I + i, du, left);
        }
}
