// What an engine holds in its backend's memory, in the order of the table: base, adapters, transformer, micro-batch.
// K need not compute anything: a plan of a device that is not there is made by a K that only counts.
#pragma once

#include <algorithm>
#include <concepts>
#include <memory>
#include <vector>

#include "model/base_weights.h"
#include "model/lora.h"
#include "model/transformer.h"

namespace orpo {

template <class K>
struct EngineArrays {
    using T = typename K::T;
    using F = typename K::F;

    // Everything but k's own outlives this. weights: may be null while k is planning.
    EngineArrays(K& k, const ModelConfig& config, const HostWeights* weights, const LoraLayout& lora,
                 const std::vector<LoraSlot>& slots, const TransformerSizes& sizes)
        : n(static_cast<int64_t>(slots.size()) * lora.slot_size()),
          base(load_base(k, config, weights, sizes.keep != Keep::kNothing, weight_borders(lora, slots))) {
        params = k.template allocate<F>(Category::kAdapters, "parameters", n);
        k.zero(n, params);
        if constexpr (!std::same_as<T, F>)
            compute = k.template allocate<T>(Category::kAdapters, "parameters, compute copy", n);
        if (sizes.keep != Keep::kNothing) {
            grads = k.template allocate<F>(Category::kGradients, "gradients", n);
            moment1 = k.template allocate<F>(Category::kOptimizer, "first moments", n);
            moment2 = k.template allocate<F>(Category::kOptimizer, "second moments", n);
            for (F* arena : {grads, moment1, moment2}) k.zero(n, arena);
        }
        transformer = std::make_unique<Transformer<K>>(k, config, base, lora, slots, sizes);
        const int pairs = std::max(1, sizes.tokens);
        batch = std::make_unique<typename K::Batch>(k.make_batch(sizes.tokens, pairs, sizes.heads));
    }

    int64_t n = 0;  // numbers of an arena: slots, slot after slot
    BaseWeights<K> base;
    F *params = nullptr, *grads = nullptr, *moment1 = nullptr, *moment2 = nullptr;  // (n); training only but params
    T* compute = nullptr;  // (n) params in T, where T is another format
    std::unique_ptr<Transformer<K>> transformer;
    std::unique_ptr<typename K::Batch> batch;
};

}  // namespace orpo
