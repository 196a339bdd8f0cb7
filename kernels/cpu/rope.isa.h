// (a, b) -> (a cos - sign b sin, b cos + sign a sin) for the halves a = j, b = j + HS/2 of every q and k head, in
// place. table: (positions, HS/2, {cos, sin}); the row's cosines and sines are laid apart once and serve all its heads.

static void rope(int rows, int heads, int HS, int width, const int32_t* positions, const float* table, float sign,
                 float* qkv) {
    const int half = HS / 2;  // at most 128
    float cosines[128], sines[128];
    for (int n = 0; n < rows; ++n) {
        const float* turn = table + int64_t{positions[n]} * half * 2;
        for (int j = 0; j < half; ++j) cosines[j] = turn[2 * j], sines[j] = sign * turn[2 * j + 1];
        for (int h = 0; h < heads; ++h) {
            float* a = qkv + int64_t{n} * width + h * HS;
            float* b = a + half;
            for (int j = 0; j < half; j += 16) {
                const int left = half - j;
                const V x = left >= 16 ? load(a + j) : load_n(a + j, left);
                const V y = left >= 16 ? load(b + j) : load_n(b + j, left);
                const V c = left >= 16 ? load(cosines + j) : load_n(cosines + j, left);
                const V s = left >= 16 ? load(sines + j) : load_n(sines + j, left);
                const V p = fnma(y, s, mul(x, c)), q = fma(x, s, mul(y, c));
                if (left >= 16)
                    store(a + j, p), store(b + j, q);
                else
                    store_n(a + j, p, left), store_n(b + j, q, left);
            }
        }
    }
}
