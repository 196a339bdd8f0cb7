// y = mask x / (1 - p), or y += mask x / (1 - p). The mask is a function of the element's place
// (kernels/dropout_mask.h): Philox4x32-10 of (step, pair and branch, position, tensor and channel / 4), 16 counters
// side by side, whose words decide 64 neighbouring channels. uniform(word) >= p is a comparison of the word's upper 24
// bits.

// factors (64): `keep` or 0 for channels 4 quad .. 4 quad + 63.
static void dropout_factors(uint64_t key, uint32_t step, uint32_t pair, uint32_t position, uint32_t quad,
                            uint32_t threshold, float keep, float* factors) {
    // One counter in each 64-bit lane; only the low halves count until the end.
    uint64_t words[4][16], quads[16];
    for (uint32_t i = 0; i < 16; ++i) quads[i] = quad + i;
    for (int i = 0; i < 16; i += kLanes64) {
        Lanes64 a = set64(step), b = set64(pair), c = set64(position), d = load64(quads + i);
        uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
        for (int round = 0; round < 10; ++round) {
            const Lanes64 p0 = mul64(set64(0xD2511F53u), a), p1 = mul64(set64(0xCD9E8D57u), c);
            a = xor64(xor64(high64(p1), b), set64(k0));
            b = p1;
            c = xor64(xor64(high64(p0), d), set64(k1));
            d = p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        store64(words[0] + i, a), store64(words[1] + i, b), store64(words[2] + i, c), store64(words[3] + i, d);
    }
    for (int i = 0; i < 16; ++i)
        for (int w = 0; w < 4; ++w)
            factors[4 * i + w] = static_cast<uint32_t>(words[w][i]) >> 8 >= threshold ? keep : 0.0f;
}

template <class T>
static void dropout(int rows, int C, double p, uint64_t key, uint32_t step, uint32_t tensor, const int32_t* mask_pair,
                    const int32_t* positions, const T* x, T* y, bool accumulate) {
    const float keep = static_cast<float>(1 / (1 - p));
    const uint32_t threshold = static_cast<uint32_t>(__builtin_ceil(p * 0x1p24));
    float factors[64];
    for (int n = 0; n < rows; ++n, x += C, y += C)
        for (int c0 = 0; c0 < C; c0 += 64) {
            dropout_factors(key, step, static_cast<uint32_t>(mask_pair[n]), static_cast<uint32_t>(positions[n]),
                            tensor << 16 | static_cast<uint32_t>(c0 / 4), threshold, keep, factors);
            const int count = C - c0 < 64 ? C - c0 : 64;
            for (int c = 0; c < count; c += 16) {  // what is dropped is 0, even where x is not finite
                const int left = count - c;
                const V f = load(factors + c), xc = load_up_to(x + c0 + c, left);
                V value = less(set1(0.0f), f, mul(f, xc), set1(0.0f));
                if (accumulate) value = add(load_up_to(y + c0 + c, left), value);
                store_up_to(y + c0 + c, value, left);
            }
        }
}
