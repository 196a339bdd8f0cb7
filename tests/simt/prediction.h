// How long a launch should take on a card, from its counts, its compiled code and the card's data sheet. A prediction:
// nothing here was measured.
//
//   roofline = max(least bytes / memory bandwidth, useful FLOPs / peak)
//   time     = the largest of
//     memory    (bytes of least + written again) / bandwidth: what L2 cannot keep, taken as each array once
//     L2        counted bytes, a block's repeats once, / (64 bytes a clock and multiprocessor)
//     L1        128-byte lines touched by global requests + wavefronts of shared ones, one a clock and multiprocessor
//     tensor    mma instructions * 4096 FLOPs / dense bf16 peak
//     special   exponentials and logarithms / (16 a clock and multiprocessor)
//     latency   rounds of dependent loads * 0.6 us * blocks / (blocks that are resident at once), rounded up
//   L1, tensor and special count on as many multiprocessors as have a block, and for whole waves of blocks.
#pragma once

#include <string>
#include <vector>

#include "tests/simt/compiled.h"
#include "tests/simt/report_cases.h"

namespace orpo::cuda {

struct Card {
    std::string name;
    int target;  // compute capability
    int multiprocessors;
    double clock;         // Hz, boost
    double bandwidth;     // bytes a second
    double tensor, fp32;  // FLOPs a second; tensor: bf16, fp32 sums, dense
};
const std::vector<Card>& cards();  // RTX 3090, RTX 4090, H200

struct Prediction {
    double seconds = 0, roofline = 0;
    std::string bound;  // what the time is made of: "memory", "L2", ...
};
Prediction predict(const Card& card, const Counted& kernel, const simt::CompiledKernel& code);

}  // namespace orpo::cuda
