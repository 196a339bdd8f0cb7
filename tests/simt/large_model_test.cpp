// The CUDA backend at the sizes of real models. The 1.7B: its memory is reserved and counted, and every launch and
// product is made by the host code that a GPU will run, but nothing is computed. The real 135M: one optimizer step on
// one short pair, computed, beside the CPU backend.
#include <doctest/doctest.h>

#include "kernels/cuda/cuda.h"
#include "model/devices.h"
#include "model/engine_of.h"
#include "model/tokenizer.h"
#include "tests/simt/standin.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

constexpr int64_t kCap = (int64_t{45} << 30) / 2;  // 22.5 GiB
// What the card holds besides our arrays.
constexpr int64_t kBeside = cuda::kContextBytes + cuda::kProductWorkspace;

// Nobody looks at the values.
class NoWeights final : public HostWeights {
  public:
    explicit NoWeights(const ModelConfig& config) : HostWeights(config) {}
    std::string quantisation() const override { return "none"; }
    uint64_t stored_bytes() const override { return 0; }
    std::string place() const override { return "no model"; }

  protected:
    void load_rows(const std::string&, int64_t, int64_t, float*) const override {}
    void hash_tensor(const std::string&, Sha256&) const override {}
};

ModelConfig shape_of(const char* size) {
    ModelConfig config;
    REQUIRE(official_config(size, &config));
    return config;
}

EngineOptions training(int tokens, Keep keep) {
    EngineOptions o;
    o.lora.R = 16, o.lora.alpha = 32;
    o.sizes = {tokens, tokens, 1024, keep};
    return o;
}

// An engine over a counted device, made as the CUDA library makes it.
struct Counted {
    Counted(const ModelConfig& config, const EngineOptions& options, int64_t card)
        : weights(config), plan(plan_memory({"cuda:0", "bf16", 0}, config, options)) {
        cuda::StandinOptions counted;
        counted.bytes = card, counted.counted = true;
        device = cuda::StandinDevice::make(counted);
        using K = cuda::Cuda<bf16>;
        engine =
            std::make_unique<EngineOf<K>>(std::make_unique<K>(device, &plan), "counted", config, &weights, options);
    }
    NoWeights weights;
    MemoryTable plan;
    std::shared_ptr<cuda::StandinDevice> device;
    std::unique_ptr<Engine> engine;
};

// Pairs of 256 + 2 * 256 tokens that fill a micro-batch of `tokens`.
std::vector<MicroBatch> full_batch(int tokens, int V) {
    std::vector<PreferencePair> pairs(static_cast<size_t>(tokens / 768));
    for (size_t i = 0; i < pairs.size(); ++i) {
        pairs[i].line = static_cast<int64_t>(i) + 1;
        pairs[i].prompt = pairs[i].chosen = pairs[i].rejected = std::vector<int32_t>(256, static_cast<int32_t>(i) % V);
    }
    return pack(pointers(pairs), pack_options(pairs, {}, tokens));
}

}  // namespace

TEST_CASE("1.7B: the arrays that the host code takes are the plan, to the byte, in every mode") {
    const ModelConfig config = shape_of("1.7B");
    for (const auto& [tokens, keep] :
         {std::pair{8192, Keep::kAll}, {13056, Keep::kActivations}, {16384, Keep::kNoGateUp}, {2048, Keep::kInputs}}) {
        const Counted run(config, training(tokens, keep), int64_t{80} << 30);
        const cuda::StandinStatistics& s = run.device->statistics();
        CHECK(s.bytes == run.plan.bytes());      // allocated
        CHECK(s.in_arrays == run.plan.bytes());  // and cut into arrays, without a byte left over
        CHECK(run.engine->memory().bytes() == run.plan.bytes());
        MESSAGE(tokens, " tokens, mode ", static_cast<int>(keep), ": ", run.plan.bytes(), " bytes");
    }
}

