// What must not depend on how pairs are laid out: prefix sharing, packing, cuts into micro-batches, slots, dropout
// masks. In double to 1e-12, on every fp32 backend to 1e-6.
#include <doctest/doctest.h>

#include "kernels/cpu/cpu.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

LoraConfig tiny_lora(double dropout = 0) {
    LoraConfig c;
    c.R = 3, c.alpha = 6, c.dropout = dropout;
    return c;
}
constexpr TransformerSizes kSizes{256, 256, 64};
const Objective kObjective{};

template <class K>
double tolerance() {
    return std::same_as<typename K::F, double> ? 1e-12 : 1e-6;
}

// Each answer as a sequence of its own, behind its own copy of the prompt, padded to one length: what TRL runs.
std::vector<MicroBatch> duplicated(const std::vector<PreferencePair>& pairs, const PackOptions& options) {
    std::vector<MicroBatch> shared = pack(pointers(pairs), options), out;
    for (const MicroBatch& mb : shared) {
        MicroBatch two;
        two.heads = mb.heads, two.dropout_key = mb.dropout_key, two.step = mb.step;
        for (const PairSpan& p : mb.pairs) {
            const int P = p.chosen - p.begin, chosen = p.rejected - p.chosen, rejected = p.end - p.rejected;
            const int length = P + std::max(chosen, rejected) + 2;
            const int first = static_cast<int>(two.ids.size());
            const auto lay = [&](int from, int count) {
                const int at = static_cast<int>(two.ids.size());
                for (int i = 0; i < length; ++i) {
                    const int pad = 0, answer = i - P;
                    two.ids.push_back(i < P ? mb.ids[p.begin + i] : answer < count ? mb.ids[from + answer] : pad);
                    two.positions.push_back(i);
                }
                PairSpan span;
                span.begin = at, span.chosen = at + P, span.rejected = span.end = at + length;
                span.slot = p.slot, span.pair_in_batch = p.pair_in_batch, span.line = p.line;
                return span;
            };
            PairSpan one = lay(p.chosen, chosen);
            one.first_head = p.first_head, one.heads = p.heads, one.odds_weight = p.odds_weight;
            PairSpan other = lay(p.rejected, rejected);
            other.first_head = p.first_head + p.heads;
            const auto index = static_cast<int32_t>(two.pairs.size());
            for (int i = p.first_head; i < p.first_head + p.heads; ++i) {
                HeadRow& h = two.heads[i];
                const int row = h.row - p.begin;  // in the shared layout: prompt, chosen, rejected
                const bool second = h.part == Part::kRejected;
                h.row = (second ? first + length : first) + (second && row >= P ? row - chosen : row);
                h.pair = index;
            }
            two.pairs.push_back(one), two.pairs.push_back(other);
        }
        out.push_back(two);
    }
    return out;
}

}  // namespace

TEST_CASE_TEMPLATE("packed and prefix-shared equals padded and duplicated", K, Reference<double>, Reference<float>,
                   Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(5, config.V);
    Bench<K> bench(config, tiny_lora(), kSizes);
    bench.set(random_adapter(bench.layout, "adapter"));
    for (const Semantics semantics : {Semantics::kOrpo, Semantics::kLlamaFactory, Semantics::kPaper}) {
        const auto options = pack_options(pairs, {semantics, NllScope::kFull, 5, 64}, 120);
        const Outcome packed = bench.train(pack(pointers(pairs), options));
        const Outcome padded = bench.train(duplicated(pairs, options));
        CHECK(std::abs(packed.loss - padded.loss) <= tolerance<K>() * std::abs(padded.loss));
        for (int l = 0; l < config.L; ++l)
            for (int g = 0; g < kGroups; ++g) {
                const LoraGroup& group = bench.layout.group(l, g);
                const auto part = [&](const std::vector<double>& all, int64_t at, int64_t n) {
                    return std::vector<double>(all.begin() + at, all.begin() + at + n);
                };
                const int64_t a = int64_t{group.width} * group.in;
                CHECK(relative_error(part(packed.gradients, group.a, a), part(padded.gradients, group.a, a)) <=
                      tolerance<K>());
                for (const LoraTarget& t : group.targets)
                    CHECK(relative_error(part(packed.gradients, t.b, t.out * 3),
                                         part(padded.gradients, t.b, t.out * 3)) <= tolerance<K>());
            }
    }
}

TEST_CASE_TEMPLATE("cuts into micro-batches change nothing, with and without dropout", K, Reference<double>,
                   Reference<float>, Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(7, config.V);
    for (const double dropout : {0.0, 0.4}) {
        Bench<K> bench(config, tiny_lora(dropout), kSizes);
        bench.set(random_adapter(bench.layout, "adapter"));
        const Outcome whole = bench.train(pack(pointers(pairs), pack_options(pairs, kObjective, 200)));
        for (const int budget : {20, 33, 64}) {
            const auto bins = pack(pointers(pairs), pack_options(pairs, kObjective, budget));
            CHECK(bins.size() > 1);
            const Outcome cut = bench.train(bins);
            CHECK(std::abs(cut.loss - whole.loss) <= tolerance<K>() * std::abs(whole.loss));
            CHECK(relative_error(cut.gradients, whole.gradients) <= tolerance<K>());
            REQUIRE(cut.records.size() == pairs.size());
            for (size_t i = 0; i < pairs.size(); ++i) CHECK(cut.records[i].line == pairs[i].line);
        }
    }
}

