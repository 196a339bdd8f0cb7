#include "src/suggest.h"

#include <algorithm>
#include <cctype>

namespace orpo {
namespace {

std::string plain(std::string_view word) {
    std::string out;
    for (const char c : word) out += c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return out;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
    const size_t columns = b.size() + 1;
    std::vector<int> rows(3 * columns);
    int *before = rows.data(), *last = before + columns, *now = last + columns;
    for (size_t j = 0; j < columns; ++j) last[j] = static_cast<int>(j);
    for (size_t i = 1; i <= a.size(); ++i) {
        now[0] = static_cast<int>(i);
        for (size_t j = 1; j < columns; ++j) {
            now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = std::min(now[j], before[j - 2] + 1);
        }
        std::swap(before, last);
        std::swap(last, now);
    }
    return last[b.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
    if (word.size() > 64) return "";
    const std::string want = plain(word);
    std::string best;
    int best_distance = 1000;
    for (const std::string& candidate : candidates) {
        const std::string have = plain(candidate);
        int distance = edit_distance(want, have);
        // "learning" for "learning-rate", "rank" for "lora-rank"
        if (want.size() >= 3 && distance > 2 && have.find(want) != std::string::npos) distance = 2;
        if (distance < best_distance) best_distance = distance, best = candidate;
    }
    const int limit = std::max<int>(1, static_cast<int>(want.size()) / 3);
    return best_distance <= std::max(limit, want.size() >= 3 ? 2 : 1) ? best : "";
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates, std::string_view prefix) {
    const std::string best = nearest(word, candidates);
    return best.empty() ? "" : " (did you mean " + std::string(prefix) + best + "?)";
}

}  // namespace orpo