TEST_CASE(
    "1.7B: 13,056 tokens without making a product again fit 22.5 GiB; 2,048 tokens fit 5 GB with all but our arrays") {
    const ModelConfig config = shape_of("1.7B");
    const auto bytes = [&](int tokens, Keep keep) {
        return plan_memory({"cuda:0", "bf16", 0}, config, training(tokens, keep)).bytes();
    };
    CHECK(bytes(13056, Keep::kActivations) <= kCap);
    CHECK(bytes(2048, Keep::kInputs) + kBeside <= 5'000'000'000);
    CHECK(bytes(13056, Keep::kAll) > kCap);  // control: the cap does cut
    // A card that is one byte too small refuses.
    const EngineOptions options = training(2048, Keep::kInputs);
    CHECK_NOTHROW(Counted(config, options, bytes(2048, Keep::kInputs)));
    CHECK_THROWS_AS(Counted(config, options, bytes(2048, Keep::kInputs) - 1), Error);
}

TEST_CASE("1.7B: a micro-step is one copy in, one replay, one copy out; the default mode makes no product again") {
    const ModelConfig config = shape_of("1.7B");
    std::map<Keep, int> products;
    for (const Keep keep : {Keep::kAll, Keep::kActivations, Keep::kNoGateUp, Keep::kInputs}) {
        const Counted run(config, training(8192, keep), int64_t{80} << 30);
        const auto batches = full_batch(8192, config.V);
        REQUIRE(batches.size() == 1);
        std::vector<double> logp(batches[0].heads.size());
        run.engine->train(batches[0], logp);  // plain
        run.engine->train(batches[0], logp);  // captured
        const cuda::StandinStatistics before = run.device->statistics();
        run.engine->train(batches[0], logp);
        const cuda::StandinStatistics& after = run.device->statistics();
        CHECK(after.copies_in - before.copies_in == 1);
        CHECK(after.replays - before.replays == 1);
        CHECK(after.copies_out - before.copies_out == 1);
        CHECK(after.launches == before.launches);
        CHECK(after.products == before.products);
        CHECK(after.fills == before.fills);
        CHECK(after.captures == 1);
        CHECK(after.bytes == before.bytes);  // nothing grows
        products[keep] = after.graph_products;
        MESSAGE("mode ", static_cast<int>(keep), ": a graph of ", after.graph_launches, " kernels and ",
                after.graph_products, " products");
    }
    CHECK(products[Keep::kAll] == products[Keep::kActivations]);
    CHECK(products[Keep::kNoGateUp] == products[Keep::kActivations] + config.L * 2);  // x A^T, [W | B]
    CHECK(products[Keep::kInputs] > products[Keep::kNoGateUp]);
}

TEST_CASE("the real 135M: one optimizer step on one short pair equals the CPU's") {
    Model model;
    try {
        model = open_model("");
    } catch (const Error& error) {
        MESSAGE("SKIPPED: no model (", error.what(), ")");
        return;
    }
    const ModelConfig& config = model.config;
    if (config.L != 30) {
        MESSAGE("SKIPPED: the first model found is not the 135M");
        return;
    }
    std::vector<PreferencePair> pairs(1);
    pairs[0].line = 1;
    const Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    pairs[0].prompt = tokenizer.encode("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n");
    pairs[0].chosen = tokenizer.encode("Air scatters blue light more than red light.<|im_end|>\n");
    pairs[0].rejected = tokenizer.encode("It is blue because it mirrors the sea.<|im_end|>\n");
    const auto batches = pack(pointers(pairs), pack_options(pairs, {}, 64));
    EngineOptions o = training(64, Keep::kActivations);
    o.sizes.max_positions = 64;
    o.lora.R = 4, o.lora.alpha = 8;

    struct Step {
        double loss = 0, norm = 0;
        std::vector<float> gradients, parameters;
    };
    std::vector<float> start;
    const auto step_of = [&](Engine& engine) {
        Step step;
        if (start.empty()) start = random_adapter(engine.lora(), "start", 0.02);
        step.gradients.resize(start.size()), step.parameters.resize(start.size());
        engine.write(Arena::kParameters, 0, start);
        engine.zero_gradients();
        std::vector<double> logp(batches[0].heads.size());
        engine.train(batches[0], logp);
        for (const PairRecord& r : pair_records(batches[0], logp))
            step.loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
        step.norm = engine.gradient_norms()[0];
        engine.read(Arena::kGradients, 0, step.gradients);
        AdamwSlot slot;
        slot.lr = 1e-3, slot.eps = 1e-2;  // so that the update shows sizes, not only signs
        slot.bias1 = 0.1, slot.bias2 = 0.001;
        slot.grad_scale = 1 / step.norm;
        engine.adamw({&slot, 1});
        engine.read(Arena::kParameters, 0, step.parameters);
        for (size_t i = 0; i < start.size(); ++i) step.parameters[i] -= start[i];  // the update
        return step;
    };
    const Step want = step_of(*make_engine({"cpu", "fp32", 0}, config, model.weights.get(), o));
    const auto on_standin = [&]<class T>(T, const char* dtype) {
        const MemoryTable plan = plan_memory({"cuda:0", dtype, 0}, config, o);
        using K = cuda::Cuda<T>;
        EngineOf<K> engine(std::make_unique<K>(cuda::StandinDevice::make(), &plan), dtype, config, model.weights.get(),
                           o);
        return step_of(engine);
    };
    const Step fp32 = on_standin(0.0f, "fp32");
    MESSAGE("fp32: loss ", fp32.loss, " and ", want.loss, ", gradients differ by ",
            relative_error(fp32.gradients, want.gradients), ", updates by ",
            relative_error(fp32.parameters, want.parameters));
    CHECK(std::abs(fp32.loss - want.loss) <= 1e-5 * want.loss);
    CHECK(relative_error(fp32.gradients, want.gradients) <= 3e-5);  // 30 layers of rounding on either side
    CHECK(relative_error(fp32.parameters, want.parameters) <= 1e-4);

    const Step bf16 = on_standin(orpo::bf16{}, "bf16");
    MESSAGE("bf16: loss ", bf16.loss, ", cosine of gradients ", cosine(bf16.gradients, want.gradients));
    CHECK(std::abs(bf16.loss - want.loss) <= 5e-3);
    CHECK(cosine(bf16.gradients, want.gradients) >= 0.995);
    double worst = 1;
    const LoraLayout layout(config, o.lora);
    for (int l = 0; l < config.L; ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            const auto part = [&](const std::vector<float>& all, int64_t first, int64_t n) {
                return std::vector<float>(all.begin() + first, all.begin() + first + n);
            };
            const auto look = [&](int64_t first, int64_t n) {
                const double along = cosine(part(bf16.gradients, first, n), part(want.gradients, first, n));
                if (!(along >= worst)) worst = along;  // NaN too
            };
            for (const LoraTarget& t : group.targets) {
                look(group.a + int64_t{t.rank_offset} * group.in, int64_t{layout.R()} * group.in);
                look(t.b, int64_t{t.out} * layout.R());
            }
        }
    MESSAGE("worst tensor ", worst);
    CHECK(worst >= 0.98);
}
