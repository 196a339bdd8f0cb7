#include "src/bench.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/io.h"
#include "base/philox.h"
#include "data/pack.h"
#include "kernels/cpu/onednn.h"
#include "model/bench_operations.h"
#include "model/devices.h"
#include "src/config.h"
#include "src/host_memory.h"
#include "src/train_plan.h"

namespace orpo {

namespace {

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

// Rows of a micro-batch when nothing is said: enough for products at their best rate.
constexpr int kCpuTokens = 1536, kGpuTokens = 16384;
constexpr int64_t kFlushBytes = int64_t{64} << 20;  // more than a core's share of any cache

// (prompt, chosen, rejected) tokens of each pair.
std::vector<std::array<int, 3>> pair_lengths(const BenchFlags& flags) {
    if (flags.lengths.empty())
        return std::vector<std::array<int, 3>>(flags.pairs,
                                               {flags.prompt_tokens, flags.response_tokens, flags.response_tokens});
    std::vector<std::array<int, 3>> all;
    std::istringstream lines(io::read_file(flags.lengths, 1 << 20));
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::array<int, 3> n{};
        std::string rest;
        if (!(words >> n[0] >> n[1] >> n[2]) || words >> rest || *std::min_element(n.begin(), n.end()) < 1 ||
            *std::max_element(n.begin(), n.end()) > 100000)
            throw Error(Exit::kBadData, flags.lengths + ":" + std::to_string(all.size() + 1) +
                                            ": three token counts from 1 to 100000: prompt chosen rejected");
        all.push_back(n);
    }
    if (static_cast<int>(all.size()) < flags.pairs)
        throw Error(Exit::kBadData, flags.lengths + ": " + std::to_string(all.size()) +
                                        " pairs, and --pairs asks for " + std::to_string(flags.pairs));
    all.resize(flags.pairs);
    return all;
}

// Random tokens; tools/bench_peers.py and tools/bench_gpu_peers.py make the same ones.
std::vector<PreferencePair> made_up_pairs(const BenchFlags& flags, int V) {
    const auto lengths = pair_lengths(flags);
    std::vector<PreferencePair> pairs(flags.pairs);
    for (int p = 0; p < flags.pairs; ++p) {
        pairs[p].line = p + 1;
        uint32_t part = 0;
        for (std::vector<int32_t>* ids : {&pairs[p].prompt, &pairs[p].chosen, &pairs[p].rejected}) {
            for (int i = 0; i < lengths[p][part]; ++i)
                ids->push_back(static_cast<int32_t>(philox(1, {uint32_t(p), part, uint32_t(i), 0})[0] % V));
            ++part;
        }
    }
    return pairs;
}

// Tokens of the longest of the pairs, and of the longest sequence.
int64_t longest_pair(const BenchFlags& flags) {
    int64_t longest = 0;
    for (const auto& [p, c, r] : pair_lengths(flags)) longest = std::max<int64_t>(longest, int64_t{p} + c + r);
    return longest;
}
int longest_sequence(const BenchFlags& flags) {
    int longest = 0;
    for (const auto& [p, c, r] : pair_lengths(flags)) longest = std::max(longest, p + std::max(c, r));
    return longest;
}

}  // namespace

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t peak_memory_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::stoll(line.substr(6));
    return 0;
}

void BenchFlags::add_model(CLI::App& app) {
    app.add_option("--model", model,
                   "model; default: the first official one found; 135M, 360M, 1.7B: the shapes with made-up weights "
                   "where no such model is needed");
    app.add_option("--dtype", dtype, "auto|fp32|bf16")->check(CLI::IsMember({"auto", "fp32", "bf16"}));
}

void BenchFlags::add_pairs(CLI::App& app) {
    app.add_option("--prompt-tokens", prompt_tokens, "tokens of a prompt")->check(CLI::Range(1, 100000));
    app.add_option("--response-tokens", response_tokens, "tokens of each answer")->check(CLI::Range(1, 100000));
    app.add_option("--pairs", pairs, "pairs of an optimizer step")->check(CLI::Range(1, 4096));
    app.add_option("--lengths", lengths,
                   "a file with the tokens of prompt, chosen and rejected of each pair, one pair a line, in place of "
                   "the three equal ones");
    app.add_option("--lora-rank", rank, "rank of the adapters")->check(CLI::Range(1, 256));
    app.add_option("--micro-tokens", micro_tokens, "most tokens of a micro-batch; 0: chosen by the program");
}

