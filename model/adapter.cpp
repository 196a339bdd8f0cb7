#include "model/adapter.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/philox.h"

namespace orpo {
namespace {

// f(layer, target, in, offset of its A (R, in)) for every adapted linear.
template <class F>
void each_target(const LoraLayout& layout, F f) {
    for (int l = 0; l < layout.layers(); ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            for (const LoraTarget& t : group.targets) f(l, t, group.in, group.a + int64_t{t.rank_offset} * group.in);
        }
}

}  // namespace

std::vector<float> initial_adapter(const LoraLayout& layout, uint64_t seed, int rank) {
    if (rank == 0) rank = layout.R();
    ORPO_CHECK(rank > 0 && rank <= layout.R());
    std::vector<float> slot(layout.slot_size(), 0.0f);
    const uint64_t key = stream_key(seed, Stream::kInit);
    each_target(layout, [&](int l, const LoraTarget& t, int in, int64_t a) {
        const double bound = 1 / std::sqrt(static_cast<double>(in));
        const auto tensor = static_cast<uint32_t>(l * kLinears + static_cast<int>(t.linear));
        for (int64_t i = 0; i < int64_t{rank} * in; ++i) {
            const auto words = philox(key, {static_cast<uint32_t>(i / 4), tensor, 0, 0});
            slot[a + i] = static_cast<float>((2 * uniform(words[i % 4]) - 1) * bound);
        }
    });
    return slot;
}

PeftAdapter to_peft(const LoraLayout& layout, const LoraConfig& lora, std::span<const float> slot) {
    const int R = lora.R;
    ORPO_CHECK(static_cast<int64_t>(slot.size()) == layout.slot_size() && R <= layout.R());
    PeftAdapter adapter;
    adapter.rank = R, adapter.alpha = lora.alpha, adapter.rslora = lora.rslora, adapter.dropout = lora.dropout;
    for (int i = 0; i < kLinears; ++i)
        if (layout.targets()[i]) adapter.targets.emplace_back(linear_name(static_cast<Linear>(i)));
    each_target(layout, [&](int l, const LoraTarget& t, int in, int64_t a) {
        AdapterMatrix A{R, in, {slot.begin() + a, slot.begin() + a + int64_t{R} * in}};
        AdapterMatrix B{t.out, R, {}};
        for (int o = 0; o < t.out; ++o) {
            const auto row = slot.begin() + t.b + int64_t{o} * layout.R();
            B.values.insert(B.values.end(), row, row + R);
        }
        adapter.tensors[adapter_key(l, t.linear, 'A')] = std::move(A);
        adapter.tensors[adapter_key(l, t.linear, 'B')] = std::move(B);
    });
    return adapter;
}

LoraConfig lora_config(const PeftAdapter& adapter) {
    LoraConfig lora;
    lora.R = adapter.rank, lora.alpha = adapter.alpha, lora.rslora = adapter.rslora, lora.dropout = adapter.dropout;
    for (int i = 0; i < kLinears; ++i)
        lora.targets[i] = std::find(adapter.targets.begin(), adapter.targets.end(),
                                    linear_name(static_cast<Linear>(i))) != adapter.targets.end();
    return lora;
}

std::vector<float> from_peft(const LoraLayout& layout, const PeftAdapter& adapter) {
    const int R = adapter.rank;
    if (lora_config(adapter).targets != layout.targets())
        throw Error(Exit::kBadModel,
                    "the adapter changes other linears than --lora-targets names; leave that flag out");
    if (R > layout.R())
        throw Error(Exit::kBadModel, "the adapter's rank is " + std::to_string(R) + ", --lora-rank is " +
                                         std::to_string(layout.R()) + "; leave that flag out");
    std::vector<float> slot(layout.slot_size(), 0.0f);
    const auto matrix = [&](int l, Linear linear, char side, int64_t rows, int64_t cols) -> const std::vector<float>& {
        const std::string key = adapter_key(l, linear, side);
        const auto found = adapter.tensors.find(key);
        if (found == adapter.tensors.end() || found->second.rows != rows || found->second.cols != cols)
            throw Error(Exit::kBadModel, "the adapter has no tensor " + key + " of shape " + std::to_string(rows) +
                                             " x " + std::to_string(cols) + "; it belongs to another model");
        return found->second.values;
    };
    each_target(layout, [&](int l, const LoraTarget& t, int in, int64_t a) {
        const std::vector<float>& A = matrix(l, t.linear, 'A', R, in);
        const std::vector<float>& B = matrix(l, t.linear, 'B', t.out, R);
        std::copy(A.begin(), A.end(), slot.begin() + a);
        for (int o = 0; o < t.out; ++o)
            std::copy_n(B.begin() + int64_t{o} * R, R, slot.begin() + t.b + int64_t{o} * layout.R());
    });
    return slot;
}

}  // namespace orpo
