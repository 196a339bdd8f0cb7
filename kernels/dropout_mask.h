// Which elements dropout keeps: a function of the element's place alone, never of the micro-batch that it lies in.
//   key     the batch's dropout_key
//   counter (step, pair_in_batch * 2 + branch, position, tensor * 65536 + channel / 4); word channel % 4 decides
#pragma once

#include <cstdint>

#include "base/philox.h"

namespace orpo {

// Of the four channels 4 * quad .. 4 * quad + 3: word w keeps its channel when uniform(w) >= p.
inline PhiloxCounter dropout_words(uint64_t key, uint32_t step, int32_t mask_pair, int32_t position, uint32_t tensor,
                                   uint32_t quad) {
    return philox(key, {step, static_cast<uint32_t>(mask_pair), static_cast<uint32_t>(position), tensor << 16 | quad});
}
inline bool dropout_keeps(uint32_t word, double p) { return uniform(word) >= p; }

}  // namespace orpo
