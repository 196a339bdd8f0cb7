// What the kernel report launches: every kernel of kernels/cuda at SmolLM2's shapes, in bf16.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/simt/counts.h"

namespace orpo::cuda {

struct ModelShape {
    std::string name;
    int L, C, I, H, KV, V;
    int64_t adapters;  // LoRA parameters at rank 16 on all seven linears
    int width() const { return (H + 2 * KV) * 64; }
};
const std::vector<ModelShape>& model_shapes();  // 135M, 1.7B

// A training micro-batch: pairs that share their prompt, packed end to end.
inline constexpr int kPairs = 3, kPart = 256;  // prompt, chosen and rejected: 256 tokens each
inline constexpr int kTokens = kPairs * 3 * kPart;
inline constexpr int kHeadRows = 1024;  // of a chunk of the head
inline constexpr int kContext = 1024;   // cached tokens when decoding

// What one launch has to move and compute at least: every array that it needs is read and written once.
struct Need {
    double read = 0, written = 0;  // bytes
    double flops = 0;              // useful ones, by the formula at the head of the kernel's file
    double times = 0;  // launches of its kind in a training micro-step, an optimizer step or a decoded token
};

enum class Phase { kTrain, kStep, kDecode };  // a micro-step, an optimizer step, a decoded token

struct ReportCase {
    std::string operation;  // as in kernels/cuda/ops.h
    Phase phase = Phase::kTrain;
    std::vector<Need> needs;  // one for each launch that it makes
    // Makes the launches under `counter`, with a sample of their blocks.
    std::function<void(simt::Counter& counter)> run;
};

std::vector<ReportCase> report_cases(const ModelShape& shape);

struct Counted {
    std::string operation;
    Phase phase;
    Need need;
    simt::LaunchCounts counts;
};
// Runs all cases.
std::vector<Counted> count_kernels(const ModelShape& shape);

}  // namespace orpo::cuda
