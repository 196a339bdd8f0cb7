// The next token from one row of logits, on the host: what every backend draws with, or is checked against.
//
// Tokens stand likeliest first, the lower id among equals, with weights e^((z - max) / temperature). Kept are the first
// top_k of them, of these the fewest whose weights reach the share top_p, of these the tokens that weigh at least min_p
// of the first. `random` points into the weights of what is left.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/philox.h"
#include "kernels/batch.h"

namespace orpo {

[[noreturn]] inline void refuse_nan_logits() {
    throw Error(Exit::kDiverged, "the model computes NaN; its weights or the adapter are damaged");
}

// logits: (V). random: uniform in [0, 1). Error(kDiverged) for NaN.
inline int32_t sample(std::span<const float> logits, const SampleRule& rule, double random) {
    const auto V = static_cast<int32_t>(logits.size());
    const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    for (const float z : logits)
        if (std::isnan(z)) refuse_nan_logits();
    if (rule.temperature <= 0 || rule.top_k == 1) return best;

    // Only as many as can be drawn are sorted.
    std::vector<int32_t> order(V);
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    int32_t count = rule.top_k > 0 ? std::min(rule.top_k, V) : V;
    if (count < V)
        std::partial_sort(order.begin(), order.begin() + count, order.end(), likelier);
    else
        std::sort(order.begin(), order.end(), likelier);

    std::vector<double> weight(count);
    double sum = 0;
    for (int32_t i = 0; i < count; ++i) {
        weight[i] = std::exp((static_cast<double>(logits[order[i]]) - logits[best]) / rule.temperature);
        sum += weight[i];
    }
    if (rule.top_p < 1) {
        double share = 0;
        int32_t kept = 0;
        while (kept < count && share < rule.top_p * sum) share += weight[kept++];
        count = kept, sum = share;
    }
    if (rule.min_p > 0) {
        int32_t kept = 0;
        double share = 0;
        while (kept < count && weight[kept] >= rule.min_p * weight[0]) share += weight[kept++];
        count = kept, sum = share;
    }
    double left = random * sum;
    for (int32_t i = 0; i < count; ++i) {
        left -= weight[i];
        if (left < 0) return order[i];
    }
    return order[count - 1];
}

// The random number of a draw: it depends on nothing but the seed, the text and the place in it.
inline double draw_random(const Draw& draw, int32_t text) {
    return uniform(philox(draw.key, {draw.place, static_cast<uint32_t>(text), 0, 0})[0]);
}

}  // namespace orpo
