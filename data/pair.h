// A preference pair as token ids, ready to be packed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orpo {

// Sequence of an answer = prompt + answer. Where a token merges across the boundary prompt|answer, the two sequences
// may disagree about the last prompt token; then `prompt` ends before it and each answer starts with a tail of
// `*_tail` tokens (0 or more) that still belong to its prompt: seen and scored as prompt, never as response.
struct PreferencePair {
    int64_t line = 0;                       // 1-based line in the file
    std::vector<int32_t> prompt;            // shared by both, at least one token
    std::vector<int32_t> chosen, rejected;  // tail + response; at least one response token each
    int32_t chosen_tail = 0, rejected_tail = 0;

    int64_t tokens() const { return static_cast<int64_t>(prompt.size() + chosen.size() + rejected.size()); }
    bool operator==(const PreferencePair&) const = default;
};

}  // namespace orpo
