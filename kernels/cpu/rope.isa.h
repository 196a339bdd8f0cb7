// (a, b) -> (a cos - sign b sin, b cos + sign a sin) for the halves a = j, b = j + HS/2 of every q and k head, in
// place. table: (positions, HS/2, {cos, sin}); the row's cosines and sines are laid apart once and serve all its heads.

template <class T>
static void rope(int rows, int heads, int HS, int width, const int32_t* positions, const float* table, float sign,
                 T* qkv) {
    const int half = HS / 2;  // at most 128
    float cosines[128], sines[128];
    for (int n = 0; n < rows; ++n) {
        const float* turn = table + int64_t{positions[n]} * half * 2;
        for (int j = 0; j < half; ++j) cosines[j] = turn[2 * j], sines[j] = sign * turn[2 * j + 1];
        for (int h = 0; h < heads; ++h) {
            T* a = qkv + int64_t{n} * width + h * HS;
            T* b = a + half;
            for (int j = 0; j < half; j += 16) {
                const int left = half - j;
                const V x = load_up_to(a + j, left), y = load_up_to(b + j, left);
                const V c = load_up_to(cosines + j, left), s = load_up_to(sines + j, left);
                store_up_to(a + j, fnma(y, s, mul(x, c)), left);
                store_up_to(b + j, fma(x, s, mul(y, c)), left);
            }
        }
    }
}
