// y = mask x / (1 - p), or y += mask x / (1 - p). The mask is a function of the element's place
// (kernels/dropout_mask.h): Philox4x32-10 of (step, pair and branch, position, tensor and channel / 4), 16 counters
// side by side.

static void philox_words(uint64_t key, uint32_t step, uint32_t pair, uint32_t position, uint32_t last,
                         uint32_t words[4][16]) {
    for (int i = 0; i < 16; ++i)
        words[0][i] = step, words[1][i] = pair, words[2][i] = position, words[3][i] = last + static_cast<uint32_t>(i);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < 16; ++i) {
            const uint64_t p0 = 0xD2511F53ull * words[0][i], p1 = 0xCD9E8D57ull * words[2][i];
            words[0][i] = static_cast<uint32_t>(p1 >> 32) ^ words[1][i] ^ k0;
            words[1][i] = static_cast<uint32_t>(p1);
            words[2][i] = static_cast<uint32_t>(p0 >> 32) ^ words[3][i] ^ k1;
            words[3][i] = static_cast<uint32_t>(p0);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static void dropout(int rows, int C, double p, uint64_t key, uint32_t step, uint32_t tensor, const int32_t* mask_pair,
                    const int32_t* positions, const float* x, float* y, bool add) {
    const float keep = static_cast<float>(1 / (1 - p));
    uint32_t words[4][16];
    for (int n = 0; n < rows; ++n, x += C, y += C)
        for (int c0 = 0; c0 < C; c0 += 64) {
            philox_words(key, step, static_cast<uint32_t>(mask_pair[n]), static_cast<uint32_t>(positions[n]),
                         tensor << 16 | static_cast<uint32_t>(c0 / 4), words);
            const int count = C - c0 < 64 ? C - c0 : 64;
            for (int c = 0; c < count; ++c) {
                const bool kept = (words[c % 4][c / 4] >> 8) * 0x1p-24 >= p;
                const float value = kept ? keep * x[c0 + c] : 0.0f;
                y[c0 + c] = add ? y[c0 + c] + value : value;
            }
        }
}