void BenchFlags::add_ceilings(CLI::App& app) {
    app.add_option("--repeats", repeats, "runs of each measurement, of which the best counts")
        ->check(CLI::Range(1, 1000));
    app.add_option("--gemm-size", gemm_size,
                   "the ceiling's product has this many rows, columns and terms; 0: 8192 on a GPU, 2048 on a CPU")
        ->check(CLI::Range(0, 32768));
    app.add_option("--copy-bytes", copy_bytes, "bytes of the ceiling's copy; 0: 1 GiB on a GPU, 256 MiB on a CPU")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 36));
}

BenchSubject open_subject(const std::string& spec) {
    BenchSubject s;
    if (official_config(spec, &s.config)) {
        s.name = spec + " (shapes)", s.weights = std::make_shared<MadeUpWeights>(s.config);
    } else {
        const Model model = open_model(spec);
        s.name = model.display_name, s.config = model.config, s.weights = model.weights;
    }
    return s;
}

BenchSubject with_layers(const BenchSubject& subject, int layers) {
    BenchSubject s = subject;
    s.config.L = std::min(layers, s.config.L);
    s.weights = std::make_shared<MadeUpWeights>(s.config);
    return s;
}

std::vector<MicroBatch> made_up_batches(const BenchFlags& flags, const ModelConfig& config, const std::string& device) {
    const auto pairs = made_up_pairs(flags, config.V);
    std::vector<const PreferencePair*> batch;
    for (const auto& pair : pairs) batch.push_back(&pair);
    const int64_t pair_tokens = longest_pair(flags);
    PackOptions options;
    options.totals = batch_totals(batch, options.objective);
    options.max_tokens =
        flags.micro_tokens > 0
            ? flags.micro_tokens
            : static_cast<int>(std::max<int64_t>(pair_tokens, device == "cpu" ? kCpuTokens : kGpuTokens));
    options.betas = {0.1};
    return pack(batch, options);
}

BenchShapes bench_shapes(const BenchFlags& flags, const ModelConfig& config, const std::string& device) {
    BenchShapes s;
    s.config = config;
    s.batch = made_up_batches(flags, config, device).front();
    s.rank = flags.rank, s.cached = flags.cached;
    s.positions = longest_sequence(flags);
    return s;
}

EngineOptions training_options(const BenchFlags& flags, const std::vector<MicroBatch>& batches) {
    EngineOptions options;
    options.lora.R = flags.rank, options.lora.alpha = 2 * flags.rank;
    for (const MicroBatch& mb : batches) {
        options.sizes.tokens = std::max(options.sizes.tokens, static_cast<int>(mb.ids.size()));
        options.sizes.heads = std::max(options.sizes.heads, static_cast<int>(mb.heads.size()));
    }
    options.sizes.max_positions = longest_sequence(flags);
    return options;
}

EngineOptions plan_gpu(BenchFlags& flags, const BenchSubject& subject, const DeviceOptions& device) {
    TrainConfig config;
    config.device = device.device, config.dtype = device.dtype;
    config.lora_rank = flags.rank, config.lora_alpha = 2 * flags.rank;
    config.micro_batch_tokens = flags.micro_tokens;
    if (!flags.memory_limit.empty()) {
        config.memory_limit = parse_bytes(flags.memory_limit);
        if (config.memory_limit <= 0)
            throw Error(Exit::kUsage, "--memory-limit " + flags.memory_limit + ": a size such as 20GB or 22.5GiB");
    }
    const auto sizes = [&](int64_t budget) {
        BenchFlags tried = flags;
        tried.micro_tokens = static_cast<int>(budget);
        const auto o = training_options(flags, made_up_batches(tried, subject.config, device.device)).sizes;
        return PlanSizes{o.tokens, o.max_positions};
    };
    const TrainPlan plan = choose_plan(config, subject.config, longest_pair(flags), sizes,
                                       {resident_bytes(), device_bytes(device.device)});
    flags.micro_tokens = plan.max_tokens;
    EngineOptions options = plan.engine;
    options.planning = false;
    return options;
}

