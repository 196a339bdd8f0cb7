// bf16 against our own fp32: gradient cosine at least 0.995 over all, 0.98 for the worst tensor, loss within 5e-3.
// On the tiny model, and on the real one where it is found.
#include <doctest/doctest.h>

#include <cstdio>

#include "data/dataset.h"
#include "model/engine.h"
#include "model/weights.h"
#include "tests/test_data.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

struct Run {
    double loss = 0;
    std::vector<float> gradients;
};

Run train_once(const std::string& dtype, const ModelConfig& config, const HostWeights& weights, const LoraConfig& lora,
               const std::vector<PreferencePair>& pairs, int tokens, double b_scale) {
    EngineOptions options;
    options.lora = lora;
    options.sizes = {tokens, tokens, 128};
    const auto engine = make_engine({"cpu", dtype, 2}, config, &weights, options);
    engine->write(Arena::kParameters, 0, random_adapter(engine->lora(), "adapter", b_scale));
    Run run;
    for (const MicroBatch& mb : pack(pointers(pairs), pack_options(pairs, {}, tokens))) {
        std::vector<double> logp(mb.heads.size());
        engine->train(mb, logp);
        for (const PairRecord& r : pair_records(mb, logp)) run.loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
    }
    run.gradients.resize(engine->lora().slot_size());
    engine->read(Arena::kGradients, 0, run.gradients);
    return run;
}

void compare(const ModelConfig& config, const HostWeights& weights, const std::vector<PreferencePair>& pairs,
             int tokens, double b_scale) {
    LoraConfig lora;
    lora.R = 8, lora.alpha = 16;
    const Run want = train_once("fp32", config, weights, lora, pairs, tokens, b_scale);
    Run got;
    try {
        got = train_once("bf16", config, weights, lora, pairs, tokens, b_scale);
    } catch (const Error& e) {
        CHECK(e.exit() == Exit::kUsage);
        std::printf("skipped: %s\n", e.what());
        return;
    }
    const LoraLayout layout(config, lora);
    double worst = 1;
    for (int l = 0; l < config.L; ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            for (const LoraTarget& t : group.targets) {
                const int64_t a = group.a + int64_t{t.rank_offset} * group.in;
                const std::pair<int64_t, int64_t> ranges[] = {{a, a + int64_t{lora.R} * group.in},
                                                              {t.b, t.b + int64_t{t.out} * lora.R}};
                for (const auto& [begin, end] : ranges) {
                    const auto part = [&, from = begin, to = end](const Run& run) {
                        return std::vector<float>(run.gradients.begin() + from, run.gradients.begin() + to);
                    };
                    const double c = cosine(part(got), part(want));
                    worst = c >= worst ? worst : c;
                    CHECK(c >= 0.98);
                }
            }
        }
    const double all = cosine(got.gradients, want.gradients);
    std::printf("bf16 against fp32: loss %.5f and %.5f, gradient cosine %.5f, worst tensor %.5f\n", got.loss, want.loss,
                all, worst);
    CHECK(all >= 0.995);
    // The bound is for losses of text, 2 to 4 nats; random tokens have three times that.
    CHECK(std::abs(got.loss - want.loss) <= 5e-3 * std::max(1.0, want.loss / 4));
    CHECK(got.gradients != want.gradients);
}

}  // namespace

TEST_CASE("bf16 follows fp32 on the tiny model") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    compare(config, weights, random_pairs(6, config.V), 128, 0.3);
}

TEST_CASE("bf16 follows fp32 on the real model") {
    Model model;
    try {
        model = open_model("");
    } catch (const Error&) {
        std::printf("skipped: no model\n");
        MESSAGE("skipped: no model");
        return;
    }
    // The two shortest pairs of the samples that ship with the project.
    const Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    DataOptions options;
    options.chat_template = recognise_template(model.chat_template, model.path);
    std::vector<PreferencePair> pairs = load_dataset(test_data("../data/samples/eval.jsonl"), tokenizer, options).pairs;
    std::sort(pairs.begin(), pairs.end(),
              [](const PreferencePair& a, const PreferencePair& b) { return a.tokens() < b.tokens(); });
    pairs.resize(2);
    const int tokens = static_cast<int>(std::max(pairs[0].tokens(), pairs[1].tokens()));
    compare(model.config, *model.weights, pairs, tokens, 0.01);
}
