// bfloat16 as memory holds it: the upper half of an fp32.
#pragma once

#include <cstdint>

namespace orpo {

struct bf16 {
    uint16_t bits;
};

}  // namespace orpo
