// AdamW of every backend against torch.optim.AdamW over 100 steps, with clipping, weight decay, steps of learning rate
// 0 and elements without a gradient (tools/make_optimizer_golden.py).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/io.h"
#include "kernels/cpu/cpu.h"
#include "kernels/reference/reference.h"

using namespace orpo;

namespace {

nlohmann::json golden() {
    const char* data = std::getenv("ORPO_TEST_DATA");
    REQUIRE(data != nullptr);
    return nlohmann::json::parse(io::read_file(std::string(data) + "/golden/optimizer.json", 1 << 20)).at("adamw");
}

constexpr int kElements = 17;

double gradient(int i, int t) {
    if (i == 3) return 0;
    return std::cos(0.37 * i + 0.91 * t) * std::exp(-0.01 * t) * (i == 5 ? 1e-7 : 1);
}

template <class K>
void follow(K& k, const nlohmann::json& entry, double tolerance) {
    using F = typename K::F;
    const double clip = entry.at("clip");
    F* p = k.template allocate<F>(Category::kAdapters, "p", kElements);
    F* g = k.template allocate<F>(Category::kGradients, "g", kElements);
    F* m = k.template allocate<F>(Category::kOptimizer, "m", kElements);
    F* v = k.template allocate<F>(Category::kOptimizer, "v", kElements);
    std::vector<F> values(kElements);
    for (int i = 0; i < kElements; ++i) values[i] = static_cast<F>(std::sin(1.7 * i));
    k.write(kElements, values.data(), p);
    k.zero(kElements, m);
    k.zero(kElements, v);
    double worst = 0, worst_norm = 0;
    int compared = 0;
    for (int t = 0; t < 100; ++t) {
        for (int i = 0; i < kElements; ++i) values[i] = static_cast<F>(gradient(i, t));
        k.write(kElements, values.data(), g);
        double squares = 0;
        k.squared_norms(1, kElements, g, &squares);
        const double norm = std::sqrt(squares);
        AdamwSlot slot;
        slot.lr = 1e-2 * (t % 10) / 10;
        slot.weight_decay = entry.at("weight_decay");
        slot.bias1 = 1 - std::pow(slot.beta1, t + 1);
        slot.bias2 = 1 - std::pow(slot.beta2, t + 1);
        if (clip > 0) {
            slot.grad_scale = std::min(1.0, clip / (norm + 1e-6));
            const double expected = entry.at("norms").at(t);
            const double error = std::abs(norm - expected) / expected;
            worst_norm = std::isnan(error) ? INFINITY : std::max(worst_norm, error);
        }
        k.adamw(1, kElements, &slot, p, g, m, v);
        const auto after = entry.at("after").find(std::to_string(t + 1));
        if (after == entry.at("after").end()) continue;
        k.read(kElements, static_cast<const F*>(p), values.data());
        for (int i = 0; i < kElements; ++i) {
            const double expected = after->at(i);
            const double error =
                std::abs(static_cast<double>(values[i]) - expected) / std::max(1.0, std::abs(expected));
            worst = std::isnan(error) ? INFINITY : std::max(worst, error);
            ++compared;
        }
    }
    CHECK(compared == 5 * kElements);
    CHECK(worst <= tolerance);
    CHECK(worst_norm <= 1e-6);
}

}  // namespace

TEST_CASE("AdamW is PyTorch's over 100 steps") {
    for (const auto& entry : golden()) {
        CAPTURE(entry.at("weight_decay"));
        Reference<float> scalar;
        follow(scalar, entry, 1e-6);
        Reference<double> precise;
        follow(precise, entry, 1e-6);
        for (const char* isa : {"sse2", "avx2", "avx512"}) {
            CpuOptions options;
            options.isa = isa;
            try {
                Cpu<float> cpu(options);
                follow(cpu, entry, 1e-6);
            } catch (const Error& error) {
                MESSAGE("skipped: ", error.what());
            }
        }
    }
}
