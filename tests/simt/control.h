// Launchers of control.cu.
#pragma once

#include "kernels/bf16.h"

namespace orpo::cuda {

void strided(int stride, const float* from, float* to);     // from (32 * stride), to (32)
void transpose(bool padded, const float* from, float* to);  // (32, 32)
void matrix(bool padded, const bf16* from, unsigned* to);   // from (256), to (32)
void wide(const float* from, float* to);                    // from (256), to (32)

}  // namespace orpo::cuda
