// bfloat16 as host and device hold it: the upper half of an fp32.
#pragma once

#include <cstdint>

namespace orpo::cuda {

struct bf16 {
    uint16_t bits;
};

}  // namespace orpo::cuda
