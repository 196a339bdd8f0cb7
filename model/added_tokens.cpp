#include "model/added_tokens.h"

namespace orpo {

const uint32_t* AddedTokens::child(uint32_t node, char c) const {
    for (const auto& [byte, next] : nodes_[node].children) {
        if (byte == c) return &next;
    }
    return nullptr;
}

void AddedTokens::add(std::string_view content, int32_t id) {
    starts_[static_cast<unsigned char>(content[0])] = true;
    uint32_t node = 0;
    for (const char c : content) {
        if (const uint32_t* next = child(node, c)) {
            node = *next;
            continue;
        }
        const auto created = static_cast<uint32_t>(nodes_.size());
        nodes_.emplace_back();
        nodes_[node].children.emplace_back(c, created);
        node = created;
    }
    nodes_[node].id = id;
}

bool AddedTokens::find(std::string_view text, size_t from, Match* match) const {
    for (size_t at = from; at < text.size(); ++at) {
        if (!starts_[static_cast<unsigned char>(text[at])]) continue;
        *match = {at, 0, -1};
        uint32_t node = 0;
        for (size_t end = at; end < text.size(); ++end) {
            const uint32_t* next = child(node, text[end]);
            if (next == nullptr) break;
            node = *next;
            if (nodes_[node].id >= 0) *match = {at, end + 1 - at, nodes_[node].id};
        }
        if (match->id >= 0) return true;
    }
    return false;
}

}  // namespace orpo
