// "Did you mean ...?"
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace orpo {

// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
int edit_distance(std::string_view a, std::string_view b);

// The candidate that a person most likely meant, or "" when none is near. Upper case and '_' for '-' count as equal.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

// " (did you mean X?)" or "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates,
                         std::string_view prefix = "");

}  // namespace orpo
