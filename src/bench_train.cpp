// `orpo bench train`: seconds of whole optimizer steps on made-up pairs, beside what the machine can do: on a CPU the
// rate of the step's own products, each shape run alone in the same process, the faster of our kernel and oneDNN's; on
// a GPU one large product.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/cpu/onednn.h"
#include "model/devices.h"
#include "model/orpo_loss.h"
#include "src/bench.h"
#include "src/useful_flops.h"

namespace orpo {

namespace {

// One product of a step: M rows, N columns, sums of K, how many times a step runs it.
struct Shape {
    const char* what;
    int M, N, K;
    double times;
    double flops() const { return 2.0 * M * N * K; }
};

std::vector<Shape> step_shapes(const ModelConfig& c, const LoraLayout& lora, int tokens, int heads) {
    std::vector<Shape> shapes;
    const double L = c.L;
    const HeadShape h{c.H, c.KV, c.HS};
    for (const auto& [out, in, back] :
         {std::array{h.width(), c.C, c.L - 1}, {c.C, c.H * c.HS, c.L}, {2 * c.I, c.C, c.L}, {c.C, c.I, c.L}}) {
        shapes.push_back({"linear", tokens, out, in, L});
        shapes.push_back({"linear_backward", tokens, in, out, double(back)});
    }
    const int chunk = std::min(heads, 256);
    shapes.push_back({"linear", chunk, c.V, c.C, double(heads) / chunk});
    shapes.push_back({"linear_backward", chunk, c.C, c.V, double(heads) / chunk});
    for (int g = 0; g < kGroups; ++g) {
        const LoraGroup& group = lora.group(0, g);
        if (group.width == 0) continue;
        shapes.push_back({"lora x A^T", tokens, group.width, group.in, L});
        shapes.push_back({"lora dS A", tokens, group.in, group.width, L});
        shapes.push_back({"lora dA", group.width, group.in, tokens, L});
        for (const LoraTarget& t : group.targets) {
            shapes.push_back({"lora S B^T", tokens, t.out, lora.R(), L});
            shapes.push_back({"lora dy B", tokens, lora.R(), t.out, L});
            shapes.push_back({"lora dB", t.out, lora.R(), tokens, L});
        }
    }
    return shapes;
}

// Seconds of one such product alone: the best of our kernel and oneDNN's, which holds its weights packed for the shape.
template <class T>
double best_seconds(Cpu<T>& k, const Shape& s, std::vector<float>& memory) {
    const int64_t a = int64_t{s.M} * s.K, b = int64_t{s.N} * s.K, c = int64_t{s.M} * s.N;
    if (static_cast<int64_t>(memory.size()) < a + b + c) memory.resize(a + b + c, 0.01f);
    // The bits of 0.01f are ordinary numbers as two bf16, too.
    T *A = reinterpret_cast<T*>(memory.data()), *B = A + a, *C = B + b;
    float* sums = memory.data() + a + b;
    const std::string what = s.what;
    std::unique_ptr<Cpu<T>> scratch;  // holds one weight
    typename Cpu<T>::Weight W;
    const bool forward = what == "linear", backward = what == "linear_backward";
    if (forward || backward) {
        CpuOptions options = k.options();
        scratch = std::make_unique<Cpu<T>>(options);
        const int rows = forward ? s.N : s.K, cols = forward ? s.K : s.N;
        Limits limits = k.limits();
        limits.I = std::max(limits.I, (std::max(rows, cols) + 1) / 2);  // the head is turned as if it were a layer's
        scratch->reserve(limits);
        W = scratch->prepare("W", rows, cols, forward ? kForward : kBackward,
                             [&](int64_t, int64_t count, float* out) { std::fill_n(out, count * cols, 0.01f); });
    }
    const auto once = [&] {
        if (forward) scratch->linear(s.M, A, W, C);
        if (backward) scratch->linear_backward(s.M, A, W, C);
        if (what == "lora x A^T" || what == "lora S B^T") k.gemm_nt(s.M, s.N, s.K, 1, A, s.K, B, s.K, C, s.N, false);
        if (what == "lora dS A" || what == "lora dy B") k.gemm_nn(s.M, s.N, s.K, 1, A, s.K, B, s.N, C, s.N, false);
        if (what == "lora dA" || what == "lora dB") k.gemm_tn(s.M, s.N, s.K, A, s.M, B, s.N, sums, s.N);
    };
    double best = 1e30;
    for (int i = 0; i < 4; ++i) {
        const auto start = std::chrono::steady_clock::now();
        once();
        best = std::min(best, seconds_since(start));
    }
    scratch.reset();
    return std::min(best, onednn_seconds(s.M, s.N, s.K, sizeof(T) == 2, k.threads(), 4));
}

// FLOP/s of all products of the step over the time that each takes alone: its best of rounds that lie seconds apart,
// for machines that are shared change their speed within seconds.
template <class T>
double measure_ceiling(Cpu<T>& k, const std::vector<Shape>& shapes) {
    constexpr int kRounds = 3;
    std::vector<float> memory;
    std::vector<double> best(shapes.size(), 1e30);
    for (int round = 0; round < kRounds; ++round)
        for (size_t i = 0; i < shapes.size(); ++i) best[i] = std::min(best[i], best_seconds(k, shapes[i], memory));
    double flops = 0, seconds = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
        seconds += shapes[i].times * best[i];
        flops += shapes[i].times * shapes[i].flops();
    }
    return flops / seconds;
}

double gpu_ceiling(const BenchFlags& flags, const DeviceOptions& device) {
    cuda::BenchRequest request;
    request.dtype = device.dtype;
    if (flags.gemm_size > 0) request.gemm_size = flags.gemm_size;
    if (flags.copy_bytes > 0) request.copy_bytes = flags.copy_bytes;
    return bench_cuda(device.device, request).ceilings.gemm_flops_per_second;
}

double cpu_ceiling(const ModelConfig& config, const LoraLayout& lora, const EngineOptions& options,
                   const DeviceOptions& device) {
    return with_dtype(device.dtype, [&](auto t) {
        CpuOptions cpu;
        cpu.threads = device.threads;
        Cpu<decltype(t)> k(cpu);
        k.reserve({options.sizes.tokens,
                   options.sizes.heads,
                   config.C,
                   config.I,
                   config.V,
                   {config.H, config.KV, config.HS},
                   true});
        return measure_ceiling(k, step_shapes(config, lora, options.sizes.tokens, options.sizes.heads));
    });
}

// The loss of the pairs with the adapters at zero.
double base_loss(Engine& engine, const std::vector<MicroBatch>& batches) {
    double loss = 0;
    for (const MicroBatch& mb : batches) {
        std::vector<double> logp(mb.heads.size());
        engine.evaluate(mb, logp);
        for (const PairRecord& pair : pair_records(mb, logp))
            loss += pair.loss.nll + pair.odds_weight * pair.loss.odds_loss;
    }
    return loss;
}

}  // namespace

