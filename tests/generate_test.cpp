// Generation with the cache equals a whole forward pass for every token; sampling; stops.
#include "model/generate.h"

#include <doctest/doctest.h>

#include <map>

#include "kernels/cpu/cpu.h"
#include "kernels/sample.h"
#include "model/engine_of.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

template <class K>
std::unique_ptr<Engine> tiny_engine(int sequences, int positions = 64) {
    static const RandomWeights weights(tiny_config());
    EngineOptions options;
    options.lora.R = 2, options.lora.alpha = 4;
    options.sizes = {64, 64, positions, Keep::kNothing, sequences};
    auto engine = std::make_unique<EngineOf<K>>(make_backend<K>(), "test", tiny_config(), &weights, options);
    engine->write(Arena::kParameters, 0, random_adapter(engine->lora(), "adapter"));
    return engine;
}

std::vector<float> whole_pass(Engine& engine, const std::vector<int32_t>& ids) {
    MicroBatch mb;
    mb.ids = ids;
    for (size_t i = 0; i < ids.size(); ++i) mb.positions.push_back(static_cast<int32_t>(i));
    PairSpan span;
    span.chosen = span.rejected = span.end = static_cast<int32_t>(ids.size());
    span.heads = 1;
    mb.pairs.push_back(span);
    HeadRow head;
    head.row = span.end - 1;
    mb.heads.push_back(head);
    std::vector<float> logits(engine.config().V);
    engine.prefill(mb);
    engine.read_logits(logits);
    return logits;
}

}  // namespace

TEST_CASE_TEMPLATE("greedy with the cache equals a whole pass for every token", K, Reference<float>, Cpu<float>) {
    const auto engine = tiny_engine<K>(3), fresh = tiny_engine<K>(1);
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 7; ++i) prompts.push_back(random_ids("prompt" + std::to_string(i), 1 + 3 * i, 97));
    Sampling greedy;
    greedy.max_tokens = 12;
    const auto results = generate(*engine, nullptr, prompts, greedy);
    for (size_t i = 0; i < prompts.size(); ++i) {
        std::vector<int32_t> ids = prompts[i];
        REQUIRE(results[i].ids.size() == 12);
        CHECK_FALSE(results[i].stopped);
        for (const int32_t next : results[i].ids) {
            const auto logits = whole_pass(*fresh, ids);
            CHECK(sample(logits, greedy, 0) == next);
            ids.push_back(next);
        }
    }
}

TEST_CASE_TEMPLATE("logits of decode equal those of a whole pass", K, Reference<float>, Cpu<float>) {
    const auto engine = tiny_engine<K>(2), fresh = tiny_engine<K>(1);
    const auto ids = random_ids("text", 20, 97);
    whole_pass(*engine, {ids.begin(), ids.begin() + 5});
    for (int n = 5; n < 20; ++n) {
        MicroBatch mb;
        mb.ids = {ids[n]}, mb.positions = {n};
        PairSpan span;
        span.chosen = span.rejected = span.end = 1, span.heads = 1;
        mb.pairs = {span}, mb.heads = {HeadRow{}};
        std::vector<float> logits(97);
        engine->decode(mb);
        engine->read_logits(logits);
        CHECK(relative_error(logits, whole_pass(*fresh, {ids.begin(), ids.begin() + n + 1})) <= 2e-6);
    }
}

TEST_CASE("a sequence does not depend on what runs beside it; seeds differ; limits hold") {
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 5; ++i) prompts.push_back(random_ids("prompt" + std::to_string(i), 2 + i, 97));
    Sampling sampling;
    sampling.max_tokens = 20, sampling.temperature = 1, sampling.seed = 5;
    const auto together = generate(*tiny_engine<Cpu<float>>(5), nullptr, prompts, sampling);
    const auto apart = generate(*tiny_engine<Cpu<float>>(2), nullptr, prompts, sampling);
    for (size_t i = 0; i < prompts.size(); ++i) CHECK(together[i].ids == apart[i].ids);
    sampling.seed = 6;
    CHECK(generate(*tiny_engine<Cpu<float>>(5), nullptr, prompts, sampling)[0].ids != together[0].ids);
    // A stop id ends a sequence and is not part of it.
    sampling.seed = 5;
    sampling.stop_ids = {together[0].ids[4]};
    const auto stopped = generate(*tiny_engine<Cpu<float>>(1), nullptr, std::span(prompts).first(1), sampling);
    CHECK(stopped[0].stopped);
    CHECK(stopped[0].ids.size() <= 4);
    // The longest sequence that the engine holds: 10 tokens and the one drawn from the last of them.
    sampling.stop_ids = {};
    const auto full = generate(*tiny_engine<Cpu<float>>(1, 10), nullptr, std::span(prompts).first(1), sampling);
    CHECK(full[0].ids.size() == 9);
    CHECK_THROWS_AS(generate(*tiny_engine<Cpu<float>>(1, 4), nullptr, prompts, sampling), Error);
}

TEST_CASE("sampling: shares, top-k, top-p, min-p") {
    std::vector<float> logits = {0, std::log(4.0f), std::log(2.0f), std::log(1.0f), -INFINITY};  // 1/8 4/8 2/8 1/8 0
    Sampling s;
    s.temperature = 1;
    const auto drawn = [&] {
        std::map<int, int> count;
        for (int i = 0; i < 8000; ++i) ++count[sample(logits, s, (i + 0.5) / 8000)];
        return count;
    };
    CHECK(drawn() == std::map<int, int>{{0, 1000}, {1, 4000}, {2, 2000}, {3, 1000}});
    s.top_k = 2;
    CHECK(drawn().size() == 2);
    s.top_k = 0, s.top_p = 0.74;
    CHECK(drawn().size() == 2);
    s.top_p = 0.76;
    CHECK(drawn().size() == 3);
    s.top_p = 1, s.min_p = 0.4;
    CHECK(drawn().size() == 2);
    s.min_p = 0, s.temperature = 0.5;  // shares 1 : 16 : 4 : 1
    CHECK(std::abs(drawn()[1] - 8000 * 16 / 22) <= 2);
    s.temperature = 0;
    CHECK(sample(logits, s, 0.9) == 1);
    s.temperature = -1;
    CHECK_THROWS_AS(s.check(), Error);
    logits[2] = NAN;
    CHECK_THROWS_AS(sample(logits, Sampling{}, 0), Error);
}
