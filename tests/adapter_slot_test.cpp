// Adapter slots: PEFT's start, the way to PEFT's form and back, ranks below the layout's.
#include <doctest/doctest.h>

#include <cmath>

#include "model/adapter.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

LoraConfig lora(int R, std::array<bool, kLinears> targets = {true, true, true, true, true, true, true}) {
    LoraConfig c;
    c.R = R, c.alpha = 2 * R, c.dropout = 0.05, c.targets = targets;
    return c;
}

}  // namespace

TEST_CASE("the start: A uniform in +-1/sqrt(in), B zero, from the seed alone") {
    const ModelConfig config = tiny_config();
    const LoraLayout layout(config, lora(8));
    const auto slot = initial_adapter(layout, 1);
    CHECK(slot == initial_adapter(layout, 1));
    CHECK(slot != initial_adapter(layout, 2));
    const PeftAdapter named = to_peft(layout, lora(8), slot);
    CHECK(named.tensors.size() == 2u * kLinears * config.L);
    for (const auto& [key, tensor] : named.tensors) {
        double sum = 0, squares = 0, largest = 0;
        for (const float v : tensor.values) {
            sum += v, squares += double(v) * v;
            largest = std::max(largest, std::abs(double(v)));
        }
        if (key.ends_with("_B")) {
            CHECK(largest == 0);
            continue;
        }
        const double n = static_cast<double>(tensor.values.size()), bound = 1 / std::sqrt(tensor.cols);
        CHECK(largest <= bound);
        CHECK(largest > 0.95 * bound);
        CHECK(std::abs(sum / n) < 4 * bound / std::sqrt(3 * n));
        CHECK(std::abs(squares / n - bound * bound / 3) < 0.25 * bound * bound / 3);
    }
    // The numbers of a tensor do not depend on which other linears are adapted.
    const std::array<bool, kLinears> two = {false, true, false, false, false, false, true};
    const LoraLayout few(config, lora(8, two));
    const PeftAdapter part = to_peft(few, lora(8, two), initial_adapter(few, 1));
    CHECK(part.targets == std::vector<std::string>{"k_proj", "down_proj"});
    for (const auto& [key, tensor] : part.tensors) CHECK(tensor.values == named.tensors.at(key).values);
}

TEST_CASE("to PEFT's form and back, and what does not fit") {
    const ModelConfig config = tiny_config();
    const LoraLayout layout(config, lora(3));
    const auto slot = random_adapter(layout, "x");
    PeftAdapter named = to_peft(layout, lora(3), slot);
    CHECK(named.rank == 3);
    CHECK(named.alpha == 6);
    CHECK(named.scale() == 2);
    CHECK(from_peft(layout, named) == slot);
    CHECK(lora_config(named).targets == layout.targets());
    // In a layout of higher rank the rest is zero, and what comes back is the same.
    const LoraLayout wide(config, lora(5));
    const PeftAdapter again = to_peft(wide, lora(3), from_peft(wide, named));
    for (const auto& [key, tensor] : named.tensors) CHECK(tensor.values == again.tensors.at(key).values);
    const LoraLayout narrow(config, lora(2));
    CHECK_THROWS_AS(from_peft(narrow, named), Error);
    const LoraLayout others(config, lora(3, {true}));
    CHECK_THROWS_AS(from_peft(others, named), Error);
    named.tensors.begin()->second.rows = 2;
    CHECK_THROWS_AS(from_peft(layout, named), Error);
}

TEST_CASE_TEMPLATE("a slot of lower rank stays at its rank and trains as one of that rank", K, Reference<double>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(3, config.V);
    const auto bins = pack(pointers(pairs), pack_options(pairs, {}, 200));
    LoraConfig two = lora(2), five = lora(5);
    two.dropout = five.dropout = 0;
    const TransformerSizes sizes{200, 200, 64};
    Bench<K> low(config, two, sizes), high(config, five, sizes, {{two.scale(), 0}});
    const auto start = random_adapter(low.layout, "start");
    low.set(start), high.set(from_peft(high.layout, to_peft(low.layout, two, start)));
    const auto a = low.train(bins).gradients, b = high.train(bins).gradients;
    const std::vector<float> fa(a.begin(), a.end()), fb(b.begin(), b.end());
    const PeftAdapter want = to_peft(low.layout, two, fa), got = to_peft(high.layout, two, fb);
    double outside = 0, inside = 0;
    for (const double g : b) outside += g * g;
    for (const auto& [key, tensor] : want.tensors) {
        CHECK(relative_error(got.tensors.at(key).values, tensor.values) <= 1e-6);
        for (const float g : got.tensors.at(key).values) inside += double(g) * g;
    }
    CHECK(std::abs(outside - inside) <= 1e-6 * inside);  // gradients beyond the rank are zero
}
