// The added tokens ("<|im_end|>"): found in text before anything else, leftmost first, the longest at each place.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace orpo {

class AddedTokens {
  public:
    // content: not empty. Later additions of the same content replace earlier ones.
    void add(std::string_view content, int32_t id);
    bool empty() const { return nodes_.size() == 1; }

    struct Match {
        size_t at, length;
        int32_t id;
    };
    // The first match that starts at `from` or later. Time: bytes scanned times the longest content, at worst.
    bool find(std::string_view text, size_t from, Match* match) const;

  private:
    struct Node {
        int32_t id = -1;
        std::vector<std::pair<char, uint32_t>> children;
    };
    const uint32_t* child(uint32_t node, char c) const;

    std::vector<Node> nodes_ = std::vector<Node>(1);
    std::array<bool, 256> starts_{};
};

}  // namespace orpo
