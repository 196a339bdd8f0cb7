// The whole CUDA backend on the stand-in: the host code that a GPU will run (offsets, launches, padding, memory plan,
// graphs) trains a tiny model and equals the reference.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/cuda.h"
#include "tests/simt/simt.h"
#include "tests/simt/standin.h"

#include "kernels/cpu/cpu.h"
#include "model/engine_of.h"
#include "model/generate.h"
#include "tests/tiny_model.h"

using namespace orpo;
using namespace orpo::test;

namespace {

ModelConfig gpu_config() {
    ModelConfig c = tiny_config();
    c.V = 96, c.C = 48, c.HS = 64, c.I = 40;
    return c;
}

template <class T>
struct Gpu {
    explicit Gpu(const EngineOptions& options, const ModelConfig& config = gpu_config()) : weights(config) {
        EngineOptions planning = options;
        planning.planning = true;
        EngineOf<cuda::Cuda<T>> plan(std::make_unique<cuda::Cuda<T>>(nullptr, nullptr), "plan", config, nullptr, planning);
        planned = plan.memory().bytes();
        device = cuda::StandinDevice::make();
        engine = std::make_unique<EngineOf<cuda::Cuda<T>>>(std::make_unique<cuda::Cuda<T>>(device, &plan.memory()),
                                                           "stand-in", config, &weights, options);
    }
    RandomWeights weights;
    int64_t planned = 0;
    std::shared_ptr<cuda::StandinDevice> device;
    std::unique_ptr<Engine> engine;
};

EngineOptions options(int tokens, Keep keep = Keep::kActivations, double dropout = 0) {
    EngineOptions o;
    o.lora.R = 8, o.lora.alpha = 16, o.lora.dropout = dropout;
    o.sizes = {tokens, tokens, 64};
    o.sizes.keep = keep;
    return o;
}

struct Run {
    std::vector<double> losses;
    std::vector<float> gradients, parameters;
};
// A few optimizer steps on the same pairs, cut into micro-batches.
Run train(Engine& engine, const std::vector<PreferencePair>& pairs, int steps, int max_tokens) {
    Run run;
    const auto start = random_adapter(engine.lora(), "start");
    engine.write(Arena::kParameters, 0, start);
    for (int step = 1; step <= steps; ++step) {
        engine.zero_gradients();
        double loss = 0;
        for (const MicroBatch& mb : pack(pointers(pairs), pack_options(pairs, {}, max_tokens))) {
            std::vector<double> logp(mb.heads.size());
            engine.train(mb, logp);
            for (const PairRecord& r : pair_records(mb, logp)) loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
        }
        run.losses.push_back(loss);
        AdamwSlot slot;
        slot.lr = 1e-3;
        slot.bias1 = 1 - std::pow(0.9, step), slot.bias2 = 1 - std::pow(0.999, step);
        slot.grad_scale = 1 / std::max(1.0, engine.gradient_norms()[0]);
        if (step == 1) {
            run.gradients.resize(start.size());
            engine.read(Arena::kGradients, 0, run.gradients);
        }
        engine.adamw(std::span(&slot, 1));
    }
    run.parameters.resize(start.size());
    engine.read(Arena::kParameters, 0, run.parameters);
    return run;
}

std::unique_ptr<Engine> oracle(const EngineOptions& o, const RandomWeights& weights, const ModelConfig& config) {
    return std::make_unique<EngineOf<Reference<double>>>(std::make_unique<Reference<double>>(), "reference", config,
                                                         &weights, o);
}

}  // namespace

TEST_CASE("stand-in, fp32: steps equal the reference; replayed graphs give the bits of plain launches") {
    const auto pairs = random_pairs(5, 96);
    const EngineOptions o = options(128);
    Gpu<float> gpu(o);
    const Run got = train(*gpu.engine, pairs, 4, 128), want = train(*oracle(o, gpu.weights, gpu_config()), pairs, 4, 128);
    for (size_t i = 0; i < want.losses.size(); ++i) CHECK(got.losses[i] == doctest::Approx(want.losses[i]).epsilon(1e-5));
    CHECK(relative_error(got.gradients, want.gradients) <= 1e-5);
    CHECK(relative_error(got.parameters, want.parameters) <= 1e-5);
    CHECK(gpu.device->statistics().captures >= 1);
    CHECK(gpu.device->statistics().replays >= 2);
    CHECK(gpu.device->statistics().bytes == gpu.planned);
}

