// What a training step has to compute, and how fast this machine multiplies matrices: their ratio is the share of the
// machine that training uses.
#pragma once

#include "kernels/batch.h"
#include "model/config.h"
#include "model/lora.h"

namespace orpo {

// Forward and backward of one micro-batch, of real tokens only: products with the frozen weights (4 per weight and
// token, for there is no weight gradient), the head's two on its rows, the adapters' six, and attention over what each
// row sees.
double useful_flops(const ModelConfig& config, const LoraLayout& lora, const MicroBatch& batch);

// FLOP/s of oneDNN on the shapes of this model's frozen linears, forward and backward, each alone. About 0.3 s.
// 0 when it cannot be measured.
double gemm_rate(const ModelConfig& config, bool bf16, int threads);

}  // namespace orpo
