// Every LoRA gradient against finite differences of the loss, in double, with a control that must fail.
#include <doctest/doctest.h>

#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

struct Tensor {
    std::string name;
    std::vector<int64_t> at;  // indices into the slot
};
std::vector<Tensor> tensors(const LoraLayout& layout) {
    std::vector<Tensor> list;
    for (int l = 0; l < layout.layers(); ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            for (const LoraTarget& t : group.targets) {
                const std::string name = std::to_string(l) + "." + std::string(linear_name(t.linear));
                Tensor a{name + ".A", {}}, b{name + ".B", {}};
                for (int64_t i = 0; i < int64_t{layout.R()} * group.in; ++i)
                    a.at.push_back(group.a + int64_t{t.rank_offset} * group.in + i);
                for (int64_t i = 0; i < int64_t{t.out} * layout.R(); ++i) b.at.push_back(t.b + i);
                list.push_back(a), list.push_back(b);
            }
        }
    return list;
}

struct Case {
    LoraConfig lora;
    Objective objective;
    Keep keep = Keep::kActivations;
};

// The worst over all tensors of |g d - (difference quotient along d)| / |g|, d random signs; and its tensor.
// spoil: applied to the gradients first.
template <class Spoil>
double worst_error(const Case& c, Spoil spoil, std::string* worst_name = nullptr) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(4, config.V);
    Bench<Reference<double>> bench(config, c.lora, {256, 256, 64, c.keep});
    const auto bins = pack(pointers(pairs), pack_options(pairs, c.objective, 40));
    const auto start = random_adapter(bench.layout, "adapter");
    std::vector<double> point(start.begin(), start.end());
    bench.set(point);
    std::vector<double> g = bench.train(bins).gradients;
    spoil(bench.layout, g);
    double worst = 0;
    for (const Tensor& t : tensors(bench.layout)) {
        double along = 0, norm = 0;
        for (size_t i = 0; i < t.at.size(); ++i) {
            const double sign = hashed("direction" + t.name, static_cast<int64_t>(i)) > 0 ? 1 : -1;
            along += sign * g[t.at[i]], norm += g[t.at[i]] * g[t.at[i]];
        }
        const auto loss_at = [&](double h) {
            std::vector<double> moved = point;
            for (size_t i = 0; i < t.at.size(); ++i)
                moved[t.at[i]] += hashed("direction" + t.name, static_cast<int64_t>(i)) > 0 ? h : -h;
            bench.set(moved);
            return bench.train(bins).loss;  // train, not evaluate: dropout must be on
        };
        const double h = 2e-4;
        const double quotient = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
        double error = std::abs(along - quotient) / std::sqrt(norm);
        if (std::isnan(error)) error = INFINITY;
        if (error > worst) {
            worst = error;
            if (worst_name) *worst_name = t.name;
        }
    }
    return worst;
}
void as_is(const LoraLayout&, std::vector<double>&) {}

LoraConfig lora(int R, double alpha) {
    LoraConfig c;
    c.R = R, c.alpha = alpha;
    return c;
}

}  // namespace

TEST_CASE("finite differences: every tensor, every semantics and scope") {
    for (const Semantics semantics : {Semantics::kOrpo, Semantics::kPaper, Semantics::kLlamaFactory})
        for (const NllScope scope : {NllScope::kFull, NllScope::kResponse}) {
            const Case c{lora(3, 6), {semantics, scope, 5, 64}};
            std::string name;
            const double error = worst_error(c, as_is, &name);
            CAPTURE(name);
            CAPTURE(int(semantics));
            CHECK(error <= 1e-5);
        }
}

TEST_CASE("finite differences: dropout, rank stabilisation, subsets of targets, what is kept") {
    Case dropout{lora(2, 4), {}};
    dropout.lora.dropout = 0.3;
    CHECK(worst_error(dropout, as_is) <= 1e-5);
    Case rslora{lora(4, 4), {}};
    rslora.lora.rslora = true;
    CHECK(rslora.lora.scale() == 2.0);
    CHECK(worst_error(rslora, as_is) <= 1e-5);
    for (const std::array<bool, kLinears> targets :
         {std::array<bool, kLinears>{true, false, true}, std::array<bool, kLinears>{false, false, false, true},
          std::array<bool, kLinears>{false, false, false, false, false, true},
          std::array<bool, kLinears>{0, 0, 0, 0, 0, 0, true}}) {
        Case subset{lora(2, 4), {}};
        subset.lora.targets = targets;
        CHECK(worst_error(subset, as_is) <= 1e-5);
    }
    for (const Keep keep : {Keep::kAll, Keep::kNoGateUp, Keep::kInputs}) {
        Case remade{lora(2, 4), {}, keep};
        remade.lora.dropout = 0.2;
        CHECK(worst_error(remade, as_is) <= 1e-5);
    }
}

TEST_CASE("finite differences: control, a gradient that is slightly wrong fails") {
    const Case c{lora(3, 6), {}};
    const auto scaled = [](const LoraLayout& layout, std::vector<double>& g) {
        const Tensor one = tensors(layout)[5];
        for (const int64_t i : one.at) g[i] *= 1.001;
    };
    CHECK(worst_error(c, scaled) > 1e-5);
    const auto dropped = [](const LoraLayout& layout, std::vector<double>& g) {
        const auto at = tensors(layout).back().at;
        g[*std::max_element(at.begin(), at.end(),
                            [&](int64_t a, int64_t b) { return std::abs(g[a]) < std::abs(g[b]); })] = 0;
    };
    CHECK(worst_error(c, dropped) > 1e-5);
    const auto broken = [](const LoraLayout&, std::vector<double>& g) { g[0] = NAN; };
    CHECK_FALSE(worst_error(c, broken) <= 1e-5);
}
