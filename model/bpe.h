// Byte-pair encoding of one piece: start from single bytes, then join the neighbouring pair whose merge has the lowest
// rank, leftmost first, until no pair has a merge. O(n log n) for a piece of n bytes.
// Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace orpo {

class Bpe {
  public:
    // A pair of tokens and what they become; its index in the list is its rank.
    struct Merge {
        int32_t left, right, joined;
    };

    // byte_tokens: the token of each single byte, -1 where there is none. bytes[id]: what the token stands for, ""
    // for tokens that text cannot become. whole_first: a piece that is a token is taken as that, without merging.
    Bpe(const std::array<int32_t, 256>& byte_tokens, const std::vector<Merge>& merges,
        const std::vector<std::string>& bytes, bool whole_first);

    // Appends the ids of `piece`. Bytes without a token are dropped and counted; their neighbours become neighbours.
    void encode(std::string_view piece, std::vector<int32_t>& out, int64_t& dropped) const;

  private:
    static constexpr uint32_t kNoRank = UINT32_MAX;
    static constexpr size_t kShort = 48;  // symbols; below it searching a small array beats a heap

    struct Slot {
        uint64_t key = UINT64_MAX;  // left << 32 | right
        uint32_t rank = kNoRank;
        int32_t joined = -1;
    };
    struct Word {
        uint32_t offset = 0, length = 0;
        int32_t id = -1;
        uint32_t hash = 0;
    };

    const Slot& find_merge(int32_t left, int32_t right) const;
    int32_t find_word(std::string_view piece) const;
    void add_word(std::string_view bytes, int32_t id);
    void merge_bytes(std::string_view piece, std::vector<int32_t>& out, int64_t& dropped) const;
    void merge_short(int32_t* ids, size_t n, std::vector<int32_t>& out) const;
    void merge_long(std::vector<int32_t> ids, std::vector<int32_t>& out) const;

    std::array<int32_t, 256> byte_tokens_;
    std::vector<Slot> merges_;  // open addressing, size a power of two, at most half full
    int merge_shift_ = 0;
    std::vector<Word> words_;  // the same, of pieces that are one token
    std::string word_bytes_;
    size_t longest_word_ = 0;
};

}  // namespace orpo
