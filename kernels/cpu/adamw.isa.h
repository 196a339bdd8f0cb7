// AdamW as torch.optim.AdamW (kernels.h), the squared norm for clipping, and weighted sums of rows.

// constants: {grad_scale, 1 - lr wd, 1 - beta1, beta2, 1 - beta2, lr / bias1, sqrt(bias2), eps}
static void adamw(int64_t n, const float constants[8], float* p, const float* g, float* m, float* v) {
    const V scale = set1(constants[0]), decay = set1(constants[1]), c1 = set1(constants[2]), b2 = set1(constants[3]);
    const V c2 = set1(constants[4]), rate = set1(constants[5]), root = set1(constants[6]), eps = set1(constants[7]);
    for (int64_t i = 0; i < n; i += 16) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        const bool full = left == 16;
        const V gi = mul(full ? load(g + i) : load_n(g + i, left), scale);
        const V m0 = full ? load(m + i) : load_n(m + i, left), v0 = full ? load(v + i) : load_n(v + i, left);
        const V p0 = mul(full ? load(p + i) : load_n(p + i, left), decay);
        const V m1 = add(m0, mul(c1, sub(gi, m0)));
        const V v1 = add(mul(b2, v0), mul(mul(c2, gi), gi));
        const V p1 = sub(p0, div(mul(rate, m1), add(div(sqrt(v1), root), eps)));
        if (full)
            store(m + i, m1), store(v + i, v1), store(p + i, p1);
        else
            store_n(m + i, m1, left), store_n(v + i, v1, left), store_n(p + i, p1, left);
    }
}

// In double; 16 running sums, folded in order.
static double squared_norm(int64_t n, const float* g) {
    double sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) sums[j] += static_cast<double>(g[i + j]) * g[i + j];
    for (int j = 0; i < n; ++i, ++j) sums[j] += static_cast<double>(g[i]) * g[i];
    double total = 0;
    for (const double s : sums) total += s;
    return total;
}

// y (n) = the sum over terms of weights[i] x[i].
template <class From, class To>
static void combine(int64_t n, int terms, const float* weights, const From* const* x, To* y) {
    for (int64_t i = 0; i < n; i += 16) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        V sum = set1(0.0f);
        for (int t = 0; t < terms; ++t) sum = fma(set1(weights[t]), load_up_to(x[t] + i, left), sum);
        store_up_to(y + i, sum, left);
    }
}
