// The frozen base as a backend holds it: q|k|v and gate|up fused row-wise, each weight in the backend's own form, made
// from fp32 rows that stream from the file, so that no second copy of the model ever exists.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "model/borders.h"
#include "model/config.h"
#include "model/weights.h"

namespace orpo {

template <class K>
struct BaseWeights {
    using F = typename K::F;
    using Weight = typename K::Weight;
    struct Layer {
        F *norm1 = nullptr, *norm2 = nullptr;  // (C)
        Weight qkv;                            // ((H + 2 KV) HS, C)
        Weight out;                            // (C, H HS)
        Weight gate_up;                        // (2 I, C)
        Weight down;                           // (C, I)
    };
    Weight embedding;  // (V, C), also the head when tied
    std::vector<Layer> layers;
    F* final_norm = nullptr;     // (C)
    std::vector<Weight> untied;  // one (V, C) when the model has a head of its own

    const Weight& head() const { return untied.empty() ? embedding : untied[0]; }
};

// HF tensors of one fused weight, from the top down.
struct FusedTensor {
    std::string name;
    int64_t rows = 0;
};

// A reader over several tensors that stand one below the other.
inline RowReader stacked_reader(const HostWeights* weights, std::vector<FusedTensor> parts, int64_t cols) {
    return [weights, parts = std::move(parts), cols](int64_t first, int64_t count, float* out) {
        int64_t top = 0;
        for (const FusedTensor& part : parts) {
            const int64_t begin = std::max(first, top), end = std::min(first + count, top + part.rows);
            if (begin < end) weights->read_rows(part.name, begin - top, end - begin, out + (begin - first) * cols);
            top += part.rows;
        }
    };
}

// weights: not read, and may be null, while k is planning. training: backward products will be asked for. borders: of
// the layers' weights, on a backend that can have them.
template <class K>
BaseWeights<K> load_base(K& k, const ModelConfig& config, const HostWeights* weights, bool training,
                         const WeightBorders& borders = {}) {
    using F = typename K::F;
    ORPO_CHECK(weights || k.planning());
    const unsigned both = training ? kForward | kBackward : kForward;
    const auto vector = [&](const std::string& name, int64_t n) {
        F* to = k.template allocate<F>(Category::kWeights, name, n);
        if (k.planning()) return to;
        std::vector<float> values(n);
        weights->read(name, values.data());
        const std::vector<F> converted(values.begin(), values.end());
        k.write(n, converted.data(), to);
        return to;
    };
    const auto matrix = [&](std::vector<FusedTensor> parts, int64_t cols, unsigned use, WeightBorder border = {}) {
        int64_t rows = 0;
        for (const FusedTensor& part : parts) rows += part.rows;
        const std::string name = parts[0].name + (parts.size() > 1 ? " (fused)" : "");
        const RowReader reader = stacked_reader(weights, std::move(parts), cols);
        if constexpr (kBorders<K>)
            return k.prepare(name, rows, cols, use, reader, border.columns, border.rows);
        else
            return k.prepare(name, rows, cols, use, reader);
    };

    BaseWeights<K> base;
    base.embedding =
        matrix({{"model.embed_tokens.weight", config.V}}, config.C, kRows | (config.tie_embeddings ? both : 0u));
    for (int l = 0; l < config.L; ++l) {
        const std::string layer = "model.layers." + std::to_string(l) + ".";
        const auto stack = [&](std::initializer_list<Linear> linears, unsigned use, Group group) {
            std::vector<FusedTensor> parts;
            for (const Linear linear : linears)
                parts.push_back(
                    {layer + std::string(linear_path(linear)) + ".weight", linear_shape(config, linear).rows});
            return matrix(std::move(parts), linear_shape(config, *linears.begin()).cols, use, borders[group]);
        };
        auto& w = base.layers.emplace_back();
        w.norm1 = vector(layer + "input_layernorm.weight", config.C);
        w.qkv = stack({Linear::kQ, Linear::kK, Linear::kV}, l > 0 ? both : kForward, kQkv);  // no dx below layer 0
        w.out = stack({Linear::kO}, both, kOut);
        w.norm2 = vector(layer + "post_attention_layernorm.weight", config.C);
        w.gate_up = stack({Linear::kGate, Linear::kUp}, both, kGateUp);
        w.down = stack({Linear::kDown}, both, kDownProj);
    }
    base.final_norm = vector("model.norm.weight", config.C);
    if (!config.tie_embeddings) base.untied.push_back(matrix({{"lm_head.weight", config.V}}, config.C, both));
    return base;
}

}  // namespace orpo
