// What the kernel tests share: random values, comparisons that fail on NaN, and batches of ragged pairs.
//
// A test makes its inputs once and its outputs anew in every schedule, so that what one schedule wrote never hides what
// the next one left out:
//     const simt::Guarded<T> x(stored<T>(values));            // NaN around it
//     under_every_schedule([&] {
//         simt::Guarded<T> y(n);                               // NaN inside, sentinels around it
//         cuda::operation<T>(nullptr, ..., x.data(), y.data());
//         check_elements(y, expected);
//     });
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "base/philox.h"
#include "kernels/batch.h"
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

inline std::vector<double> random_values(size_t n, uint64_t seed, double scale = 1) {
    std::vector<double> values(n);
    for (size_t i = 0; i < n; ++i) {
        const auto words = philox(seed, {static_cast<uint32_t>(i), 0, 0, 0});
        // Nearly normal: the sum of four uniforms.
        values[i] = scale * 1.7 * (uniform(words[0]) + uniform(words[1]) + uniform(words[2]) + uniform(words[3]) - 2);
    }
    return values;
}

template <class T>
std::vector<T> stored(const std::vector<double>& values) {
    std::vector<T> out(values.size());
    for (size_t i = 0; i < values.size(); ++i) out[i] = from_float<T>(static_cast<float>(values[i]));
    return out;
}
template <class T>
std::vector<double> widened(const std::vector<T>& values) {
    std::vector<double> out(values.size());
    for (size_t i = 0; i < values.size(); ++i) out[i] = to_float(values[i]);
    return out;
}
inline std::vector<double> widened(const std::vector<double>& values) { return values; }
// What a kernel that stores T is given: the values after rounding.
template <class T>
std::vector<double> rounded(const std::vector<double>& values) {
    return widened(stored<T>(values));
}

// |a - b|^2 / |b|^2; NaN or infinity anywhere gives infinity.
inline double nmse(const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double error = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
        error += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
    }
    return norm > 0 ? error / norm : (error > 0 ? INFINITY : 0.0);
}
template <class T>
constexpr double tolerance() {  // NMSE
    return sizeof(T) == 2 ? 2e-5 : 1e-10;
}

// The largest |a - b| / (|b| + floor): no single element may be off. NaN or infinity anywhere gives infinity.
inline double worst(const std::vector<double>& a, const std::vector<double>& b, double floor = 0.1) {
    REQUIRE(a.size() == b.size());
    double error = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
        error = std::max(error, std::abs(a[i] - b[i]) / (std::abs(b[i]) + floor));
    }
    return error;
}
// For values that are computed in fp32 and rounded once: half an ulp of T, and what fp32 loses.
template <class T>
constexpr double element_tolerance() {
    return sizeof(T) == 2 ? 1.0 / 256 : 1e-5;
}
template <class T>
void check_elements(const simt::Guarded<T>& got, const std::vector<double>& expected,
                    double most = element_tolerance<T>()) {
    CHECK(worst(widened(got.values()), expected) <= most);
    CHECK(got.intact());
}
// Bit for bit, NaN included: moved values, and memory that a kernel had to leave alone.
template <class T>
void check_bits(const simt::Guarded<T>& got, const std::vector<T>& expected) {
    REQUIRE(got.size() == expected.size());
    CHECK(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(T)) == 0);
    CHECK(got.intact());
}

// Runs `body` under every schedule, or every step-th where it is long.
inline void under_every_schedule(const std::function<void()>& body, size_t step = 1) {
    for (size_t i = 0; i < simt::schedules().size(); i += step) {
        simt::machine().schedule = simt::schedules()[i];
        body();
    }
    simt::machine().schedule = {};
}

struct Lengths {
    int prompt, chosen, rejected;
};
// Pairs of those lengths, packed end to end; every response row is scored.
inline MicroBatch ragged_batch(const std::vector<Lengths>& lengths, int V) {
    MicroBatch mb;
    mb.dropout_key = 77, mb.step = 3;
    for (const Lengths& l : lengths) {
        PairSpan p;
        p.begin = static_cast<int32_t>(mb.ids.size());
        p.chosen = p.begin + l.prompt, p.rejected = p.chosen + l.chosen, p.end = p.rejected + l.rejected;
        p.pair_in_batch = static_cast<int32_t>(mb.pairs.size());
        p.first_head = static_cast<int32_t>(mb.heads.size());
        p.odds_weight = 0.1;
        for (int i = p.begin; i < p.end; ++i) {
            mb.ids.push_back(static_cast<int32_t>((i * 7919 + 13) % V));
            mb.positions.push_back(i < p.rejected ? i - p.begin : l.prompt + i - p.rejected);
        }
        const auto score = [&](int row, int target, Part part) {
            HeadRow head;
            head.row = row, head.target = mb.ids[target], head.pair = p.pair_in_batch, head.part = part;
            head.in_odds = part != Part::kPrompt;
            head.nll_weight = part == Part::kRejected ? 0 : 0.01;
            mb.heads.push_back(head);
        };
        for (int i = p.begin; i + 1 < p.chosen; ++i) score(i, i + 1, Part::kPrompt);
        for (int i = p.chosen - 1; i + 1 < p.rejected; ++i) score(i, i + 1, Part::kChosen);
        for (int i = p.rejected; i < p.end; ++i) score(i == p.rejected ? p.chosen - 1 : i - 1, i, Part::kRejected);
        p.heads = static_cast<int32_t>(mb.heads.size()) - p.first_head;
        mb.pairs.push_back(p);
    }
    return mb;
}

inline HostBatch host_batch(const MicroBatch& mb) {
    HostBatch batch(static_cast<int>(mb.ids.size()), static_cast<int>(mb.pairs.size()),
                    static_cast<int>(mb.heads.size()));
    batch.fill(mb);
    return batch;
}

}  // namespace orpo::cuda
