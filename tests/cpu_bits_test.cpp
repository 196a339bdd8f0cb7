// In fp32 on the CPU a step's log-probabilities and gradients have the same bits for any number of threads and however
// the optimizer batch is cut into micro-batches; in bf16 for any number of threads.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "data/pack.h"
#include "kernels/cpu/cpu.h"
#include "model/engine.h"
#include "tests/tiny_model.h"

using namespace orpo;

namespace {

ModelConfig small_config() {
    ModelConfig c = test::tiny_config();
    c.V = 301, c.C = 128, c.L = 2, c.H = 3, c.KV = 1, c.HS = 64, c.I = 208;
    return c;
}

std::vector<PreferencePair> small_pairs() {
    std::vector<PreferencePair> pairs(5);
    const int lengths[5][3] = {{7, 20, 33}, {40, 5, 9}, {1, 50, 2}, {23, 31, 30}, {11, 1, 17}};
    for (int p = 0; p < 5; ++p) {
        uint32_t i = 0;
        const auto ids = [&](int n) {
            std::vector<int32_t> list;
            for (; n > 0; --n) list.push_back(static_cast<int32_t>(philox(3, {uint32_t(p), i++, 0, 0})[0] % 301));
            return list;
        };
        pairs[p].line = p + 1;
        pairs[p].prompt = ids(lengths[p][0]), pairs[p].chosen = ids(lengths[p][1]),
        pairs[p].rejected = ids(lengths[p][2]);
    }
    return pairs;
}

struct Numbers {
    std::vector<double> logp;
    std::vector<float> gradients;
    bool operator==(const Numbers&) const = default;
};

Numbers step(const std::string& dtype, int threads, int max_tokens, double dropout) {
    const ModelConfig config = small_config();
    const test::RandomWeights weights(config);
    const std::vector<PreferencePair> pairs = small_pairs();
    std::vector<const PreferencePair*> batch;
    for (const auto& pair : pairs) batch.push_back(&pair);
    PackOptions pack_options;
    pack_options.totals = batch_totals(batch, pack_options.objective);
    pack_options.max_tokens = max_tokens;
    pack_options.betas = {0.2};
    pack_options.dropout_key = 99;
    EngineOptions options;
    options.lora.R = 8, options.lora.dropout = dropout;
    options.sizes.tokens = max_tokens, options.sizes.heads = max_tokens, options.sizes.max_positions = 128;
    DeviceOptions device;
    device.dtype = dtype, device.threads = threads;
    const auto engine = make_engine(device, config, &weights, options);
    engine->write(Arena::kParameters, 0, test::random_adapter(engine->lora(), "bits"));
    Numbers out;
    for (const MicroBatch& mb : pack(batch, pack_options)) {
        std::vector<double> logp(mb.heads.size());
        engine->train(mb, logp);
        out.logp.insert(out.logp.end(), logp.begin(), logp.end());
    }
    out.gradients.resize(static_cast<size_t>(engine->lora().slot_size()));
    engine->read(Arena::kGradients, 0, out.gradients);
    double norm = 0;
    for (const float g : out.gradients) norm += double(g) * g;
    CHECK(norm > 0);  // NaN fails too
    return out;
}

}  // namespace

TEST_CASE("the same bits for any number of threads and any cut into micro-batches") {
    for (const double dropout : {0.0, 0.2}) {
        const Numbers one = step("fp32", 1, 400, dropout);
        for (const int threads : {2, 3, 8}) CHECK(step("fp32", threads, 400, dropout) == one);
        for (const int max_tokens : {84, 110, 170}) CHECK(step("fp32", 2, max_tokens, dropout) == one);
    }
}

TEST_CASE("bf16: the same bits for any number of threads") {
    try {
        select_isa("avx512_bf16");
    } catch (const Error&) {
        MESSAGE("skipped: this processor has no bf16 products");
        return;
    }
    const Numbers one = step("bf16", 1, 400, 0.0);
    for (const int threads : {2, 3, 8}) CHECK(step("bf16", threads, 400, 0.0) == one);
}
