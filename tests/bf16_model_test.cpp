// bf16 training on the real model follows our own fp32: loss within 5e-3, gradient cosine at least 0.995, of every
// tensor 0.98.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "data/pack.h"
#include "kernels/cpu/cpu.h"
#include "model/engine.h"
#include "model/orpo_loss.h"
#include "model/tokenizer.h"
#include "tests/tiny_model.h"

using namespace orpo;

namespace {

PreferencePair text_pair(const Tokenizer& t, const char* prompt, const char* chosen, const char* rejected) {
    PreferencePair p;
    p.line = 1;
    p.prompt = t.encode(std::string("<|im_start|>user\n") + prompt + "<|im_end|>\n<|im_start|>assistant\n");
    p.chosen = t.encode(std::string(chosen) + "<|im_end|>");
    p.rejected = t.encode(std::string(rejected) + "<|im_end|>");
    return p;
}

struct Outcome {
    double loss = 0;
    std::vector<float> gradients;
};

Outcome run(const Model& model, const std::vector<MicroBatch>& batches, const std::vector<float>& start,
            const std::string& dtype) {
    EngineOptions options;
    for (const MicroBatch& mb : batches) {
        options.sizes.tokens = std::max(options.sizes.tokens, static_cast<int>(mb.ids.size()));
        options.sizes.heads = std::max(options.sizes.heads, static_cast<int>(mb.heads.size()));
    }
    options.sizes.max_positions = 512;
    DeviceOptions device;
    device.dtype = dtype;
    const auto engine = make_engine(device, model.config, model.weights.get(), options);
    engine->write(Arena::kParameters, 0, start);
    Outcome out;
    for (const MicroBatch& mb : batches) {
        std::vector<double> logp(mb.heads.size());
        engine->train(mb, logp);
        for (const PairRecord& pair : pair_records(mb, logp))
            out.loss += pair.loss.nll + pair.odds_weight * pair.loss.odds_loss;
    }
    out.gradients.resize(start.size());
    engine->read(Arena::kGradients, 0, out.gradients);
    return out;
}

double cosine(const float* a, const float* b, int64_t n) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < n; ++i) ab += double(a[i]) * b[i], aa += double(a[i]) * a[i], bb += double(b[i]) * b[i];
    return ab / std::sqrt(aa * bb);
}

}  // namespace

TEST_CASE("bf16 follows fp32 on the real model") {
    Model model;
    try {
        model = open_model("");
    } catch (const Error&) {
        MESSAGE("skipped: no model (tools/fetch_model.sh gets one)");
        return;
    }
    try {
        select_isa("avx512_bf16");
    } catch (const Error&) {
        MESSAGE("skipped: this processor has no bf16 products");
        return;
    }
    const Tokenizer t = Tokenizer::load(model.tokenizer);
    const std::vector<PreferencePair> pairs = {
        text_pair(t, "Why does bread go stale faster in the fridge?",
                  "Cold speeds up the way starch crystallises: as it does, it pushes water out and the crumb turns "
                  "hard. Keep bread at room temperature for two days, or freeze it, where the process all but stops.",
                  "Well, that is a great question! Bread is a food that many people enjoy, and there are many ways in "
                  "which people keep it. Some say one thing and some say another, so it depends on what you like."),
        text_pair(t, "What is 17 times 6, and how do you know?",
                  "102: ten sixes are 60, seven sixes are 42, and 60 + 42 = 102.",
                  "It is about a hundred, I think. Multiplication can be hard, so it is best to use a calculator.")};
    const PreferencePair* batch[] = {&pairs[0], &pairs[1]};
    PackOptions pack_options;
    pack_options.totals = batch_totals(batch, pack_options.objective);
    pack_options.max_tokens = 512;
    pack_options.betas = {0.1};
    const auto batches = pack(batch, pack_options);

    const LoraLayout layout(model.config, LoraConfig{});
    std::vector<float> start = test::random_adapter(layout, "bf16");
    for (float& value : start) value *= 0.2f;  // near the base, as adapters are
    const Outcome exact = run(model, batches, start, "fp32"), rounded = run(model, batches, start, "bf16");
    MESSAGE("loss " << exact.loss << " in fp32, " << rounded.loss << " in bf16");
    CHECK(std::abs(rounded.loss - exact.loss) <= 5e-3 * std::max(1.0, exact.loss));
    CHECK(rounded.loss != exact.loss);  // it is bf16 indeed
    const double whole = cosine(exact.gradients.data(), rounded.gradients.data(), static_cast<int64_t>(start.size()));
    double worst = 1;
    for (int l = 0; l < layout.layers(); ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            const int64_t size = int64_t{layout.R()} * group.in;
            for (const LoraTarget& target : group.targets) {
                for (const auto& [at, n] : {std::pair{group.a + int64_t{target.rank_offset} * group.in, size},
                                            {target.b, int64_t{target.out} * layout.R()}}) {
                    const double c = cosine(exact.gradients.data() + at, rounded.gradients.data() + at, n);
                    CHECK(c >= 0.98);
                    worst = std::min(worst, c);
                }
            }
        }
    MESSAGE("gradient cosine " << whole << ", worst tensor " << worst);
    CHECK(whole >= 0.995);
}
