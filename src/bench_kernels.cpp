// `orpo bench kernels`: each operation alone, each run after the caches were emptied. `orpo bench progress`: the
// versions of kernels/progress/, compared with the reference first.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "model/devices.h"
#include "src/bench.h"

namespace orpo {

namespace {

cuda::BenchRequest request_of(const BenchFlags& flags, const BenchSubject& subject, const DeviceOptions& device,
                              cuda::BenchRequest::What what) {
    cuda::BenchRequest request;
    request.what = what, request.dtype = device.dtype, request.repeats = flags.repeats;
    request.shapes = bench_shapes(flags, subject.config, device.device);
    if (flags.gemm_size > 0) request.gemm_size = flags.gemm_size;
    if (flags.copy_bytes > 0) request.copy_bytes = flags.copy_bytes;
    return request;
}

std::string rate(const BenchRow& row, const Ceilings& c) {
    if (row.seconds <= 0) return "";
    if (row.bound_by_memory(c)) return fmt::format("{:.1f} GB/s", row.bytes / row.seconds / 1e9);
    const double flops = row.flops / row.seconds;
    return flops < 1e12 ? fmt::format("{:.1f} GFLOP/s", flops / 1e9) : fmt::format("{:.1f} TFLOP/s", flops / 1e12);
}

void print_json(const BenchReport& report, const BenchSubject& subject, const DeviceOptions& device, size_t tokens) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const BenchRow& row : report.rows) {
        nlohmann::ordered_json one = {{"operation", row.operation},
                                      {"name", row.name},
                                      {"seconds", row.seconds},
                                      {"flops", row.flops},
                                      {"bytes", row.bytes},
                                      {"bound", row.bound_by_memory(report.ceilings) ? "memory" : "products"},
                                      {"share", row.share(report.ceilings)}};
        if (row.error >= 0 || row.error != -1) {
            one["error"] = row.error;  // NaN and infinity become null
            one["tolerance"] = row.tolerance;
            one["sound"] = row.sound();
        }
        rows.push_back(one);
    }
    print_line(nlohmann::ordered_json{
        {"model", subject.name},
        {"device", report.device},
        {"dtype", device.dtype},
        {"tokens", tokens},
        {"copy_bytes_per_second", report.ceilings.copy_bytes_per_second},
        {"gemm_ceiling_flops", report.ceilings.gemm_flops_per_second},
        {"operations",
         rows}}.dump());
}

void print_table(const BenchReport& report, const BenchSubject& subject, size_t tokens) {
    print_line(fmt::format("{}, {}: one layer's operations, {} tokens; each alone, from cold caches", subject.name,
                           report.device, tokens));
    print_line(fmt::format("  ceilings, same run: copy {:.1f} GB/s (read + written), product {:.1f} GFLOP/s",
                           report.ceilings.copy_bytes_per_second / 1e9, report.ceilings.gemm_flops_per_second / 1e9));
    const bool checked = !report.rows.empty() && report.rows[0].error != -1;
    print_line(fmt::format("  {:<20}{:<26}{:>12}{:>16}{:>7}{:>10}{}", "operation", "", "us", "rate", "%", "limit",
                           checked ? "   error" : ""));
    for (const BenchRow& row : report.rows) {
        const std::string check =
            row.error == -1 ? "" : fmt::format("   {:.1e}{}", row.error, row.sound() ? "" : " WRONG");
        print_line(fmt::format("  {:<20}{:<26}{:>12.1f}{:>16}{:>7.1f}{:>10}{}", row.operation, row.name,
                               row.seconds * 1e6, rate(row, report.ceilings), 100 * row.share(report.ceilings),
                               row.bound_by_memory(report.ceilings) ? "memory" : "products", check));
    }
}

Exit show(const BenchReport& report, const BenchSubject& subject, const DeviceOptions& device, size_t tokens,
          const Call& call) {
    if (call.common.json)
        print_json(report, subject, device, tokens);
    else
        print_table(report, subject, tokens);
    for (const BenchRow& row : report.rows)
        if (!row.sound())
            throw Error(Exit::kInternal, fmt::format("{} {} is wrong: error {:.2e}, allowed {:.0e}", row.operation,
                                                     row.name, row.error, row.tolerance));
    return Exit::kDone;
}

}  // namespace

Exit bench_kernels(const BenchFlags& flags, Call& call) {
    const DeviceOptions device = bench_device(flags, call);
    const BenchSubject subject = open_subject(flags.model);
    const BenchShapes shapes = bench_shapes(flags, subject.config, device.device);
    const BenchReport report =
        device.device == "cpu"
            ? bench_cpu_kernels(flags, shapes, device)
            : bench_cuda(device.device, request_of(flags, subject, device, cuda::BenchRequest::What::kKernels));
    return show(report, subject, device, shapes.batch.ids.size(), call);
}

Exit bench_progress(const BenchFlags& flags, Call& call) {
    DeviceOptions device = bench_device(flags, call);
    if (device.device == "cpu")
        throw Error(Exit::kNoDevice, "orpo bench progress times CUDA kernels and needs a GPU: " + describe_cuda() +
                                         ". Without one, their results are checked by the tests (simt_progress_test)");
    device.dtype = "bf16";
    const BenchSubject subject = open_subject(flags.model);
    const auto request = request_of(flags, subject, device, cuda::BenchRequest::What::kProgress);
    return show(bench_cuda(device.device, request), subject, device, request.shapes.batch.ids.size(), call);
}

}  // namespace orpo