TEST_CASE("stand-in, bf16: gradients point where ours in fp32 do") {
    const auto pairs = random_pairs(4, 96);
    const EngineOptions o = options(128);
    Gpu<bf16> gpu(o);
    const Run got = train(*gpu.engine, pairs, 1, 128), want = train(*oracle(o, gpu.weights, gpu_config()), pairs, 1, 128);
    CHECK(got.losses[0] == doctest::Approx(want.losses[0]).epsilon(5e-3));
    CHECK(cosine(got.gradients, want.gradients) >= 0.995);
}

TEST_CASE("stand-in: every memory mode and every cut into micro-batches gives the same gradients") {
    const auto pairs = random_pairs(4, 96);
    Gpu<float> all(options(128));
    const Run want = train(*all.engine, pairs, 1, 128);
    for (const Keep keep : {Keep::kAll, Keep::kNoGateUp, Keep::kInputs}) {
        Gpu<float> gpu(options(128, keep));
        CHECK((gpu.planned < all.planned) == (keep != Keep::kAll));
        CHECK(relative_error(train(*gpu.engine, pairs, 1, 128).gradients, want.gradients) <= 1e-6);
    }
    Gpu<float> small(options(40));
    CHECK(relative_error(train(*small.engine, pairs, 1, 40).gradients, want.gradients) <= 1e-5);
}

TEST_CASE("stand-in: dropout masks are those of the reference") {
    const auto pairs = random_pairs(3, 96);
    const EngineOptions o = options(64, Keep::kActivations, 0.25);
    Gpu<float> gpu(o);
    const Run got = train(*gpu.engine, pairs, 1, 64), want = train(*oracle(o, gpu.weights, gpu_config()), pairs, 1, 64);
    CHECK(relative_error(got.gradients, want.gradients) <= 1e-5);
}

TEST_CASE("stand-in, fp32: generation gives the CPU's text; decoding is replayed, and only token ids leave the device") {
    EngineOptions o = options(80, Keep::kNothing);
    o.sizes.sequences = o.sizes.heads = 3, o.sizes.max_positions = 90;
    Gpu<float> gpu(o);
    const auto cpu = std::make_unique<EngineOf<Cpu<float>>>(std::make_unique<Cpu<float>>(), "CPU", gpu_config(), &gpu.weights, o);
    const auto adapter = random_adapter(cpu->lora(), "adapter");
    for (Engine* engine : {gpu.engine.get(), static_cast<Engine*>(cpu.get())})
        engine->write(Arena::kParameters, 0, adapter);
    // Few rows (gemv), many rows (products, padded to a captured size), and more prompts than places.
    std::vector<std::vector<int32_t>> prompts;
    for (const int length : {70, 3, 20, 1}) prompts.push_back(random_ids("prompt" + std::to_string(length), length, 96));
    Sampling greedy, drawn;
    greedy.max_tokens = drawn.max_tokens = 6;
    drawn.temperature = 0.9, drawn.top_k = 30, drawn.top_p = 0.95, drawn.min_p = 0.02, drawn.seed = 11;
    for (const Sampling& sampling : {greedy, drawn}) {
        const int64_t before = gpu.device->statistics().bytes_out;
        const auto got = generate(*gpu.engine, nullptr, prompts, sampling), want = generate(*cpu, nullptr, prompts, sampling);
        int64_t tokens = 0;
        for (size_t i = 0; i < prompts.size(); ++i) {
            CHECK(got[i].ids == want[i].ids);
            tokens += static_cast<int64_t>(got[i].ids.size());
        }
        // A padded prompt scores up to `heads` rows.
        CHECK(gpu.device->statistics().bytes_out - before <= (tokens + 3) * 4);
    }
    CHECK(gpu.device->statistics().replays >= 8);
}

TEST_CASE("stand-in: NaN weights are reported by generation") {
    EngineOptions o = options(8, Keep::kNothing);
    o.sizes.sequences = o.sizes.heads = 1;
    Gpu<float> gpu(o);
    gpu.engine->write(Arena::kParameters, 0, std::vector<float>(gpu.engine->lora().slot_size(), NAN));
    CHECK_THROWS_AS(generate(*gpu.engine, nullptr, std::vector<std::vector<int32_t>>{{1, 2}}, Sampling{}), Error);
}

namespace {

// How a child process that does f ends: 0, or the signal that killed it.
int signal_of(const std::function<void()>& f) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        const rlimit none{0, 0};
        setrlimit(RLIMIT_CORE, &none);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

float first_of(const void* p) { return *static_cast<const volatile float*>(p); }

}  // namespace

