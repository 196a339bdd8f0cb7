// `orpo bench train`: seconds of whole optimizer steps on made-up pairs, beside what the machine can do: the rate of
// the step's own products, each shape run alone in the same process, the faster of our kernel and oneDNN's.
// `orpo bench kernels`: where the time of such a step goes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/philox.h"
#include "data/pack.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/onednn.h"
#include "model/engine_of.h"
#include "model/orpo_loss.h"
#include "model/weights.h"
#include "src/command.h"
#include "src/timed_kernels.h"

namespace orpo {

namespace {

struct BenchFlags {
    std::string model, dtype = "auto";
    int prompt_tokens = 256, response_tokens = 256, pairs = 1, steps = 5, rank = 16, micro_tokens = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// High-water mark of the resident set.
int64_t peak_memory_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::stoll(line.substr(6));
    return 0;
}

// Weights of a model of which only the shape matters: small numbers from a hash.
class MadeUpWeights final : public HostWeights {
  public:
    explicit MadeUpWeights(const ModelConfig& config) : HostWeights(config) {}
    std::string quantisation() const override { return "made up"; }
    uint64_t stored_bytes() const override { return 0; }

  protected:
    void load_rows(const std::string& name, int64_t first, int64_t count, float* out) const override {
        const Shape2 size = shape(name);
        const bool norm = size.rows == 1;
        const float scale = 1.0f / std::sqrt(static_cast<float>(size.cols));
        uint32_t state = static_cast<uint32_t>(std::hash<std::string>{}(name) + 977 * static_cast<uint64_t>(first));
        for (int64_t i = 0; i < count * size.cols; ++i) {
            state = state * 1664525u + 1013904223u;
            out[i] = norm ? 1.0f : (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f) * scale;
        }
    }
    void hash_tensor(const std::string&, Sha256&) const override {}
    std::string place() const override { return "made-up weights"; }
};

struct Subject {
    std::string name;
    ModelConfig config;
    std::shared_ptr<const HostWeights> weights;
};

Subject open_subject(const std::string& spec) {
    Subject s;
    if (official_config(spec, &s.config)) {
        s.name = spec + " (shapes)", s.weights = std::make_shared<MadeUpWeights>(s.config);
    } else {
        const Model model = open_model(spec);
        s.name = model.display_name, s.config = model.config, s.weights = model.weights;
    }
    return s;
}

std::vector<PreferencePair> made_up_pairs(const BenchFlags& flags, int V) {
    std::vector<PreferencePair> pairs(flags.pairs);
    for (int p = 0; p < flags.pairs; ++p) {
        pairs[p].line = p + 1;
        uint32_t part = 0;
        for (auto [ids, n] : {std::pair{&pairs[p].prompt, flags.prompt_tokens},
                              {&pairs[p].chosen, flags.response_tokens},
                              {&pairs[p].rejected, flags.response_tokens}}) {
            for (int i = 0; i < n; ++i)
                ids->push_back(static_cast<int32_t>(philox(1, {uint32_t(p), part, uint32_t(i), 0})[0] % V));
            ++part;
        }
    }
    return pairs;
}

std::vector<MicroBatch> pack_pairs(const std::vector<PreferencePair>& pairs, int max_tokens) {
    std::vector<const PreferencePair*> batch;
    for (const auto& pair : pairs) batch.push_back(&pair);
    PackOptions options;
    options.totals = batch_totals(batch, options.objective);
    options.max_tokens = max_tokens;
    options.betas = {0.1};
    return pack(batch, options);
}

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
double best_seconds(Cpu& k, const Shape& s, bool bf16, std::vector<float>& memory) {
    const int64_t a = int64_t{s.M} * s.K, b = int64_t{s.N} * s.K, c = int64_t{s.M} * s.N;
    if (static_cast<int64_t>(memory.size()) < a + b + c) memory.resize(a + b + c, 0.01f);
    float *A = memory.data(), *B = A + a, *C = B + b;
    const std::string what = s.what;
    std::unique_ptr<Cpu> scratch;  // holds one weight
    Cpu::Weight W;
    const bool forward = what == "linear", backward = what == "linear_backward";
    if (forward || backward) {
        CpuOptions options = k.options();
        scratch = std::make_unique<Cpu>(options);
        scratch->reserve(k.limits());
        const int rows = forward ? s.N : s.K, cols = forward ? s.K : s.N;
        W = scratch->prepare("W", rows, cols, forward ? kForward : kBackward,
                             [&](int64_t, int64_t count, float* out) { std::fill_n(out, count * cols, 0.01f); });
    }
    const auto once = [&] {
        if (forward) scratch->linear(s.M, A, W, C);
        if (backward) scratch->linear_backward(s.M, A, W, C);
        if (what == "lora x A^T" || what == "lora S B^T") k.gemm_nt(s.M, s.N, s.K, 1, A, s.K, B, s.K, C, s.N, false);
        if (what == "lora dS A" || what == "lora dy B") k.gemm_nn(s.M, s.N, s.K, 1, A, s.K, B, s.N, C, s.N, false);
        if (what == "lora dA" || what == "lora dB") k.gemm_tn(s.M, s.N, s.K, A, s.M, B, s.N, C, s.N);
    };
    double best = 1e30;
    for (int i = 0; i < 4; ++i) {
        const auto start = std::chrono::steady_clock::now();
        once();
        best = std::min(best, seconds_since(start));
    }
    scratch.reset();
    return std::min(best, onednn_seconds(s.M, s.N, s.K, bf16, k.threads(), 4));
}

struct Ceiling {
    double flops_per_second = 0;  // all products of the step over the time that each takes alone
};

Ceiling measure_ceiling(Cpu& k, const std::vector<Shape>& shapes, bool bf16) {
    std::vector<float> memory;
    double flops = 0, seconds = 0;
    for (const Shape& s : shapes) {
        seconds += s.times * best_seconds(k, s, bf16, memory);
        flops += s.times * s.flops();
    }
    return {flops / seconds};
}

using BenchEngine = EngineOf<Timed<Cpu>>;

struct Setup {
    Subject subject;
    std::vector<MicroBatch> micro_batches;
    std::unique_ptr<BenchEngine> engine;
    int tokens = 0, heads = 0;  // of the largest micro-batch
    int64_t planned_bytes = 0;
    double load_seconds = 0;
    double base_loss = 0;  // of the pairs, adapters at zero
};

Setup set_up(const BenchFlags& flags, const CommonFlags& common) {
    Setup s;
    const auto start = std::chrono::steady_clock::now();
    s.subject = open_subject(flags.model);
    const int64_t pair_tokens = flags.prompt_tokens + 2LL * flags.response_tokens;
    const int64_t most = flags.micro_tokens > 0 ? flags.micro_tokens : std::max<int64_t>(pair_tokens, 1536);
    s.micro_batches = pack_pairs(made_up_pairs(flags, s.subject.config.V), static_cast<int>(most));
    for (const MicroBatch& mb : s.micro_batches) {
        s.tokens = std::max(s.tokens, static_cast<int>(mb.ids.size()));
        s.heads = std::max(s.heads, static_cast<int>(mb.heads.size()));
    }
    EngineOptions options;
    options.lora.R = flags.rank, options.lora.alpha = 2 * flags.rank;
    options.sizes.tokens = s.tokens, options.sizes.heads = s.heads;
    options.sizes.max_positions = flags.prompt_tokens + flags.response_tokens;
    CpuOptions cpu;
    cpu.threads = common.threads, cpu.dtype = parse_dtype(flags.dtype);
    auto k = std::make_unique<Timed<Cpu>>(cpu);
    const std::string description = k->description();
    s.engine =
        std::make_unique<BenchEngine>(std::move(k), description, s.subject.config, s.subject.weights.get(), options);
    s.planned_bytes = s.engine->memory().bytes();
    s.load_seconds = seconds_since(start);
    for (const MicroBatch& mb : s.micro_batches) {
        std::vector<double> logp(mb.heads.size());
        s.engine->evaluate(mb, logp);
        for (const PairRecord& pair : pair_records(mb, logp))
            s.base_loss += pair.loss.nll + pair.odds_weight * pair.loss.odds_loss;
    }
    // Adapters away from zero, so that no product is with zeros.
    std::vector<float> start_values(static_cast<size_t>(s.engine->lora().slot_size()));
    for (size_t i = 0; i < start_values.size(); ++i)
        start_values[i] = 0.02f * static_cast<float>(uniform(philox(2, {uint32_t(i), 0, 0, 0})[0]) - 0.5);
    s.engine->write(Arena::kParameters, 0, start_values);
    return s;
}

// One optimizer step; returns the loss-free check that all numbers are finite.
double run_step(Setup& s, int step) {
    std::vector<double> logp;
    const auto start = std::chrono::steady_clock::now();
    s.engine->zero_gradients();
    for (const MicroBatch& mb : s.micro_batches) {
        logp.resize(mb.heads.size());
        s.engine->train(mb, logp);
    }
    const double norm = s.engine->gradient_norms()[0];
    AdamwSlot slot;
    slot.lr = 1e-5, slot.grad_scale = norm > 1 ? 1 / norm : 1;
    slot.bias1 = 1 - std::pow(slot.beta1, step), slot.bias2 = 1 - std::pow(slot.beta2, step);
    s.engine->adamw({&slot, 1});
    if (!std::isfinite(norm)) throw Error(Exit::kDiverged, "bench: the gradient is not finite");
    return seconds_since(start);
}

double useful_flops(const Setup& s) {
    double flops = 0;
    for (const auto& [name, time] : s.engine->kernels().times) flops += time.flops;
    return flops;
}

Exit bench_train(const BenchFlags& flags, Call& call) {
    Setup s = set_up(flags, call.common);
    run_step(s, 1);
    double best = 1e30, total = 0, flops = 0;
    for (int i = 0; i < flags.steps; ++i) {
        s.engine->kernels().times.clear();
        const double seconds = run_step(s, i + 2);
        best = std::min(best, seconds), total += seconds;
        flops = useful_flops(s);
    }
    const int64_t peak = peak_memory_bytes();
    Cpu& k = s.engine->kernels();
    const auto shapes = step_shapes(s.subject.config, s.engine->lora(), s.tokens, s.heads);
    const Ceiling ceiling = measure_ceiling(k, shapes, k.bf16());
    const double pairs_per_second = flags.pairs / best;
    const int64_t tokens = flags.pairs * (flags.prompt_tokens + 2LL * flags.response_tokens);
    const nlohmann::ordered_json result = {{"model", s.subject.name},
                                           {"device", s.engine->description()},
                                           {"dtype", k.bf16() ? "bf16" : "fp32"},
                                           {"pairs", flags.pairs},
                                           {"prompt_tokens", flags.prompt_tokens},
                                           {"response_tokens", flags.response_tokens},
                                           {"pairs_per_second", pairs_per_second},
                                           {"pairs_per_second_mean", flags.pairs * flags.steps / total},
                                           {"tokens_per_second", double(tokens) / best},
                                           {"useful_flops_per_pair", flops / flags.pairs},
                                           {"gemm_ceiling_flops", ceiling.flops_per_second},
                                           {"gemm_share", flops / best / ceiling.flops_per_second},
                                           {"peak_bytes", peak},
                                           {"planned_bytes", s.planned_bytes},
                                           {"load_seconds", s.load_seconds},
                                           {"base_loss", s.base_loss}};
    if (call.common.json) {
        print_line(result.dump());
        return Exit::kDone;
    }
    print_line(fmt::format("{}, {}: {} pair{} a step, {} + 2 x {} tokens, rank {}", s.subject.name,
                           s.engine->description(), flags.pairs, flags.pairs == 1 ? "" : "s", flags.prompt_tokens,
                           flags.response_tokens, flags.rank));
    print_line(fmt::format("  {:.3f} pairs/s best, {:.3f} mean of {} steps; {:.0f} tokens/s", pairs_per_second,
                           flags.pairs * flags.steps / total, flags.steps, double(tokens) / best));
    print_line(fmt::format("  {:.1f} GFLOP/s useful = {:.0f} % of {:.1f}, the rate of the step's own products alone",
                           flops / best / 1e9, 100 * flops / best / ceiling.flops_per_second,
                           ceiling.flops_per_second / 1e9));
    print_line(fmt::format("  peak memory {} (planned {}), ready after {:.1f} s", human_bytes(double(peak)),
                           human_bytes(double(s.planned_bytes)), s.load_seconds));
    return Exit::kDone;
}

Exit bench_kernels(const BenchFlags& flags, Call& call) {
    Setup s = set_up(flags, call.common);
    run_step(s, 1);
    double best = 1e30;
    OperationTimes times;
    for (int i = 0; i < flags.steps; ++i) {
        s.engine->kernels().times.clear();
        const double seconds = run_step(s, i + 2);
        if (seconds < best) best = seconds, times = s.engine->kernels().times;
    }
    std::vector<std::pair<std::string, OperationTime>> rows(times.begin(), times.end());
    std::sort(rows.begin(), rows.end(),
              [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    double seen = 0;
    if (!call.common.json) {
        print_line(fmt::format("{}, {}: one step of {} pair(s), {:.1f} ms", s.subject.name, s.engine->description(),
                               flags.pairs, best * 1e3));
        print_line(fmt::format("  {:<20}{:>8}{:>11}{:>8}{:>11}", "operation", "calls", "ms", "%", "GFLOP/s"));
    }
    for (const auto& [name, t] : rows) {
        seen += t.seconds;
        list.push_back({{"operation", name}, {"calls", t.calls}, {"seconds", t.seconds}, {"flops", t.flops}});
        if (!call.common.json)
            print_line(fmt::format("  {:<20}{:>8}{:>11.2f}{:>8.1f}{:>11}", name, t.calls, t.seconds * 1e3,
                                   100 * t.seconds / best,
                                   t.flops > 0 ? fmt::format("{:.1f}", t.flops / t.seconds / 1e9) : ""));
    }
    if (call.common.json)
        print_line(nlohmann::ordered_json{{"model", s.subject.name}, {"seconds", best}, {"operations", list}}.dump());
    else
        print_line(fmt::format("  {:<20}{:>8}{:>11.2f}{:>8.1f}", "between them", "", (best - seen) * 1e3,
                               100 * (best - seen) / best));
    return Exit::kDone;
}

void add_flags(CLI::App& app, BenchFlags& flags) {
    app.add_option("--model", flags.model,
                   "model; default: the first official one found; 135M, 360M, 1.7B: the shapes with made-up weights "
                   "where no such model is needed");
    app.add_option("--dtype", flags.dtype, "auto|fp32|bf16")->check(CLI::IsMember({"auto", "fp32", "bf16"}));
    app.add_option("--prompt-tokens", flags.prompt_tokens, "tokens of a prompt")->check(CLI::Range(1, 100000));
    app.add_option("--response-tokens", flags.response_tokens, "tokens of each answer")->check(CLI::Range(1, 100000));
    app.add_option("--pairs", flags.pairs, "pairs of an optimizer step")->check(CLI::Range(1, 4096));
    app.add_option("--steps", flags.steps, "steps that are timed")->check(CLI::Range(1, 1000));
    app.add_option("--lora-rank", flags.rank, "rank of the adapters")->check(CLI::Range(1, 256));
    app.add_option("--micro-tokens", flags.micro_tokens, "most tokens of a micro-batch; 0: chosen by the program");
}

}  // namespace

void add_bench_command(Commands& commands) {
    CLI::App& bench = commands.add("bench", "measures speed beside what the machine can do",
                                   "  orpo bench train\n  orpo bench kernels --model 135M\n", [](Call&) -> Exit {
                                       throw Error(Exit::kUsage, "orpo bench: say which, train or kernels");
                                   });
    auto train = std::make_shared<BenchFlags>();
    add_flags(commands.add(bench, "train", "pairs per second of whole optimizer steps on made-up pairs",
                           "  orpo bench train --pairs 8\n", [train](Call& call) { return bench_train(*train, call); }),
              *train);
    auto kernels = std::make_shared<BenchFlags>();
    add_flags(commands.add(bench, "kernels", "where the time of a step goes", "  orpo bench kernels\n",
                           [kernels](Call& call) { return bench_kernels(*kernels, call); }),
              *kernels);
}

}  // namespace orpo