Exit bench_train(const BenchFlags& given, Call& call) {
    BenchFlags flags = given;
    const DeviceOptions device = bench_device(flags, call);
    const bool gpu = device.device != "cpu";
    const auto start = std::chrono::steady_clock::now();
    const BenchSubject subject = open_subject(flags.model);
    EngineOptions options;
    if (gpu) options = plan_gpu(flags, subject, device);
    const std::vector<MicroBatch> batches = made_up_batches(flags, subject.config, device.device);
    if (!gpu) options = training_options(flags, batches);
    std::unique_ptr<Engine> engine = make_engine(device, subject.config, subject.weights.get(), options);
    const double load_seconds = seconds_since(start);
    const double first_loss = base_loss(*engine, batches);
    start_adapters(*engine);
    double flops = 0, best = 1e30, total = 0;
    for (const MicroBatch& mb : batches) flops += useful_flops(subject.config, engine->lora(), mb);
    // On a GPU the first step chooses kernels and the second one captures the graph.
    const int warm = gpu ? 2 : 1;
    for (int i = 0; i < warm; ++i) run_step(*engine, batches, i + 1);
    for (int i = 0; i < flags.steps; ++i) {
        const double seconds = run_step(*engine, batches, i + 1 + warm);
        best = std::min(best, seconds), total += seconds;
    }
    const int64_t peak = gpu ? engine->memory().bytes() : peak_memory_bytes();
    const int64_t planned = engine->memory().bytes();
    const LoraLayout lora = engine->lora();
    const std::string description = engine->description();
    engine.reset();  // the ceiling's product takes the memory
    const double ceiling = gpu ? gpu_ceiling(flags, device) : cpu_ceiling(subject.config, lora, options, device);
    const double pairs_per_second = flags.pairs / best;
    int64_t tokens = 0;
    for (const MicroBatch& mb : batches) tokens += static_cast<int64_t>(mb.ids.size());
    const nlohmann::ordered_json result = {{"model", subject.name},
                                           {"device", description},
                                           {"dtype", device.dtype},
                                           {"pairs", flags.pairs},
                                           {"tokens", tokens},
                                           {"prompt_tokens", flags.prompt_tokens},
                                           {"response_tokens", flags.response_tokens},
                                           {"pairs_per_second", pairs_per_second},
                                           {"pairs_per_second_mean", flags.pairs * flags.steps / total},
                                           {"tokens_per_second", double(tokens) / best},
                                           {"useful_flops_per_pair", flops / flags.pairs},
                                           {"gemm_ceiling_flops", ceiling},
                                           {"gemm_share", flops / best / ceiling},
                                           {"micro_batch_tokens", options.sizes.tokens},
                                           {"peak_bytes", peak},
                                           {"planned_bytes", planned},
                                           {"load_seconds", load_seconds},
                                           {"base_loss", first_loss}};
    if (call.common.json) {
        print_line(result.dump());
        return Exit::kDone;
    }
    const std::string lengths = flags.lengths.empty()
                                    ? fmt::format("{} + 2 x {}", flags.prompt_tokens, flags.response_tokens)
                                    : fmt::format("{} (from {})", tokens, flags.lengths);
    print_line(fmt::format("{}, {}: {} pair{} a step, {} tokens, rank {}", subject.name, description, flags.pairs,
                           flags.pairs == 1 ? "" : "s", lengths, flags.rank));
    print_line(fmt::format("  {:.3f} pairs/s best, {:.3f} mean of {} steps; {:.0f} tokens/s", pairs_per_second,
                           flags.pairs * flags.steps / total, flags.steps, double(tokens) / best));
    print_line(fmt::format("  {:.1f} GFLOP/s useful = {:.0f} % of {:.1f}, {}", flops / best / 1e9,
                           100 * flops / best / ceiling, ceiling / 1e9,
                           gpu ? "the rate of one large product" : "the rate of the step's own products alone"));
    print_line(fmt::format("  {} {} (planned {}), ready after {:.1f} s", gpu ? "GPU memory" : "peak memory",
                           human_bytes(double(peak)), human_bytes(double(planned)), load_seconds));
    return Exit::kDone;
}

}  // namespace orpo
