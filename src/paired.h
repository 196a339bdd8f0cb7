// Before and after on the same pairs: differences with the standard error of the differences, which is much smaller
// than that of either side.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/orpo_loss.h"
#include "src/metrics_log.h"

namespace orpo {

// What comparisons need of a pair's record; kept in checkpoints.
struct PairScore {
    double x = 0, y = 0;                        // mean log-probabilities of chosen and rejected
    double chosen_logp = 0, rejected_logp = 0;  // sums
    double chosen_tokens = 0;
};
std::vector<PairScore> pair_scores(std::span<const PairRecord> records);
Json scores_json(std::span<const PairScore> scores);
std::vector<PairScore> scores_from_json(const Json& json);

struct Change {
    std::string name;  // "nll_chosen"
    double before = 0, after = 0;
    double difference = 0, se = 0;  // after - before, paired
    bool lower_is_better = false;
};
// nll_chosen, pref_acc, log_odds, or_loss, margin. Both in the same order of the same pairs.
std::vector<Change> changes(std::span<const PairScore> before, std::span<const PairScore> after);

}  // namespace orpo
