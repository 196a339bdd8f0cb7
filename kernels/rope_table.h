// Cosines and sines of the rotary embedding, (positions, HS/2, {cos, sin}): angle = position * theta^(-2j/HS).
// Frequencies and angles are rounded to fp32 in every backend, as the models were trained and as transformers does it:
// at position 1000 the rounding of theta^(-2j/HS) turns q and k by up to 4e-5, and parity needs the same turn.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace orpo {

template <class F>
std::vector<F> rope_table(int positions, int HS, double theta) {
    const int half = HS / 2;
    std::vector<F> table(int64_t{positions} * half * 2);
    for (int j = 0; j < half; ++j) {
        const float exponent = static_cast<float>(2 * j) / static_cast<float>(HS);
        const float frequency = 1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
        for (int p = 0; p < positions; ++p) {
            const double angle = static_cast<float>(p) * frequency;
            table[(int64_t{p} * half + j) * 2] = static_cast<F>(static_cast<float>(std::cos(angle)));
            table[(int64_t{p} * half + j) * 2 + 1] = static_cast<F>(static_cast<float>(std::sin(angle)));
        }
    }
    return table;
}

}  // namespace orpo
