// `orpo profile`: one optimizer step of a shallow model, for profilers. On a GPU the step runs without graphs between
// cudaProfilerStart and Stop, every phase, layer and operation in an NVTX range. On a CPU the program times itself.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "model/devices.h"
#include "model/engine_of.h"
#include "src/bench.h"
#include "src/timed_kernels.h"

namespace orpo {

namespace {

void print_cpu(const OperationTimes& times, double seconds, const BenchSubject& subject, const std::string& description,
               size_t tokens, bool as_json) {
    std::vector<std::pair<std::string, OperationTime>> rows(times.begin(), times.end());
    std::sort(rows.begin(), rows.end(),
              [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    double seen = 0;
    for (const auto& [name, t] : rows) {
        seen += t.seconds;
        list.push_back({{"operation", name}, {"calls", t.calls}, {"seconds", t.seconds}, {"flops", t.flops}});
    }
    if (as_json)
        return print_line(nlohmann::ordered_json{
            {"model", subject.name},
            {"device", description},
            {"layers", subject.config.L},
            {"tokens", tokens},
            {"seconds", seconds},
            {"operations",
             list}}.dump());
    print_line(fmt::format("{}, {} layer(s), {}: one step of {} tokens, {:.1f} ms", subject.name, subject.config.L,
                           description, tokens, seconds * 1e3));
    print_line(fmt::format("  {:<20}{:>8}{:>11}{:>8}{:>11}", "operation", "calls", "ms", "%", "GFLOP/s"));
    for (const auto& [name, t] : rows)
        print_line(fmt::format("  {:<20}{:>8}{:>11.2f}{:>8.1f}{:>11}", name, t.calls, t.seconds * 1e3,
                               100 * t.seconds / seconds,
                               t.flops > 0 ? fmt::format("{:.1f}", t.flops / t.seconds / 1e9) : ""));
    print_line(fmt::format("  {:<20}{:>8}{:>11.2f}{:>8.1f}", "between them", "", (seconds - seen) * 1e3,
                           100 * (seconds - seen) / seconds));
}

Exit profile(const BenchFlags& flags, Call& call) {
    const DeviceOptions device = bench_device(flags, call);
    const BenchSubject subject = with_layers(open_subject(flags.model), flags.layers);
    const std::vector<MicroBatch> batches = {made_up_batches(flags, subject.config, device.device).front()};
    const EngineOptions options = training_options(flags, batches);
    const size_t tokens = batches[0].ids.size();
    if (device.device != "cpu") {
        const double seconds = profile_cuda(device, subject.config, subject.weights.get(), options, batches[0]);
        if (call.common.json)
            print_line(nlohmann::ordered_json{
                {"model", subject.name},
                {"device", describe_cuda()},
                {"layers", subject.config.L},
                {"tokens", tokens},
                {"seconds",
                 seconds}}.dump());
        else
            print_line(
                fmt::format("{}, {} layer(s), {}: one step of {} tokens without graphs, {:.2f} ms; run it under "
                            "nsys or ncu (README, Profiling)",
                            subject.name, subject.config.L, describe_cuda(), tokens, seconds * 1e3));
        return Exit::kDone;
    }
    with_dtype(device.dtype, [&](auto t) {
        using K = Timed<Cpu<decltype(t)>>;
        CpuOptions cpu;
        cpu.threads = device.threads;
        auto k = std::make_unique<K>(cpu);
        const std::string description = k->description();
        EngineOf<K> engine(std::move(k), description, subject.config, subject.weights.get(), options);
        start_adapters(engine);
        run_step(engine, batches, 1);
        double best = 1e30;
        OperationTimes times;
        for (int i = 0; i < flags.steps; ++i) {
            engine.kernels().times.clear();
            const double seconds = run_step(engine, batches, i + 2);
            if (seconds < best) best = seconds, times = engine.kernels().times;
        }
        print_cpu(times, best, subject, description, tokens, call.common.json);
    });
    return Exit::kDone;
}

}  // namespace

void add_profile_command(Commands& commands) {
    const auto flags = std::make_shared<BenchFlags>();
    CLI::App& app =
        commands.add("profile", "one optimizer step of a shallow model, for nsys and ncu",
                     "  orpo profile --model 135M\n  nsys profile -c cudaProfilerApi orpo profile --device cuda\n",
                     [flags](Call& call) { return profile(*flags, call); });
    flags->add_model(app), flags->add_pairs(app);
    app.add_option("--layers", flags->layers, "layers of the model, with made-up weights")->check(CLI::Range(1, 1000));
    app.add_option("--steps", flags->steps, "steps that are timed on a CPU; the best is shown")
        ->check(CLI::Range(1, 1000));
}

}  // namespace orpo