TEST_CASE_TEMPLATE("room for more tokens, what is kept, evaluation: the same bits", K, Reference<double>, Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(4, config.V);
    const auto bins = pack(pointers(pairs), pack_options(pairs, kObjective, 60));
    Bench<K> bench(config, tiny_lora(), kSizes);
    const auto adapter = random_adapter(bench.layout, "adapter");
    bench.set(adapter);
    const Outcome want = bench.train(bins);
    CHECK(bench.evaluate(bins).loss == want.loss);
    CHECK(bench.train(bins).gradients == want.gradients);  // evaluation left nothing behind
    for (const TransformerSizes sizes :
         {TransformerSizes{60, 60, 20}, TransformerSizes{999, 999, 128},
          TransformerSizes{256, 256, 64, Keep::kNoGateUp}, TransformerSizes{256, 256, 64, Keep::kInputs}}) {
        Bench<K> other(config, tiny_lora(), sizes);
        other.set(adapter);
        const Outcome got = other.train(bins);
        CHECK(got.loss == want.loss);
        CHECK(got.gradients == want.gradients);
    }
    Bench<K> evaluator(config, tiny_lora(), {256, 256, 64, Keep::kNothing});
    evaluator.set(adapter);
    CHECK(evaluator.evaluate(bins).loss == want.loss);
    CHECK(evaluator.k->memory().bytes(Category::kActivations) < 0.6 * bench.k->memory().bytes(Category::kActivations));
}

TEST_CASE_TEMPLATE("adapter slots equal separate runs", K, Reference<double>, Reference<float>, Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(5, config.V);
    const std::vector<LoraSlot> slots = {{2.0, 0.0}, {0.5, 0.3}, {1.0, 0.0}};
    const std::vector<double> betas = {0.1, 0.5, 1.5};
    Bench<K> all(config, tiny_lora(), kSizes, slots);
    std::vector<float> adapters;
    for (const char* name : {"a", "b", "c"}) {
        const auto one = random_adapter(all.layout, name);
        adapters.insert(adapters.end(), one.begin(), one.end());
    }
    all.set(adapters);
    for (const int budget : {250, 60, 21}) {  // all slots at once; several cuts; not even one pair of all slots
        const Outcome together = all.train(pack(pointers(pairs), pack_options(pairs, kObjective, budget, betas)));
        double sum = 0;
        for (int s = 0; s < 3; ++s) {
            Bench<K> single(config, tiny_lora(), kSizes, {slots[s]});
            single.set(random_adapter(single.layout, std::string(1, static_cast<char>('a' + s))));
            const Outcome alone =
                single.train(pack(pointers(pairs), pack_options(pairs, kObjective, budget, {betas[s]})));
            const auto at = together.gradients.begin() + s * all.layout.slot_size();
            const std::vector<double> slice(at, at + all.layout.slot_size());
            CHECK(relative_error(slice, alone.gradients) <= tolerance<K>());
            sum += alone.loss;
            double slot_loss = 0;
            for (const PairRecord& r : together.records)
                if (r.slot == s) slot_loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
            CHECK(std::abs(slot_loss - alone.loss) <= tolerance<K>() * alone.loss);
        }
        CHECK(std::abs(together.loss - sum) <= 10 * tolerance<K>() * sum);
    }
}

TEST_CASE_TEMPLATE("dropout masks follow the pair, not its place", K, Reference<double>, Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(3, config.V);
    Bench<K> bench(config, tiny_lora(0.5), kSizes);
    bench.set(random_adapter(bench.layout, "adapter"));
    const auto options = pack_options(pairs, kObjective, 200);
    const Outcome whole = bench.train(pack(pointers(pairs), options));
    std::vector<double> sum(whole.gradients.size());
    for (const int i : {2, 0, 1}) {  // one at a time, in another order
        auto alone = options;
        alone.first_pair = i;
        const std::vector<const PreferencePair*> one = {&pairs[i]};
        const Outcome part = bench.train(pack(one, alone));
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += part.gradients[j];
    }
    CHECK(relative_error(sum, whole.gradients) <= tolerance<K>());
    auto other = options;
    other.step += 1;
    CHECK(relative_error(bench.train(pack(pointers(pairs), other)).gradients, whole.gradients) > 0.01);
    other = options;
    other.first_pair = 1;
    CHECK(relative_error(bench.train(pack(pointers(pairs), other)).gradients, whole.gradients) > 0.01);
}

TEST_CASE_TEMPLATE("fp32 follows double", K, Reference<float>, Cpu<float>) {
    const ModelConfig config = tiny_config();
    const auto pairs = random_pairs(6, config.V);
    const auto bins = pack(pointers(pairs), pack_options(pairs, kObjective, 100));
    Bench<Reference<double>> exact(config, tiny_lora(0.2), kSizes);
    Bench<K> bench(config, tiny_lora(0.2), kSizes);
    exact.set(random_adapter(exact.layout, "adapter")), bench.set(random_adapter(bench.layout, "adapter"));
    const Outcome want = exact.train(bins), got = bench.train(bins);
    CHECK(std::abs(got.loss - want.loss) <= 1e-6 * want.loss);
    CHECK(relative_error(got.gradients, want.gradients) <= 3e-6);
}

TEST_CASE("a pair larger than a micro-batch is refused with its line and the flag") {
    const auto pairs = random_pairs(3, 97);
    try {
        pack(pointers(pairs), pack_options(pairs, kObjective, 8));
        FAIL("accepted");
    } catch (const Error& e) {
        CHECK(e.exit() == Exit::kUsage);
        CHECK(std::string(e.what()).find("line ") != std::string::npos);
        CHECK(std::string(e.what()).find("--micro-batch-tokens") != std::string::npos);
    }
}
