// Where the LoRA parameters of K adapter slots lie: one flat fp32 arena a category (masters, gradients, moments), the
// same offsets in each, so that AdamW and the gradient norm are loops over one array.
//
//   y = x W^T + s (x A^T) B^T,   A (R, in), B (out, R),   s = alpha / R, or alpha / sqrt(R) with rank stabilisation
//
// Linears that read the same input form a group ({q,k,v}, {o}, {gate,up}, {down}); the A matrices of a group stand one
// below the other, (targets * R, in), so that x A^T of the whole group is one product.
// Source: Hu et al., "LoRA", arXiv 2106.09685; Kalajdzievski, "rsLoRA", arXiv 2312.03732.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "model/config.h"

namespace orpo {

struct LoraConfig {
    int R = 16;
    double alpha = 32;
    bool rslora = false;
    double dropout = 0;
    std::array<bool, kLinears> targets = {true, true, true, true, true, true, true};  // by Linear

    double scale() const { return rslora ? alpha / std::sqrt(static_cast<double>(R)) : alpha / R; }
};

// What one adapter slot may have of its own: everything that is not a shape. A slot of lower rank leaves the last rows
// of its A and columns of its B at zero, where they stay, for their gradients are zero too.
struct LoraSlot {
    double scale = 1;
    double dropout = 0;
};

// One adapted linear inside its group.
struct LoraTarget {
    Linear linear = Linear::kQ;
    int rank_offset = 0;  // columns [rank_offset, rank_offset + R) of the group's S belong to it
    int out_offset = 0;   // columns [out_offset, out_offset + out) of the group's fused output
    int out = 0;
    int64_t b = 0;  // B (out, R) at this offset of the slot
};

enum Group { kQkv, kOut, kGateUp, kDownProj, kGroups };

struct LoraGroup {
    int in = 0;
    int out = 0;    // fused width of the base linear
    int width = 0;  // targets * R, 0 when no linear of the group is adapted
    int64_t a = 0;  // A of all targets (width, in) at this offset of the slot
    std::vector<LoraTarget> targets;
};

class LoraLayout {
  public:
    LoraLayout(const ModelConfig& config, const LoraConfig& lora) : lora_(lora) {
        ORPO_CHECK(lora.R > 0);
        groups_.resize(config.L);
        const std::array<std::vector<Linear>, kGroups> members = {
            std::vector{Linear::kQ, Linear::kK, Linear::kV}, std::vector{Linear::kO},
            std::vector{Linear::kGate, Linear::kUp}, std::vector{Linear::kDown}};
        for (auto& layer : groups_)
            for (int g = 0; g < kGroups; ++g) {
                LoraGroup& group = layer[g];
                for (const Linear linear : members[g]) {
                    const Shape2 shape = linear_shape(config, linear);
                    group.in = static_cast<int>(shape.cols);
                    if (lora.targets[static_cast<int>(linear)]) {
                        group.targets.push_back({linear, group.width, group.out, static_cast<int>(shape.rows), 0});
                        group.width += lora.R;
                    }
                    group.out += static_cast<int>(shape.rows);
                }
                group.a = size_;
                size_ += int64_t{group.width} * group.in;
                for (LoraTarget& target : group.targets) {
                    target.b = size_;
                    size_ += int64_t{target.out} * lora.R;
                }
            }
    }

    int R() const { return lora_.R; }
    const std::array<bool, kLinears>& targets() const { return lora_.targets; }
    const LoraGroup& group(int layer, int g) const { return groups_[layer][g]; }
    int layers() const { return static_cast<int>(groups_.size()); }
    int64_t slot_size() const { return size_; }  // parameters of one adapter

  private:
    LoraConfig lora_;
    std::vector<std::array<LoraGroup, kGroups>> groups_;
    int64_t size_ = 0;
};

}  // namespace orpo
