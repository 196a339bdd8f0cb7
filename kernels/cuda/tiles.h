// The tile lists of the attention kernels: which 64 rows each block owns, and what they see. Made on the host, once a
// micro-batch. Blocks start in the order of the list, so the longest come first: at the end of a launch only short ones
// are left, and no multiprocessor waits for a long one.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cuda/ops.h"

namespace orpo::cuda {

// Tiles of 64 rows that a tile walks over.
inline int steps_of(const QueryTile& t) { return (t.prefix1 - t.prefix0 + 63) / 64 + (t.q1 - t.own0 + 63) / 64; }
inline int steps_of(const KeyTile& t) { return (t.own1 - t.k0 + 63) / 64 + (t.extra1 - t.extra0 + 63) / 64; }
template <class Tile>
void longest_first(std::vector<Tile>& tiles) {
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const Tile& a, const Tile& b) { return steps_of(a) > steps_of(b); });
}

// [prompt | chosen] is one causal branch; the rejected answer is another that also sees the whole prompt.
inline void query_tiles(const std::vector<PairSpan>& pairs, std::vector<QueryTile>& tiles) {
    tiles.clear();
    for (const PairSpan& p : pairs) {
        for (int q = p.begin; q < p.rejected; q += 64)
            tiles.push_back({q, std::min(q + 64, p.rejected), 0, 0, p.begin, 0});
        for (int q = p.rejected; q < p.end; q += 64)
            tiles.push_back({q, std::min(q + 64, p.end), p.begin, p.chosen, p.rejected, 0});
    }
    longest_first(tiles);
}

// A prompt key is seen by the rows of its branch behind it and by all rejected rows.
inline void key_tiles(const std::vector<PairSpan>& pairs, std::vector<KeyTile>& tiles) {
    tiles.clear();
    for (const PairSpan& p : pairs) {
        for (int k = p.begin; k < p.chosen; k += 64)
            tiles.push_back({k, std::min(k + 64, p.chosen), p.rejected, p.rejected, p.end, 0});
        for (int k = p.chosen; k < p.rejected; k += 64)
            tiles.push_back({k, std::min(k + 64, p.rejected), p.rejected, 0, 0, 0});
        for (int k = p.rejected; k < p.end; k += 64) tiles.push_back({k, std::min(k + 64, p.end), p.end, 0, 0, 0});
    }
    longest_first(tiles);
}

// Most tiles of `tokens` rows in `pairs` pairs: full tiles, and a ragged one for each part.
inline int most_tiles(int tokens, int pairs) { return tokens / 64 + 3 * pairs; }

}  // namespace orpo::cuda