void start_adapters(Engine& engine) {
    std::vector<float> start(static_cast<size_t>(engine.lora().slot_size()));
    for (size_t i = 0; i < start.size(); ++i)
        start[i] = 0.02f * static_cast<float>(uniform(philox(2, {uint32_t(i), 0, 0, 0})[0]) - 0.5);
    engine.write(Arena::kParameters, 0, start);
}

double run_step(Engine& engine, const std::vector<MicroBatch>& batches, int step) {
    std::vector<double> logp;
    const auto start = std::chrono::steady_clock::now();
    engine.zero_gradients();
    for (const MicroBatch& mb : batches) {
        logp.resize(mb.heads.size());
        engine.train(mb, logp);
    }
    const double norm = engine.gradient_norms()[0];
    AdamwSlot slot;
    slot.lr = 1e-5, slot.grad_scale = norm > 1 ? 1 / norm : 1;
    slot.bias1 = 1 - std::pow(slot.beta1, step), slot.bias2 = 1 - std::pow(slot.beta2, step);
    engine.adamw({&slot, 1});
    if (!std::isfinite(norm)) throw Error(Exit::kDiverged, "bench: the gradient is not finite");
    return seconds_since(start);
}

DeviceOptions bench_device(const BenchFlags& flags, const Call& call) {
    DeviceOptions device;
    device.device = resolve_device(call.common.device);
    device.dtype = resolve_dtype(flags.dtype, device.device);
    device.threads = call.common.threads;
    return device;
}

double cpu_seconds(int repeats, const std::function<void()>& work) {
    static std::vector<unsigned char> flushed;  // kept: allocating it again would be part of every run
    flushed.resize(static_cast<size_t>(kFlushBytes));
    double best = 1e30;
    for (int i = 0; i <= repeats; ++i) {
        std::memset(flushed.data(), i + 1, flushed.size());
        const auto start = std::chrono::steady_clock::now();
        work();
        if (i > 0) best = std::min(best, seconds_since(start));
    }
    return best;
}

Ceilings cpu_ceilings(const BenchFlags& flags, bool bf16, int threads) {
    Ceilings c;
    const int n = flags.gemm_size > 0 ? flags.gemm_size : 2048;
    const double seconds = onednn_seconds(n, n, n, bf16, threads, flags.repeats);
    c.gemm_flops_per_second = seconds < 1e20 ? 2.0 * n * n * n / seconds : 0;
    const int64_t bytes = flags.copy_bytes > 0 ? flags.copy_bytes : int64_t{256} << 20;
    std::vector<unsigned char> from(static_cast<size_t>(bytes), 1), to(static_cast<size_t>(bytes), 2);
    const double copy = cpu_seconds(flags.repeats, [&] {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; ++t) {
            const int64_t first = bytes * t / threads, last = bytes * (t + 1) / threads;
            std::memcpy(to.data() + first, from.data() + first, static_cast<size_t>(last - first));
        }
    });
    c.copy_bytes_per_second = 2.0 * static_cast<double>(bytes) / copy;
    return c;
}

BenchReport bench_cpu_kernels(const BenchFlags& flags, const BenchShapes& shapes, const DeviceOptions& device) {
    return with_dtype(device.dtype, [&](auto t) {
        using K = Cpu<decltype(t)>;
        CpuOptions options;
        options.threads = device.threads;
        K k(options);
        BenchReport report;
        report.device = k.description();
        report.ceilings = cpu_ceilings(flags, device.dtype == "bf16", k.threads());
        BenchOperations<K> operations(k, shapes);
        report.rows =
            operations.run([&](const std::function<void()>& work) { return cpu_seconds(flags.repeats, work); });
        return report;
    });
}

}  // namespace orpo
