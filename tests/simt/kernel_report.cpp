// kernel_report REPOSITORY [KERNEL_CODE]: counts every CUDA kernel on the CPU and writes docs/kernel-report.md. With
// the folder of code that nvcc compiled, docs/kernel-code.json is written first; without, it is read as it was
// recorded.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <set>
#include <string>

#include "base/error.h"
#include "base/io.h"
#include "tests/simt/prediction.h"

using namespace orpo;
using namespace orpo::cuda;
using simt::CompiledKernel;
using simt::SourceLine;
using simt::Space;

namespace {

std::string text(const char* format, double value) {
    char line[64];
    std::snprintf(line, sizeof line, format, value);
    return line;
}
std::string megabytes(double bytes) { return text(bytes < 1e5 ? "%.4f" : bytes < 1e8 ? "%.2f" : "%.0f", bytes / 1e6); }

// The first line that a command prints.
std::string first_line(const std::string& command) {
    char line[256] = {};
    if (FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
        if (!std::fgets(line, sizeof line, pipe)) line[0] = 0;
        pclose(pipe);
    }
    std::string s = line;
    while (!s.empty() && s.back() == '\n') s.pop_back();
    return s;
}

const CompiledKernel* code_of(const simt::Recorded& record, const std::string& kernel, int target) {
    for (const CompiledKernel& k : record.kernels)
        if (k.kernel == kernel && k.target == target) return &k;
    return nullptr;
}
int threads(const simt::LaunchCounts& c) { return static_cast<int>(c.block.x * c.block.y * c.block.z); }

const char* phase_name(Phase phase) {
    return phase == Phase::kTrain  ? "a training micro-step"
           : phase == Phase::kStep ? "an optimizer step"
                                   : "a decoded token";
}

std::string memory_table(const std::vector<Counted>& kernels) {
    std::string out =
        "| operation | kernel | blocks x threads | MB read (least) | MB written (least) | sectors a request, over "
        "ideal | "
        "wavefronts a request, over ideal | MFLOPs useful | mma MFLOPs | exponentials, M |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (const Counted& k : kernels) {
        const simt::LaunchCounts& c = k.counts;
        const auto requests = [&](Space space) {
            const double n = c.total(space, &SourceLine::requests);
            return n > 0 ? text("%.2f", c.total(space, &SourceLine::units) / n) + ", x" + text("%.2f", c.ratio(space))
                         : "";
        };
        out += "| " + k.operation + " | `" + c.kernel + "` | " + std::to_string(c.blocks) + " x " +
               std::to_string(threads(c)) + " | " + megabytes(c.read_bytes) + " (" + megabytes(k.need.read) + ") | " +
               megabytes(c.written_bytes) + " (" + megabytes(k.need.written) + ") | " + requests(Space::kGlobal) +
               " | " + requests(Space::kShared) + " | " + (k.need.flops > 0 ? text("%.1f", k.need.flops / 1e6) : "") +
               " | " + (c.mma > 0 ? text("%.1f", c.mma * 4096 / 1e6) : "") + " | " +
               (c.special > 0 ? text("%.2f", c.special / 1e6) : "") + " |\n";
    }
    return out;
}

std::string prediction_table(const std::vector<Counted>& kernels, const simt::Recorded& record) {
    std::string out = "| operation | kernel | times |", rule = "| --- | --- | --- |";
    for (const Card& card : cards()) out += " " + card.name + ": us, of roofline, bound |", rule += " --- |";
    out += "\n" + rule + "\n";
    std::map<Phase, std::vector<double>> sums;
    for (const Counted& k : kernels) {
        out += "| " + k.operation + " | `" + k.counts.kernel + "` | " + text("%.3g", k.need.times) + " |";
        auto& sum = sums[k.phase];
        sum.resize(cards().size());
        for (size_t i = 0; i < cards().size(); ++i) {
            const CompiledKernel* code = code_of(record, k.counts.kernel, cards()[i].target);
            if (!code) {
                out += " not recorded |";
                continue;
            }
            const Prediction p = predict(cards()[i], k, *code);
            sum[i] += p.seconds * k.need.times;
            out += " " + text(p.seconds < 1e-5 ? "%.2f" : "%.1f", p.seconds * 1e6) + ", " +
                   text("%.0f", 100 * p.roofline / p.seconds) + " %, " + p.bound + " |";
        }
        out += "\n";
    }
    for (const auto& [phase, sum] : sums) {
        out += std::string("| **all of ") + phase_name(phase) + "** | | |";
        for (const double s : sum) out += " **" + text("%.2f", s * 1e3) + " ms** |";
        out += "\n";
    }
    return out;
}

