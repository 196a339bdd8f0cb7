#include "model/orpo_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace orpo {
namespace {

// sum a / sum w with the standard error of a ratio of sums: residuals a_i - R w_i (the delta method).
template <class Numerator, class Denominator>
Measure ratio(std::span<const PairRecord> records, Numerator a, Denominator w) {
    double top = 0, bottom = 0;
    for (const PairRecord& r : records) top += a(r), bottom += w(r);
    const double mean = top / bottom, n = static_cast<double>(records.size());
    double squares = 0;
    for (const PairRecord& r : records) {
        const double residual = a(r) - mean * w(r);
        squares += residual * residual;
    }
    const double se = n > 1 ? std::sqrt(squares * n / (n - 1)) / bottom : std::numeric_limits<double>::quiet_NaN();
    return {mean, se};
}

template <class Value>
Measure mean(std::span<const PairRecord> records, Value value) {
    return ratio(records, value, [](const PairRecord&) { return 1.0; });
}

// Both answers have the same tokens behind the shared prompt, and the same ones of them are scored.
bool equal_answers(const MicroBatch& mb, const PairSpan& span) {
    const auto ids = mb.ids.begin();
    if (!std::equal(ids + span.chosen, ids + span.rejected, ids + span.rejected, ids + span.end)) return false;
    std::vector<std::pair<int32_t, int32_t>> odds[2];  // (target, place in the answer), of both answers
    for (int i = span.first_head; i < span.first_head + span.heads; ++i) {
        const HeadRow& row = mb.heads[i];
        if (row.part == Part::kPrompt || !row.in_odds) continue;
        const bool rejected = row.part == Part::kRejected;
        const int32_t begin = rejected ? span.rejected : span.chosen;
        odds[rejected].emplace_back(row.target, row.row < span.chosen ? -1 : row.row - begin);
    }
    return !odds[0].empty() && odds[0] == odds[1];
}

Measure scaled(Measure m, double factor) { return {m.value * factor, m.se * factor}; }

}  // namespace

bool PairRecord::finite() const {
    return std::isfinite(prompt_logp) && std::isfinite(chosen_logp) && std::isfinite(rejected_logp) &&
           std::isfinite(loss.z) && std::isfinite(loss.nll) && std::isfinite(loss.odds_loss);
}

std::vector<PairRecord> pair_records(const MicroBatch& mb, std::span<const double> logp) {
    ORPO_CHECK(logp.size() == mb.heads.size());
    std::vector<PairRecord> records;
    records.reserve(mb.pairs.size());
    for (const PairSpan& span : mb.pairs) {
        PairRecord& r = records.emplace_back();
        r.line = span.line, r.slot = span.slot, r.pair_in_batch = span.pair_in_batch;
        r.tokens = span.end - span.begin;
        r.odds_weight = span.odds_weight;
        r.loss = orpo_pair(span, mb.heads.data() + span.first_head, logp.data() + span.first_head);
        for (int i = span.first_head; i < span.first_head + span.heads; ++i) {
            const HeadRow& row = mb.heads[i];
            r.nll_weight += row.nll_weight;
            if (row.part == Part::kPrompt) ++r.prompt_tokens, r.prompt_logp += logp[i];
            if (row.part == Part::kRejected) ++r.rejected_tokens, r.rejected_logp += logp[i];
            if (row.part != Part::kChosen) continue;
            ++r.chosen_tokens, r.chosen_logp += logp[i];
            const double whole = r.loss.odds_chosen + row.nll_weight;
            if (whole > 0) r.pref_share_sum += r.loss.odds_chosen / whole;
        }
        // Neither of two equal answers is the likelier one, whatever rounding says.
        if (equal_answers(mb, span)) r.loss.y = r.loss.x, r.rejected_logp = r.chosen_logp;
    }
    return records;
}

Metrics summarise(std::span<const PairRecord> records, double beta) {
    Metrics m;
    double chosen_tokens = 0;
    for (const PairRecord& r : records) {
        ++m.pairs, m.tokens += r.tokens;
        m.loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
        m.pref_share += r.pref_share_sum;
        chosen_tokens += static_cast<double>(r.chosen_tokens);
    }
    m.pref_share /= chosen_tokens;
    using R = const PairRecord&;
    m.nll_loss = ratio(
        records, [](R r) { return r.loss.nll; }, [](R r) { return r.nll_weight; });
    m.nll_chosen = ratio(
        records, [](R r) { return -r.chosen_logp; }, [](R r) { return static_cast<double>(r.chosen_tokens); });
    m.or_loss = mean(records, [](R r) { return r.loss.odds_loss; });
    m.log_odds_ratio = {-m.or_loss.value, m.or_loss.se};
    m.log_odds = m.log_odds_chosen = mean(records, [](R r) { return r.loss.z; });
    m.logps_chosen = mean(records, [](R r) { return r.loss.x; });
    m.logps_rejected = mean(records, [](R r) { return r.loss.y; });
    m.margin = mean(records, [](R r) { return r.loss.x - r.loss.y; });
    m.pref_acc = m.rewards_accuracies = mean(records, [](R r) { return r.loss.x > r.loss.y ? 1.0 : 0.0; });
    m.sum_logp_acc = mean(records, [](R r) { return r.chosen_logp > r.rejected_logp ? 1.0 : 0.0; });
    m.rewards_chosen = scaled(m.logps_chosen, beta);
    m.rewards_rejected = scaled(m.logps_rejected, beta);
    m.rewards_margins = scaled(m.margin, beta);
    return m;
}

std::vector<int64_t> non_finite_lines(std::span<const PairRecord> records) {
    std::vector<int64_t> lines;
    for (const PairRecord& r : records)
        if (!r.finite()) lines.push_back(r.line);
    return lines;
}

}  // namespace orpo
