#include "tests/simt/prediction.h"

#include <algorithm>
#include <cmath>

namespace orpo::cuda {

// Data sheets: NVIDIA Ampere GA102 whitepaper (RTX 3090), NVIDIA Ada GPU architecture whitepaper (RTX 4090), NVIDIA
// H200 datasheet (989 TFLOPS is half of the sparse figure it gives) and, for the multiprocessors and clock, the H100
// whitepaper.
const std::vector<Card>& cards() {
    static const std::vector<Card> all = {{"RTX 3090", 86, 82, 1.695e9, 936e9, 71e12, 35.6e12},
                                          {"RTX 4090", 89, 128, 2.52e9, 1008e9, 165.2e12, 82.6e12},
                                          {"H200", 90, 132, 1.98e9, 4.8e12, 989e12, 66.9e12}};
    return all;
}

Prediction predict(const Card& card, const Counted& k, const simt::CompiledKernel& code) {
    constexpr double kLatency = 0.6e-6;  // of a load from device memory under load; an assumption
    const simt::LaunchCounts& c = k.counts;
    const int threads = static_cast<int>(c.block.x * c.block.y * c.block.z);
    const double blocks = static_cast<double>(c.blocks), sms = card.multiprocessors;
    const double resident = std::max(1, simt::occupancy(card.target, code.registers, threads, c.shared_bytes).blocks);
    // The busiest multiprocessor's share, against an even one.
    const double uneven = std::ceil(blocks / sms) * sms / blocks, rate = card.clock * sms;
    const double lines = c.total(simt::Space::kGlobal, &simt::SourceLine::lines);
    const double wavefronts = c.total(simt::Space::kShared, &simt::SourceLine::units);
    const std::pair<double, const char*> parts[] = {
        {(k.need.read + k.need.written) / card.bandwidth, "memory"},
        {(c.read_bytes + c.written_bytes) / (64 * rate), "L2"},
        {uneven * (lines + wavefronts) / rate, "L1"},
        {uneven * c.mma * 4096 / card.tensor, "tensor"},
        {uneven * c.special / (16 * rate), "special"},
        {std::ceil(blocks / (sms * resident)) * c.steps * kLatency, "latency"}};
    const auto longest = *std::max_element(std::begin(parts), std::end(parts),
                                           [](const auto& a, const auto& b) { return a.first < b.first; });
    Prediction p;
    p.seconds = longest.first, p.bound = longest.second;
    p.roofline =
        std::max((k.need.read + k.need.written) / card.bandwidth, k.need.flops / (c.mma > 0 ? card.tensor : card.fp32));
    return p;
}

}  // namespace orpo::cuda
