// Which linears have their low-rank terms beside them on a backend that can (kernels.h, Borders), and how wide.
#pragma once

#include <array>
#include <vector>

#include "model/lora.h"

namespace orpo {

struct WeightBorder {
    int columns = 0;  // B behind W's columns, x A^T behind x's
    int rows = 0;     // A below W's rows, dy B behind dy's columns
};
using WeightBorders = std::array<WeightBorder, kGroups>;

// One adapter only, for rows of several would need weights of their own, and no dropout, which stands between x and A.
// Forward where x is a norm's output, whose rows can lie further apart; backward where dy is the gradient of the
// residual stream. Numbers move in packs of 8.
inline WeightBorders weight_borders(const LoraLayout& lora, const std::vector<LoraSlot>& slots) {
    WeightBorders borders;
    if (slots.size() != 1 || slots[0].dropout > 0 || lora.R() % 8 != 0 || lora.layers() == 0) return borders;
    const auto width = [&](Group g) { return lora.group(0, g).width; };
    for (const Group g : {kQkv, kGateUp}) borders[g].columns = width(g);
    if (width(kOut) > 0 && width(kDownProj) > 0)
        for (const Group g : {kOut, kDownProj}) borders[g].rows = width(g);
    return borders;
}

}  // namespace orpo
