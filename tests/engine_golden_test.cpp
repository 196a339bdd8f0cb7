// Logits, loss and every LoRA gradient against transformers + PEFT in double (tools/make_engine_golden.py), on the
// reference kernels in double and on the CPU backend.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cpu/cpu.h"
#include "model/adapter.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

nlohmann::json golden() {
    const char* folder = std::getenv("ORPO_TEST_DATA");
    std::ifstream in(std::string(folder ? folder : "tests") + "/golden/engine.json");
    REQUIRE(in.good());
    return nlohmann::json::parse(in);
}

}  // namespace

TEST_CASE_TEMPLATE("transformers and PEFT in double", K, Reference<double>, Cpu<float>) {
    const double tolerance = std::same_as<K, Cpu<float>> ? 5e-6 : 1e-6;
    const auto near = [&](double got, double want) {
        return std::abs(got - want) <= tolerance * std::max(1.0, std::abs(want));
    };
    const nlohmann::json all = golden();
    CHECK(all["cases"].size() == 2);
    for (const auto& c : all["cases"]) {
        CAPTURE(c["name"].get<std::string>());
        const ModelConfig config = tiny_config();
        LoraConfig lora;
        lora.R = c["rank"], lora.alpha = c["alpha"], lora.rslora = c["rslora"];
        for (int i = 0; i < kLinears; ++i) {
            lora.targets[i] = false;
            for (const std::string target : c["targets"])
                lora.targets[i] |= target == linear_name(static_cast<Linear>(i));
        }
        const auto pairs = random_pairs(c["pairs"], config.V);
        TransformerSizes sizes{128, 128, 64};
        sizes.sequences = 1;
        Bench<K> bench(config, lora, sizes);
        bench.set(random_adapter(bench.layout, "adapter"));
        const auto bins = pack(pointers(pairs), pack_options(pairs, {}, 50, {c["beta"]}));
        const Outcome out = bench.train(bins);

        const Metrics m = summarise(out.records, c["beta"]);
        CHECK(near(m.loss, c["loss"]));
        CHECK(near(m.nll_loss.value, c["nll"]));
        CHECK(near(m.or_loss.value, c["odds"]));
        for (size_t i = 0; i < pairs.size(); ++i) {
            CHECK(near(out.records[i].loss.x, c["x"][i]));
            CHECK(near(out.records[i].loss.y, c["y"][i]));
        }
        // Gradients by PEFT's names, through the same conversion that writes adapters.
        const std::vector<float> gradients(out.gradients.begin(), out.gradients.end());
        const PeftAdapter named = to_peft(bench.layout, lora, gradients);
        CHECK(named.tensors.size() == c["gradients"].size());
        for (const auto& [tensor, want] : c["gradients"].items()) {
            const std::string key = tensor;
            CAPTURE(key);
            const auto found = named.tensors.find(key);
            REQUIRE(found != named.tensors.end());
            const std::vector<float>& got = found->second.values;
            double squares = 0;
            for (const float g : got) squares += double(g) * g;
            const double norm = want["norm"];
            const auto close = [&](double a, double b) { return std::abs(a - b) <= 2 * tolerance * norm; };
            CHECK(close(std::sqrt(squares), norm));
            for (int i = 0; i < 3; ++i) CHECK(close(got[i], want["first"][i]));
            CHECK(close(got.back(), want["last"]));
        }
        // Logits of the last token of the first chosen answer.
        MicroBatch mb;
        mb.ids = pairs[0].prompt;
        mb.ids.insert(mb.ids.end(), pairs[0].chosen.begin(), pairs[0].chosen.end());
        for (size_t i = 0; i < mb.ids.size(); ++i) mb.positions.push_back(static_cast<int32_t>(i));
        PairSpan span;
        span.chosen = span.rejected = span.end = static_cast<int32_t>(mb.ids.size()), span.heads = 1;
        HeadRow head;
        head.row = span.end - 1;
        mb.pairs = {span}, mb.heads = {head};
        bench.k->upload(mb, *bench.batch);
        bench.transformer->prefill(*bench.batch, bench.compute);
        std::vector<typename K::F> logits(config.V);
        bench.k->read(config.V, bench.transformer->logits(), logits.data());
        for (int v = 0; v < config.V; ++v) CHECK(near(logits[v], c["logits"][v]));
    }
}
