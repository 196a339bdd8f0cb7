// One adapter slot's parameters (LoraLayout's order) from and to PEFT's form, and its start.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/lora.h"
#include "model/peft_adapter.h"

namespace orpo {

// PEFT's start: A uniform in +-1/sqrt(in) (Kaiming uniform with a = sqrt(5)), B zero, from the seed alone: the numbers
// of a tensor depend on its layer, its linear and the place in it. rank: of this slot, at most layout.R(); 0:
// layout.R().
std::vector<float> initial_adapter(const LoraLayout& layout, uint64_t seed, int rank = 0);

// Tensors, rank, alpha, rslora, dropout and targets; the caller adds the base's name and fingerprints.
// lora.R: the rank to write, at most layout.R().
PeftAdapter to_peft(const LoraLayout& layout, const LoraConfig& lora, std::span<const float> slot);

// Into the layout, whose targets must be the adapter's and whose R at least its rank: Error(kBadModel) otherwise.
std::vector<float> from_peft(const LoraLayout& layout, const PeftAdapter& adapter);

// The LoraConfig that an adapter was made with.
LoraConfig lora_config(const PeftAdapter& adapter);

}  // namespace orpo
