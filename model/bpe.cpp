#include "model/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>

#include "base/error.h"

namespace orpo {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
// Fibonacci hashing: the top bits of a product with 2^64 / golden ratio.
uint64_t scatter(uint64_t key) { return key * 0x9E3779B97F4A7C15ull; }

// Eight bytes at a time. Its collisions cost time only: words are compared.
uint32_t hash_bytes(std::string_view bytes) {
    uint64_t hash = bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, 8);
        hash = scatter(hash ^ word);
        hash ^= hash >> 32;
    }
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, bytes.size() - at);
    hash = scatter(hash ^ word);
    return static_cast<uint32_t>(hash >> 32);
}

size_t table_size(size_t entries) { return std::bit_ceil(std::max<size_t>(2 * entries, 16)); }

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_tokens, const std::vector<Merge>& merges,
         const std::vector<std::string>& bytes, bool whole_first)
    : byte_tokens_(byte_tokens) {
    merges_.resize(table_size(merges.size()));
    merge_shift_ = 64 - std::countr_zero(merges_.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const uint64_t key = pair_key(merges[rank].left, merges[rank].right);
        size_t slot = scatter(key) >> merge_shift_;
        while (merges_[slot].key != UINT64_MAX && merges_[slot].key != key) slot = (slot + 1) & (merges_.size() - 1);
        // A pair that is listed twice has its last rank, as in the reference.
        merges_[slot] = {key, static_cast<uint32_t>(rank), merges[rank].joined};
    }

    // Most words of a text are one token; looking the piece up skips their merging. That is right only where merging
    // would give the same token, which is tried here once for each.
    words_.resize(table_size(bytes.size()));
    std::vector<int32_t> ids;
    for (size_t id = 0; id < bytes.size(); ++id) {
        if (bytes[id].empty()) continue;
        int64_t dropped = 0;
        ids.clear();
        if (!whole_first) merge_bytes(bytes[id], ids, dropped);
        const bool same = ids.size() == 1 && ids[0] == static_cast<int32_t>(id) && dropped == 0;
        if (whole_first || same) add_word(bytes[id], static_cast<int32_t>(id));
    }
}

void Bpe::add_word(std::string_view bytes, int32_t id) {
    const uint32_t hash = hash_bytes(bytes);
    size_t slot = hash & (words_.size() - 1);
    while (words_[slot].id >= 0) slot = (slot + 1) & (words_.size() - 1);
    words_[slot] = {static_cast<uint32_t>(word_bytes_.size()), static_cast<uint32_t>(bytes.size()), id, hash};
    word_bytes_ += bytes;
    longest_word_ = std::max(longest_word_, bytes.size());
}

int32_t Bpe::find_word(std::string_view piece) const {
    if (piece.size() > longest_word_) return -1;
    const uint32_t hash = hash_bytes(piece);
    for (size_t slot = hash & (words_.size() - 1); words_[slot].id >= 0; slot = (slot + 1) & (words_.size() - 1)) {
        const Word& word = words_[slot];
        if (word.hash == hash && word.length == piece.size() &&
            std::memcmp(word_bytes_.data() + word.offset, piece.data(), piece.size()) == 0) {
            return word.id;
        }
    }
    return -1;
}

const Bpe::Slot& Bpe::find_merge(int32_t left, int32_t right) const {
    const uint64_t key = pair_key(left, right);
    size_t slot = scatter(key) >> merge_shift_;
    while (merges_[slot].key != key && merges_[slot].key != UINT64_MAX) slot = (slot + 1) & (merges_.size() - 1);
    return merges_[slot];
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& out, int64_t& dropped) const {
    if (const int32_t id = find_word(piece); id >= 0) {
        out.push_back(id);
    } else {
        merge_bytes(piece, out, dropped);
    }
}

void Bpe::merge_bytes(std::string_view piece, std::vector<int32_t>& out, int64_t& dropped) const {
    const auto start = [&](int32_t* ids) {
        size_t n = 0;
        for (const char c : piece) {
            const int32_t id = byte_tokens_[static_cast<unsigned char>(c)];
            if (id >= 0) ids[n++] = id;
        }
        dropped += static_cast<int64_t>(piece.size() - n);
        return n;
    };
    if (piece.size() <= kShort) {
        int32_t ids[kShort];
        merge_short(ids, start(ids), out);
    } else {
        std::vector<int32_t> ids(piece.size());
        ids.resize(start(ids.data()));
        merge_long(std::move(ids), out);
    }
}

void Bpe::merge_short(int32_t* ids, size_t n, std::vector<int32_t>& out) const {
    // ranks[i], joined[i]: of the pair (i, i + 1).
    uint32_t ranks[kShort];
    int32_t joined[kShort];
    const auto look_up = [&](size_t i) {
        const Slot& merge = find_merge(ids[i], ids[i + 1]);
        ranks[i] = merge.rank;
        joined[i] = merge.joined;
    };
    for (size_t i = 0; i + 1 < n; ++i) look_up(i);
    while (n > 1) {
        const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + n - 1) - ranks);
        if (ranks[best] == kNoRank) break;
        ids[best] = joined[best];
        --n;
        for (size_t i = best + 1; i < n; ++i) ids[i] = ids[i + 1];
        for (size_t i = best + 1; i + 1 < n; ++i) {
            ranks[i] = ranks[i + 1];
            joined[i] = joined[i + 1];
        }
        if (best + 1 < n) look_up(best);
        if (best > 0) look_up(best - 1);
    }
    out.insert(out.end(), ids, ids + n);
}

void Bpe::merge_long(std::vector<int32_t> ids, std::vector<int32_t>& out) const {
    ORPO_CHECK(ids.size() < (1ull << 31));
    const auto n = static_cast<int32_t>(ids.size());
    // A list of the symbols that are left, and a heap of pairs by (rank, place). A pair is removed from the heap by
    // not being true any more when it comes up: merged(i) < 0, or another rank now.
    std::vector<int32_t> next(ids.size()), previous(ids.size());
    for (int32_t i = 0; i < n; ++i) {
        next[i] = i + 1 < n ? i + 1 : -1;
        previous[i] = i - 1;
    }
    std::vector<uint64_t> pairs;
    pairs.reserve(ids.size());
    const auto entry = [](uint32_t rank, int32_t at) {
        return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(at);
    };
    for (int32_t i = 0; i + 1 < n; ++i) {
        const Slot& merge = find_merge(ids[i], ids[i + 1]);
        if (merge.rank != kNoRank) pairs.push_back(entry(merge.rank, i));
    }
    std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap({}, std::move(pairs));
    const auto push = [&](int32_t at) {
        const Slot& merge = find_merge(ids[at], ids[next[at]]);
        if (merge.rank != kNoRank) heap.push(entry(merge.rank, at));
    };
    while (!heap.empty()) {
        const auto rank = static_cast<uint32_t>(heap.top() >> 32);
        const auto at = static_cast<int32_t>(heap.top() & 0xFFFFFFFFu);
        heap.pop();
        if (ids[at] < 0 || next[at] < 0) continue;
        const Slot& merge = find_merge(ids[at], ids[next[at]]);
        if (merge.rank != rank) continue;
        ids[at] = merge.joined;
        const int32_t gone = next[at];
        ids[gone] = -1;
        next[at] = next[gone];
        if (next[at] >= 0) {
            previous[next[at]] = at;
            push(at);
        }
        if (previous[at] >= 0) push(previous[at]);
    }
    for (int32_t at = n > 0 ? 0 : -1; at >= 0; at = next[at]) out.push_back(ids[at]);
}

}  // namespace orpo
