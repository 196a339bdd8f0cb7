// What training and evaluation report about pairs: per-pair records from the log-probabilities of scored rows, and
// their summary under TRL's names and beta-free ones, with standard errors. One summary for both, so that both are
// weighted the same way. The loss itself: kernels/orpo_pair.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/batch.h"
#include "kernels/orpo_pair.h"

namespace orpo {

struct PairRecord {
    int64_t line = 0;
    int32_t slot = 0, pair_in_batch = 0;
    int64_t tokens = 0;                                          // rows in the micro-batch
    int64_t prompt_tokens = 0;                                   // scored ones: from the second on
    int64_t chosen_tokens = 0, rejected_tokens = 0;              // scored ones
    double prompt_logp = 0, chosen_logp = 0, rejected_logp = 0;  // sums over the scored tokens
    PairLoss loss;
    double nll_weight = 0;      // sum of its rows' weights: 1 over a whole optimizer batch
    double odds_weight = 0;     // beta / pairs
    double pref_share_sum = 0;  // over its chosen response rows: w_odds / (w_odds + w_nll)

    bool finite() const;
};

// In the order of mb.pairs. logp: of mb.heads.
std::vector<PairRecord> pair_records(const MicroBatch& mb, std::span<const double> logp);

// A mean with its standard error (NaN for fewer than two pairs).
struct Measure {
    double value = 0, se = 0;
};

struct Metrics {
    int64_t pairs = 0, tokens = 0;
    // TRL's, in nats; rewards are beta times mean log-probabilities per token.
    double loss = 0;
    Measure nll_loss;        // over the tokens that --nll-scope counts
    Measure log_odds_ratio;  // mean of log sigmoid(z), at most 0
    Measure log_odds_chosen, logps_chosen, logps_rejected;
    Measure rewards_chosen, rewards_rejected, rewards_margins, rewards_accuracies;
    // Beta-free.
    Measure nll_chosen;    // per chosen response token
    Measure pref_acc;      // share of pairs with x > y; equal answers do not count as right
    Measure log_odds;      // mean z
    Measure or_loss;       // mean softplus(-z)
    Measure margin;        // mean of x - y, nats per token
    Measure sum_logp_acc;  // share of pairs whose chosen answer has the larger sum
    double pref_share = 0;
};

// records: whole optimizer batches or a whole evaluation set, of one slot.
Metrics summarise(std::span<const PairRecord> records, double beta);

// Lines of the pairs with a NaN or infinity among their numbers, in order.
std::vector<int64_t> non_finite_lines(std::span<const PairRecord> records);

}  // namespace orpo
