#include "src/paired.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/orpo_pair.h"

namespace orpo {
namespace {

double log_odds(const PairScore& s) { return (s.x - s.y) - (log1mexp(s.x) - log1mexp(s.y)); }

// Mean of value weighted by weight, on both sides; the error is that of the weighted differences.
template <class Value, class Weight>
Change change(const char* name, bool lower_is_better, std::span<const PairScore> before,
              std::span<const PairScore> after, Value value, Weight weight) {
    Change c{name, 0, 0, 0, 0, lower_is_better};
    double weights = 0;
    for (size_t i = 0; i < before.size(); ++i) {
        c.before += value(before[i]) * weight(before[i]);
        c.after += value(after[i]) * weight(before[i]);
        weights += weight(before[i]);
    }
    c.before /= weights, c.after /= weights;
    c.difference = c.after - c.before;
    double squares = 0;
    for (size_t i = 0; i < before.size(); ++i) {
        const double residual = (value(after[i]) - value(before[i]) - c.difference) * weight(before[i]);
        squares += residual * residual;
    }
    const auto n = static_cast<double>(before.size());
    c.se = n > 1 ? std::sqrt(squares * n / (n - 1)) / weights : std::numeric_limits<double>::quiet_NaN();
    return c;
}

}  // namespace

std::vector<PairScore> pair_scores(std::span<const PairRecord> records) {
    std::vector<PairScore> scores;
    for (const PairRecord& r : records)
        scores.push_back({r.loss.x, r.loss.y, r.chosen_logp, r.rejected_logp, static_cast<double>(r.chosen_tokens)});
    return scores;
}

Json scores_json(std::span<const PairScore> scores) {
    Json json = Json::array();
    for (const PairScore& s : scores)
        json.push_back(Json::array({s.x, s.y, s.chosen_logp, s.rejected_logp, s.chosen_tokens}));
    return json;
}

std::vector<PairScore> scores_from_json(const Json& json) {
    std::vector<PairScore> scores;
    for (const Json& s : json)
        scores.push_back({s.at(0).get<double>(), s.at(1).get<double>(), s.at(2).get<double>(), s.at(3).get<double>(),
                          s.at(4).get<double>()});
    return scores;
}

std::vector<Change> changes(std::span<const PairScore> before, std::span<const PairScore> after) {
    ORPO_CHECK(before.size() == after.size() && !before.empty());
    using S = const PairScore&;
    const auto one = [](S) { return 1.0; };
    const auto tokens = [](S s) { return s.chosen_tokens; };
    return {
        change(
            "nll_chosen", true, before, after, [](S s) { return -s.chosen_logp / s.chosen_tokens; }, tokens),
        change(
            "pref_acc", false, before, after, [](S s) { return s.x > s.y ? 1.0 : 0.0; }, one),
        change("log_odds", false, before, after, log_odds, one),
        change(
            "or_loss", true, before, after, [](S s) { return softplus(-log_odds(s)); }, one),
        change(
            "margin", false, before, after, [](S s) { return s.x - s.y; }, one),
    };
}

}  // namespace orpo