// Registers, warps and instructions of the kernels that the shapes launch, for all targets.
std::string code_table(const std::vector<Counted>& kernels, const simt::Recorded& record) {
    std::string out =
        "| kernel | target | registers | shared bytes | resident blocks | warps of all | ends at | mma | cp.async | "
        "ldmatrix "
        "| special | spilled bytes |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    std::set<std::string> done;
    for (const Counted& k : kernels) {
        if (!done.insert(k.counts.kernel).second) continue;
        std::string name = "`" + k.counts.kernel + "`";
        for (const CompiledKernel& code : record.kernels) {
            if (code.kernel != k.counts.kernel) continue;
            const simt::Occupancy o =
                simt::occupancy(code.target, code.registers, threads(k.counts), k.counts.shared_bytes);
            out += "| " + name + " | sm_" + std::to_string(code.target) + " | " + std::to_string(code.registers) +
                   " | " + std::to_string(k.counts.shared_bytes) + " | " + std::to_string(o.blocks) + " | " +
                   text("%.0f", 100 * o.warps) + " % | " + o.limit + " |";
            for (const char* what : {"mma", "cp.async", "ldmatrix", "special function"})
                out += " " + (code.instructions.count(what) ? std::to_string(code.instructions.at(what)) : "") + " |";
            out += " " + std::to_string(code.spill_stores + code.spill_loads) + " |\n";
            name = "";
        }
    }
    return out;
}

std::string line_table(const std::vector<Counted>& kernels) {
    std::string out =
        "| kernel | line | access | bytes a lane | requests | lanes active | units a request | ideal |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n";
    std::set<std::string> done;
    for (const Counted& k : kernels) {
        if (!done.insert(k.counts.kernel).second) continue;
        std::string name = "`" + k.counts.kernel + "`";
        for (const SourceLine& l : k.counts.source) {
            out += "| " + name + " | " + l.where + " | " + (l.space == Space::kGlobal ? "global " : "shared ") +
                   l.kind() + " | " + std::to_string(l.lane_bytes) + " | " + text("%.0f", l.requests) + " | " +
                   text("%.0f", 100 * l.lanes / l.requests / 32) + " % | " + text("%.2f", l.units / l.requests) +
                   " | " + text("%.2f", l.ideal / l.requests) + " |\n";
            name = "";
        }
    }
    return out;
}

std::string page(const std::string& root, const simt::Recorded& record) {
    char date[32];
    const std::time_t now = std::time(nullptr);
    std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
    const std::string commit = first_line("git -C '" + root + "' rev-parse --short HEAD");
    std::string out =
        "# What the CUDA kernels ask of a GPU\n\n**Counted, not measured**: made by `make kernel-report` on " +
        std::string(date) + (commit.empty() ? "" : " at commit " + commit + " and what was changed since") +
        ", on a CPU. The times are predictions; no GPU took part.\n";
    out += R"(
How it is counted: the kernels run in the SIMT runner (`tests/simt/`), every access of every lane is seen, and the accesses
of a warp's lanes at one place are one request. A request to global memory costs *sectors* of 32 bytes (ideal: the distinct
bytes it asks for), one to shared memory *wavefronts* (ideal: 1 for lanes of 4 bytes, 2 for 8, 4 for 16, counted per group of
32, 16 and 8 lanes). `tests/simt/counts.h` has the rules, `counts_test.cpp` the kernels that are counted by hand and the
limits that CI holds: no bank conflict anywhere, sectors at most 10 % above ideal.

)";
    out += "Shapes: a training micro-batch of " + std::to_string(kTokens) + " tokens (" + std::to_string(kPairs) +
           " pairs that share their prompt, " + std::to_string(kPart) +
           " tokens each of prompt, chosen and rejected), " + std::to_string(kHeadRows) +
           " rows of the head at once, LoRA rank 16 on all seven linears; decoding with one sequence and " +
           std::to_string(kContext) +
           R"( cached tokens. bf16. Of kernels whose blocks all do the same, eight blocks run and
