// What benchmarks measure and hand back: plain numbers, so that they can come out of the CUDA library.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace orpo {

// What the machine reaches on the two things that everything else is made of, measured in the same run.
struct Ceilings {
    double copy_bytes_per_second = 0;  // a large copy within its memory: bytes read plus bytes written
    double gemm_flops_per_second = 0;  // one large square product
};

// One operation, at one shape.
struct BenchRow {
    std::string operation;        // "attention"
    std::string name;             // which version or shape: "2 online softmax", "qkv"
    double seconds = 0;           // of one run, the best of several
    double flops = 0, bytes = 0;  // that it has to do and to move, as kernels/kernels.h counts them
    double error = -1;            // |result - reference|^2 / |reference|^2; negative: not compared here
    double tolerance = 0;         // what error may be

    // Not `!(error > tolerance)`: NaN fails.
    bool sound() const { return error < 0 ? error == -1 : error <= tolerance; }
    // The time that the ceilings allow, over the time that it took.
    double share(const Ceilings& c) const {
        const double products = c.gemm_flops_per_second > 0 ? flops / c.gemm_flops_per_second : 0;
        const double memory = c.copy_bytes_per_second > 0 ? bytes / c.copy_bytes_per_second : 0;
        return seconds > 0 ? std::max(products, memory) / seconds : 0;
    }
    bool bound_by_memory(const Ceilings& c) const {
        return bytes * c.gemm_flops_per_second > flops * c.copy_bytes_per_second;
    }
};

struct BenchReport {
    std::string device;
    Ceilings ceilings;
    std::vector<BenchRow> rows;
};

}  // namespace orpo
