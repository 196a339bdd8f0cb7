// One new row of a sequence over its cache: o = softmax(q k^T / sqrt(HS)) v, per head. cache: (positions, 2, KV, HS).
// scores: (count) scratch. Memory-bound: every cached value is read once per query head that shares it.

template <class T>
static void decode_attention(int H, int KV, int HS, int count, const T* q, const T* cache, float* scores, T* o) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(HS));
    for (int h = 0; h < H; ++h, q += HS, o += HS) {
        const T* k = cache + (h / (H / KV)) * HS;
        const int64_t step = 2 * int64_t{KV} * HS;
        float top = -__builtin_inff();
        for (int j = 0; j < count; ++j) {
            V dot = set1(0.0f);
            for (int d = 0; d < HS; d += 16) dot = fma(load(q + d), load(k + j * step + d), dot);
            scores[j] = sum(dot) * scale;
            if (scores[j] > top) top = scores[j];
        }
        V total = set1(0.0f);
        for (int j = 0; j < count; j += 16) {
            const int left = count - j;
            const V e = exp(sub(load_up_to(scores + j, left), set1(top)));
            if (left >= 16) {
                store(scores + j, e);
                total = add(total, e);
            } else {
                store_n(scores + j, e, left);
                total = add(total, load_n(scores + j, left));
            }
        }
        const V inverse = set1(1.0f / sum(total));
        for (int d = 0; d < HS; d += 16) {
            V out = set1(0.0f);
            const T* v = k + KV * HS + d;
            for (int j = 0; j < count; ++j) out = fma(set1(scores[j]), load(v + j * step), out);
            store(o + d, mul(out, inverse));
        }
    }
}
