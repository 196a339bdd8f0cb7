// h = silu(g) u, silu(g) = g sigma(g); gradient: dg = dh u sigma (1 + g (1 - sigma)), du = dh g sigma, in place of g,
// u.

static inline V sigmoid(V g, float) { return div(set1(1.0f), add(set1(1.0f), exp(sub(set1(0.0f), g)))); }
#if defined(__AVX512BF16__)
// To 1e-4: stored as bf16, which rounds at 2e-3.
static inline V sigmoid(V g, bf16) { return {_mm512_rcp14_ps(add(set1(1.0f), exp_rough(sub(set1(0.0f), g))).v)}; }
#endif

template <class T>
static void swiglu(int rows, int I, const T* gu, T* h) {
    for (int n = 0; n < rows; ++n, gu += 2 * int64_t{I}, h += I)
        for (int i = 0; i < I; i += 16) {
            const int left = I - i;
            const V g = load_up_to(gu + i, left);
            store_up_to(h + i, mul(mul(g, sigmoid(g, T{})), load_up_to(gu + I + i, left)), left);
        }
}

template <class T>
static void swiglu_backward(int rows, int I, const T* dh, T* gu, T* h) {
    for (int n = 0; n < rows; ++n, gu += 2 * int64_t{I}, dh += I, h += h ? I : 0)
        for (int i = 0; i < I; i += 16) {
            const int left = I - i;
            const V g = load_up_to(gu + i, left), u = load_up_to(gu + I + i, left), d = load_up_to(dh + i, left);
            const V sigma = sigmoid(g, T{}), one = set1(1.0f);
            store_up_to(gu + i, mul(mul(mul(d, u), sigma), fma(g, sub(one, sigma), one)), left);
            store_up_to(gu + I + i, mul(mul(d, g), sigma), left);
            if (h) store_up_to(h + i, mul(mul(g, sigma), u), left);
        }
}
