// `orpo bench decode`: tokens per second of one sequence, and the share of the copy bandwidth that its bytes take.
// Every new token reads each weight once (the embedding as the head; of the gathered rows one) and its keys and values.
#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "model/devices.h"
#include "src/bench.h"

namespace orpo {

namespace {

MicroBatch tokens_at(int first, int count, int V) {
    MicroBatch mb;
    for (int i = 0; i < count; ++i) mb.ids.push_back((first + i) * 31 % V), mb.positions.push_back(first + i);
    PairSpan span;
    span.chosen = span.rejected = span.end = count, span.heads = 1;
    mb.pairs = {span};
    HeadRow head;
    head.row = count - 1;
    mb.heads = {head};
    return mb;
}

}  // namespace

Exit bench_decode(const BenchFlags& flags, Call& call) {
    const DeviceOptions device = bench_device(flags, call);
    const bool gpu = device.device != "cpu";
    const BenchSubject subject = open_subject(flags.model);
    const ModelConfig& c = subject.config;
    EngineOptions options;
    options.lora.targets = {};
    options.sizes.tokens = std::max(flags.cached, 64);
    options.sizes.heads = 1, options.sizes.sequences = 1;
    options.sizes.max_positions = flags.cached + flags.new_tokens + 2;
    options.sizes.keep = Keep::kNothing;
    if (options.sizes.max_positions > c.max_positions)
        throw Error(Exit::kUsage, fmt::format("--cached {} and --new-tokens {}: {} was made for at most {} tokens",
                                              flags.cached, flags.new_tokens, subject.name, c.max_positions));
    auto engine = make_engine(device, c, subject.weights.get(), options);
    std::vector<int32_t> ids(1);
    const auto step = [&](int position) {  // as generation does it: the token is drawn on the device
        engine->decode(tokens_at(position, 1, c.V));
        engine->sample({}, ids);
    };
    auto start = std::chrono::steady_clock::now();
    engine->prefill(tokens_at(0, flags.cached, c.V));
    engine->sample({}, ids);
    const double prefill = seconds_since(start);
    int at = flags.cached;
    for (int warm = 0; warm < 2; ++warm) step(at++);
    start = std::chrono::steady_clock::now();
    for (int i = 0; i < flags.new_tokens; ++i) step(at++);
    const double seconds = seconds_since(start) / flags.new_tokens;

    const int attention = c.H * c.HS, kv = c.KV * c.HS;
    const double parameters =
        double(c.L) * (double(c.C) * (2 * attention + 2 * kv) + 3.0 * c.C * c.I) + double(c.V) * c.C;
    const double cached = double(c.L) * 2 * kv * (flags.cached + 2 + flags.new_tokens / 2.0);
    const double bytes = (device.dtype == "bf16" ? 2 : 4) * (parameters + cached);
    const std::string description = engine->description();
    engine.reset();
    Ceilings ceilings;
    if (gpu) {
        cuda::BenchRequest request;
        request.dtype = device.dtype;
        if (flags.gemm_size > 0) request.gemm_size = flags.gemm_size;
        if (flags.copy_bytes > 0) request.copy_bytes = flags.copy_bytes;
        ceilings = bench_cuda(device.device, request).ceilings;
    } else {
        ceilings = cpu_ceilings(flags, false, device.threads > 0 ? device.threads : physical_cores());
    }
    const double share = bytes / seconds / ceilings.copy_bytes_per_second;
    if (call.common.json) {
        print_line(nlohmann::ordered_json{
            {"model", subject.name},
            {"device", description},
            {"dtype", device.dtype},
            {"cached", flags.cached},
            {"new_tokens", flags.new_tokens},
            {"tokens_per_second", 1 / seconds},
            {"prefill_tokens_per_second", flags.cached / prefill},
            {"bytes_per_token", bytes},
            {"bytes_per_second", bytes / seconds},
            {"copy_bytes_per_second", ceilings.copy_bytes_per_second},
            {"copy_share",
             share}}.dump());
        return Exit::kDone;
    }
    print_line(fmt::format("{}, {}: one sequence, {} tokens cached", subject.name, description, flags.cached));
    print_line(fmt::format("  {:.1f} tokens/s, {:.2f} ms each; prompt {:.0f} tokens/s", 1 / seconds, seconds * 1e3,
                           flags.cached / prefill));
    print_line(fmt::format("  {} a token, {:.1f} GB/s = {:.0f} % of {:.1f}, a copy's (read + written) in the same run",
                           human_bytes(bytes), bytes / seconds / 1e9, 100 * share,
                           ceilings.copy_bytes_per_second / 1e9));
    return Exit::kDone;
}

}  // namespace orpo