are scaled up; of attention, all tiles of one pair and one head. Matrix products are cuBLASLt's and not in here.
MB read and written: sectors, where what a block reads again with plain loads counts once (L1) and cp.async every time (L2);
in brackets: every array once.

)";
    out += "Compiled code: " + record.compiler + ". ";
    out += record.sources == simt::source_hash(root) ? "It was made from the sources as they are now.\n"
                                                     : "**Stale**: the sources of kernels/cuda have changed since it "
                                                       "was recorded; run `make kernel-report` where nvcc is.\n";
    out += R"(
Predicted time: the longest of

- memory: every array once / bandwidth;
- L2: bytes read and written / (64 bytes a clock and multiprocessor);
- L1: (128-byte lines touched by global requests + wavefronts) / (one a clock and multiprocessor);
- tensor: 4096 FLOPs an mma / dense bf16 peak; special: exponentials and logarithms / (16 a clock and multiprocessor);
- latency: rounds of loads that wait for each other x 0.6 us (an assumption) x waves of resident blocks.

L1, tensor and special are taken on the busiest multiprocessor. Roofline: the longer of least bytes / bandwidth and useful
FLOPs / peak. Not in it: launches (about 2 us each, less in a graph), clocks below boost, caches that are too small.

)";
    out +=
        "| card | multiprocessors | boost clock | bandwidth | bf16, dense, fp32 sums | fp32 |\n| --- | --- | --- | --- "
        "| --- | --- |\n";
    for (const Card& c : cards())
        out += "| " + c.name + " | " + std::to_string(c.multiprocessors) + " | " + text("%.3f GHz", c.clock / 1e9) +
               " | " + text("%.0f GB/s", c.bandwidth / 1e9) + " | " + text("%.1f TF/s", c.tensor / 1e12) + " | " +
               text("%.1f TF/s", c.fp32 / 1e12) + " |\n";
    out += R"(
Sources: NVIDIA Ampere GA102 GPU Architecture whitepaper (RTX 3090), NVIDIA Ada GPU Architecture whitepaper (RTX 4090), NVIDIA
H200 Tensor Core GPU datasheet (its 1,979 TF/s are with sparsity) and NVIDIA H100 Tensor Core GPU Architecture whitepaper;
limits of multiprocessors: CUDA C++ Programming Guide, compute capabilities.
)";
    std::vector<Counted> all;
    for (const ModelShape& shape : model_shapes()) {
        const std::vector<Counted> kernels = count_kernels(shape);
        out += "\n## SmolLM2 " + shape.name + ": counts\n\n" + memory_table(kernels) + "\n## SmolLM2 " + shape.name +
               ": predicted times\n\nTimes: launches in a micro-step (norms and SwiGLU made again, no dropout), an "
               "optimizer step or "
               "a decoded token.\n\n" +
               prediction_table(kernels, record);
        all.insert(all.end(), kernels.begin(), kernels.end());
    }
    out += "\n## Compiled code\n\nInstructions as they stand in the code, not as often as they run.\n\n" +
           code_table(all, record);
    out +=
        "\n## Source lines\n\nUnits: sectors of global requests, wavefronts of shared ones. Of each kernel, the first "
        "shape "
        "that launches it.\n\n" +
        line_table(all);
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: kernel_report REPOSITORY [KERNEL_CODE]\n");
        return 2;
    }
    try {
        const std::string root = argv[1], recorded = root + "/docs/kernel-code.json",
                          report = root + "/docs/kernel-report.md";
        simt::Recorded record;
        if (argc == 3) {
            const char* nvcc = std::getenv("NVCC");
            const std::string version =
                first_line(std::string(nvcc ? nvcc : "nvcc") + " --version | grep -o 'V[0-9.]*$'");
            record = {"nvcc " + version, simt::source_hash(root), simt::read_compiled(argv[2])};
            simt::write_record(recorded, record);
        } else {
            std::fprintf(stderr, "no nvcc: compiled code as it was recorded in %s\n", recorded.c_str());
            record = simt::read_record(recorded);
        }
        io::write_file_atomic(report, page(root, record));
        std::printf("%s\n", report.c_str());
    } catch (const std::exception& e) {
        std::fprintf(stderr, "kernel_report: %s\n", e.what());
        return 1;
    }
    return 0;
}