TEST_CASE("stand-in: the host may not touch device memory") {
    auto device = cuda::StandinDevice::make();
    void* block = device->allocate(8192);
    auto* p = static_cast<float*>(device->part(block, 0, 400));
    const std::vector<float> ones(100, 1.0f);
    CHECK(signal_of([&] { first_of(p); }) == SIGSEGV);
    CHECK(signal_of([&] { *static_cast<volatile float*>(p) = 1; }) == SIGSEGV);
    CHECK(signal_of([&] { first_of(block); }) == SIGSEGV);
    CHECK(signal_of([&] { device->copy_in(p, ones.data(), 400), device->wait(); }) == 0);
    device->copy_in(p, ones.data(), 400);
    device->wait();
    CHECK(signal_of([&] { first_of(p); }) == SIGSEGV);  // nor afterwards
    CHECK(signal_of([&] { cuda::cast<float>(nullptr, 100, ones.data(), p), device->wait(); }) == 0);
}

TEST_CASE("stand-in: what was never written is NaN, and spreads") {
    auto device = cuda::StandinDevice::make();
    void* block = device->allocate(8192);
    auto* a = static_cast<float*>(device->part(block, 0, 256));
    auto* b = static_cast<float*>(device->part(block, 256, 256));
    float value = 0;
    device->copy_out(a, &value, 4);
    CHECK(std::isnan(value));
    cuda::cast<float>(nullptr, 64, a, b);
    device->copy_out(b + 63, &value, 4);
    CHECK(std::isnan(value));
    device->zero(a, 256);
    cuda::cast<float>(nullptr, 64, a, b);
    device->copy_out(b + 63, &value, 4);
    CHECK(value == 0);
}

TEST_CASE("stand-in: one element past an array is seen, with and without a gap to its pages' end") {
    auto device = cuda::StandinDevice::make();
    void* block = device->allocate(1 << 16);
    auto* source = static_cast<float*>(device->part(block, 0, 4096));
    auto* whole = static_cast<float*>(device->part(block, 4096, 1024));
    auto* ragged = static_cast<float*>(device->part(block, 8192, 1000));
    device->zero(source, 4096);
    const auto copy = [&](int n, const float* from, float* to) {
        cuda::cast<float>(nullptr, n, from, to);
        device->wait();
    };
    copy(256, source, whole), copy(250, source, ragged);  // to the last element: fine
    CHECK(signal_of([&] { copy(257, source, whole); }) == SIGSEGV);
    CHECK(signal_of([&] { copy(257, whole, source); }) == SIGSEGV);
    CHECK_THROWS_AS(copy(251, source, ragged), Error);
    auto other = cuda::StandinDevice::make();
    auto* before = static_cast<float*>(other->part(other->allocate(4096), 0, 1024));
    const float one = 1;
    CHECK_THROWS(other->copy_in(before - 1, &one, 4));
    // Products are checked by their shapes: A (4, 8), B (8, 4), C (4, 4).
    cuda::Product p;
    p.M = 4, p.N = 4, p.K = 8, p.lda = 8, p.ldb = 4, p.ldc = 4;
    p.in = p.out = cuda::Number::kFloat;
    float* A = before;
    CHECK_NOTHROW(other->multiply(p, A, A + 32, A + 1024 / 4 - 16));
    CHECK_THROWS(other->multiply(p, A, A + 32, A + 1024 / 4 - 15));
    CHECK_THROWS(other->multiply(p, A, A + 1024 / 4 - 31, A + 64));
}

TEST_CASE("stand-in: arrays lie inside their allocation and never overlap; no more is given than there is") {
    cuda::StandinOptions options;
    options.bytes = 1 << 20, options.taken = 1 << 18;
    auto device = cuda::StandinDevice::make(options);
    void* block = device->allocate(1 << 19);
    device->part(block, 256, 300);  // takes 512
    CHECK_THROWS(device->part(block, 512, 4));
    CHECK_THROWS(device->part(block, 0, 257));
    CHECK_THROWS(device->part(block, (1 << 19) - 256, 257));
    CHECK_THROWS(device->part(block, 100, 4));
    CHECK_NOTHROW(device->part(block, (1 << 19) - 256, 256));
    try {
        device->allocate(1 << 19);
        FAIL("more than there is");
    } catch (const Error& error) {
        CHECK(error.exit() == Exit::kMemory);
        CHECK(std::string(error.what()).find("--memory-limit") != std::string::npos);
    }
}
