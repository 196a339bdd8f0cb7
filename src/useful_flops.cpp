#include "src/useful_flops.h"

#include <algorithm>
#include <utility>

#include "kernels/cpu/onednn.h"

namespace orpo {
namespace {

// Rows of the products that are measured: as a micro-batch of a pair or two has.
constexpr int kRows = 512;

// (query, key) pairs with the key visible: the prompt and each answer among themselves, the answers to the prompt.
double visible(const PairSpan& span) {
    const double P = span.chosen - span.begin, C = span.rejected - span.chosen, R = span.end - span.rejected;
    const auto triangle = [](double n) { return n * (n + 1) / 2; };
    return triangle(P) + triangle(C) + triangle(R) + P * (C + R);
}

}  // namespace

double useful_flops(const ModelConfig& config, const LoraLayout& lora, const MicroBatch& batch) {
    const double tokens = static_cast<double>(batch.ids.size()), heads = static_cast<double>(batch.heads.size());
    double per_token = 0;
    for (int l = 0; l < lora.layers(); ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = lora.group(l, g);
            const bool first = l == 0 && g == kQkv;  // no gradient below the first layer
            per_token += (first ? 2.0 : 4.0) * group.in * group.out;
            // x A^T, dA and dS A over the group's width; S B^T, dB and dy B over each target
            per_token += (first ? 4.0 : 6.0) * group.in * group.width;
            for (const LoraTarget& t : group.targets) per_token += 6.0 * t.out * lora.R();
        }
    double context = 0;
    for (const PairSpan& span : batch.pairs) context += visible(span);
    const double attention = 14.0 * config.HS * config.H * config.L * context;
    return tokens * per_token + 4.0 * heads * config.C * config.V + attention;
}

double gemm_rate(const ModelConfig& config, bool bf16, int threads) {
    const int attention = config.H * config.HS, qkv = attention + 2 * config.KV * config.HS;
    double flops = 0, seconds = 0;
    for (const auto& [out, in] :
         {std::pair{qkv, config.C}, {config.C, attention}, {2 * config.I, config.C}, {config.C, config.I}})
        for (const auto& [N, K] : {std::pair{out, in}, {in, out}}) {
            seconds += onednn_seconds(kRows, N, K, bf16, threads, 5);
            flops += 2.0 * kRows * N * K;
        }
    return seconds < 1e20 ? flops / seconds : 0;
}

}  // namespace orpo
