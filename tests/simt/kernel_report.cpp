// kernel_report DOCS: counts every CUDA kernel on the CPU and writes DOCS/kernel-report.md.
#include <cstdio>
#include <ctime>
#include <string>

#include "base/error.h"
#include "base/io.h"
#include "tests/simt/report_cases.h"

using namespace orpo;
using namespace orpo::cuda;
using simt::SourceLine;
using simt::Space;

namespace {

std::string text(const char* format, double value) {
    char line[64];
    std::snprintf(line, sizeof line, format, value);
    return line;
}

std::string table(const ModelShape& shape) {
    std::string out = "\n## " + shape.name +
                      "\n\n| operation | kernel | read MB (least) | written MB (least) | sectors / ideal | "
                      "wavefronts / ideal | worst line |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    for (const Counted& k : count_kernels(shape)) {
        const SourceLine* worst = k.counts.worst(Space::kGlobal);
        out += "| " + k.operation + " | `" + k.counts.kernel + "` | " + text("%.3f", k.counts.read_bytes / 1e6) + " (" +
               text("%.3f", k.need.read / 1e6) + ") | " + text("%.3f", k.counts.written_bytes / 1e6) + " (" +
               text("%.3f", k.need.written / 1e6) + ") | " + text("%.2f", k.counts.ratio(Space::kGlobal)) + " | " +
               text("%.2f", k.counts.ratio(Space::kShared)) + " | " + (worst ? worst->where : "") + " |\n";
    }
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: kernel_report DOCS\n");
        return 2;
    }
    try {
        std::string page =
            "# What the CUDA kernels ask of memory\n\nCounted, not measured. Made by `make kernel-report`.\n";
        for (const ModelShape& shape : model_shapes()) page += table(shape);
        io::write_file_atomic(std::string(argv[1]) + "/kernel-report.md", page);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "kernel_report: %s\n", e.what());
        return 1;
    }
    return 0;
}
