// The seam that trainer, evaluation and generation use, on the CPU backend: the plan, the arenas, a few steps.
#include "model/engine.h"

#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cpu/cpu.h"
#include "model/adapter.h"
#include "model/engine_of.h"
#include "model/text_stream.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

EngineOptions options(Keep keep = Keep::kActivations) {
    EngineOptions o;
    o.lora.R = 4, o.lora.alpha = 8;
    o.sizes = {128, 128, 64, keep};
    return o;
}
const DeviceOptions kDevice{"cpu", "fp32", 2};

}  // namespace

TEST_CASE("the plan is what is allocated, byte for byte, and shrinks with what is kept") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    int64_t last = INT64_MAX;
    for (const Keep keep : {Keep::kAll, Keep::kActivations, Keep::kNoGateUp, Keep::kInputs, Keep::kNothing}) {
        EngineOptions o = options(keep);
        o.slots = {{2, 0}, {1, 0.1}};
        o.sizes.sequences = keep == Keep::kNothing ? 2 : 0;
        const auto real = make_engine(kDevice, config, &weights, o);
        o.planning = true;
        const auto plan = make_engine(kDevice, config, nullptr, o);
        REQUIRE(plan->memory().entries().size() == real->memory().entries().size());
        for (size_t i = 0; i < plan->memory().entries().size(); ++i) {
            CHECK(plan->memory().entries()[i].name == real->memory().entries()[i].name);
            CHECK(plan->memory().entries()[i].bytes == real->memory().entries()[i].bytes);
        }
        CHECK(real->memory().bytes(Category::kActivations) < last);
        last = real->memory().bytes(Category::kActivations);
    }
}

TEST_CASE("steps lower the loss; evaluation sees the new parameters; arenas read back what was written") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    EngineOptions o = options();
    o.slots = {{2, 0}, {2, 0}};
    const auto engine = make_engine(kDevice, config, &weights, o);
    const auto start = initial_adapter(engine->lora(), 3);
    for (const int slot : {0, 1}) engine->write(Arena::kParameters, slot, start);
    std::vector<float> back(start.size());
    engine->read(Arena::kParameters, 1, back);
    CHECK(back == start);

    const auto pairs = random_pairs(4, config.V);
    auto pack_for = pack_options(pairs, {}, 128, {0.2, 0.2});
    const auto bins = pack(pointers(pairs), pack_for);
    std::vector<double> losses[2];
    for (int step = 1; step <= 12; ++step) {
        engine->zero_gradients();
        std::vector<PairRecord> records[2];
        for (const MicroBatch& mb : bins) {
            std::vector<double> logp(mb.heads.size()), again(mb.heads.size());
            engine->evaluate(mb, again);
            engine->train(mb, logp);
            CHECK(logp == again);
            for (const PairRecord& r : pair_records(mb, logp)) records[r.slot].push_back(r);
        }
        for (const int s : {0, 1}) losses[s].push_back(summarise(records[s], 0.2).loss);
        const auto norms = engine->gradient_norms();
        if (step == 1) CHECK(norms[0] == norms[1]);
        AdamwSlot slots[2];
        for (AdamwSlot& slot : slots) slot.bias1 = 1 - std::pow(0.9, step), slot.bias2 = 1 - std::pow(0.999, step);
        slots[0].lr = 0.02;
        slots[1].active = false;
        engine->adamw(slots);
    }
    CHECK(losses[0].back() < losses[0].front() - 0.1);
    for (const double loss : losses[1]) CHECK(loss == losses[1][0]);  // a slot that rests does not move
    CHECK(losses[0][0] == losses[1][0]);
    engine->read(Arena::kParameters, 1, back);
    CHECK(back == start);
}

TEST_CASE("the base alone: no target, no adapter") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    const auto pairs = random_pairs(3, config.V);
    const auto bins = pack(pointers(pairs), pack_options(pairs, {}, 128));
    EngineOptions none = options(Keep::kNothing), zero = options(Keep::kNothing);
    none.lora.targets = {};
    const auto bare = make_engine(kDevice, config, &weights, none),
               adapted = make_engine(kDevice, config, &weights, zero);
    CHECK(bare->lora().slot_size() == 0);
    adapted->write(Arena::kParameters, 0, initial_adapter(adapted->lora(), 1));  // B is zero
    for (const MicroBatch& mb : bins) {
        std::vector<double> a(mb.heads.size()), b(mb.heads.size());
        bare->evaluate(mb, a), adapted->evaluate(mb, b);
        CHECK(a == b);
    }
}

TEST_CASE("threads change no bit; a head of its own is used") {
    ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    const auto pairs = random_pairs(4, config.V);
    const auto bins = pack(pointers(pairs), pack_options(pairs, {}, 128));
    const auto gradients = [&](const ModelConfig& c, const HostWeights& w, int threads) {
        const auto engine = make_engine({"cpu", "fp32", threads}, c, &w, options());
        engine->write(Arena::kParameters, 0, random_adapter(engine->lora(), "adapter"));
        for (const MicroBatch& mb : bins) {
            std::vector<double> logp(mb.heads.size());
            engine->train(mb, logp);
        }
        std::vector<float> values(engine->lora().slot_size());
        engine->read(Arena::kGradients, 0, values);
        return values;
    };
    const auto one = gradients(config, weights, 1);
    CHECK(one == gradients(config, weights, 2));
    CHECK(one == gradients(config, weights, 3));
    config.tie_embeddings = false;
    CHECK(one != gradients(config, RandomWeights(config), 1));
}

TEST_CASE("a NaN in the weights of a step shows in records and norms") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    const auto engine = make_engine(kDevice, config, &weights, options());
    auto broken = random_adapter(engine->lora(), "adapter");
    broken[100] = NAN;
    engine->write(Arena::kParameters, 0, broken);
    const auto pairs = random_pairs(2, config.V);
    for (const MicroBatch& mb : pack(pointers(pairs), pack_options(pairs, {}, 128))) {
        std::vector<double> logp(mb.heads.size());
        engine->train(mb, logp);
        CHECK(non_finite_lines(pair_records(mb, logp)) == std::vector<int64_t>{1, 2});
    }
    CHECK_FALSE(std::isfinite(engine->gradient_norms()[0]));
}

TEST_CASE("devices and dtypes that are not there") {
    const ModelConfig config = tiny_config();
    const RandomWeights weights(config);
    CHECK_THROWS_AS(make_engine({"tpu", "fp32", 1}, config, &weights, options()), Error);
    CHECK_THROWS_AS(make_engine({"cpu", "fp8", 1}, config, &weights, options()), Error);
}

TEST_CASE("generated text is shown in whole characters, and never part of a stop") {
    const std::vector<std::string> stops = {"###", "End"};
    TextStream stream(stops);
    CHECK_FALSE(stream.add("Caf\xC3"));
    CHECK(stream.take(false) == "Caf");
    CHECK_FALSE(stream.add("\xA9 #"));
    CHECK(stream.take(false) == "\xC3\xA9 ");
    CHECK_FALSE(stream.add("# E"));
    CHECK(stream.take(false) == "## ");
    CHECK(stream.add("nd of it"));
    CHECK(stream.take(true).empty());
    CHECK(stream.text() == "Caf\xC3\xA9 ## ");
    TextStream broken(stops);
    broken.add("a\xF0\x9F");
    CHECK(broken.take(false) == "a");
    CHECK(broken.take(true) == "\xEF\xBF\xBD");
    TextStream first(stops);
    CHECK(first.add("one###two End"));
    CHECK(first.text() == "one");
}
