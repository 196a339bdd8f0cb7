// The ORPO loss of one optimizer batch, from the log-probabilities of its scored rows; all in double.
//
//   loss = sum_t w_t (-logp_t) + beta / B * sum_pairs softplus(-z)            w_t: weight of the NLL rows
//   x, y = mean log-probability per response token of chosen and rejected, capped at -1e-12
//   z    = (x - y) - (log1mexp(x) - log1mexp(y))
//
// Backward is one weighted cross-entropy: dlogits_t = c_t (softmax_t - onehot_t) with
//   c_t = w_t [in NLL] + beta / B * sigmoid(-z) / ((1 - e^x) |chosen|)       response rows of chosen
//   c_t =              - beta / B * sigmoid(-z) / ((1 - e^y) |rejected|)     response rows of rejected
// for dz/dx = 1 + e^x / (1 - e^x) = 1 / (1 - e^x).
// Source: Hong, Lee, Thorne, "ORPO", arXiv 2403.07691; the stable log1mexp: Maechler, "log1mexp" (R package Rmpfr).
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "model/micro_batch.h"

namespace orpo {

// log(1 - e^u), u < 0, without cancellation on either side of -log 2.
inline double log1mexp(double u) {
    return u < -std::numbers::ln2 ? std::log1p(-std::exp(u)) : std::log(-std::expm1(u));
}

inline double softplus(double v) { return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v)); }
inline double sigmoid(double v) { return v >= 0 ? 1 / (1 + std::exp(-v)) : std::exp(v) / (1 + std::exp(v)); }

// What one optimizer batch divides by, known before its first micro-batch.
struct BatchTotals {
    int64_t pairs = 0;
    int64_t nll_tokens = 0;
};

// One pair's numbers.
struct PairLoss {
    double nll_sum = 0;           // sum of -logp over its NLL rows
    int64_t nll_tokens = 0;
    double x = 0, y = 0;          // mean log-probability of chosen and rejected response tokens
    int64_t chosen = 0, rejected = 0;  // response tokens
    double z = 0;                 // log odds ratio
    double odds_loss = 0;         // softplus(-z)
    double nll_share = 0;         // c_t's NLL part on a chosen response row
    double odds_chosen = 0;       // c_t's odds part on a chosen response row
    double odds_rejected = 0;     // and on a rejected one (negative)
};

// logp: of mb.rows in order. beta_of(slot) gives the beta of an adapter slot.
template <class BetaOf>
std::vector<PairLoss> pair_losses(const MicroBatch& mb, std::span<const double> logp, const BatchTotals& totals,
                                  BetaOf beta_of) {
    std::vector<PairLoss> pairs(mb.pairs.size());
    for (size_t i = 0; i < mb.rows.size(); ++i) {
        const HeadRow& row = mb.rows[i];
        PairLoss& pair = pairs[row.pair];
        if (row.in_nll) pair.nll_sum -= logp[i], ++pair.nll_tokens;
        if (row.in_odds && row.side == 0) pair.x += logp[i], ++pair.chosen;
        if (row.in_odds && row.side == 1) pair.y += logp[i], ++pair.rejected;
    }
    for (size_t p = 0; p < pairs.size(); ++p) {
        PairLoss& pair = pairs[p];
        const double share = beta_of(mb.pairs[p].slot) / static_cast<double>(totals.pairs);
        pair.x = std::min(pair.x / static_cast<double>(pair.chosen), -1e-12);
        pair.y = std::min(pair.y / static_cast<double>(pair.rejected), -1e-12);
        pair.z = (pair.x - pair.y) - (log1mexp(pair.x) - log1mexp(pair.y));
        pair.odds_loss = softplus(-pair.z);
        pair.nll_share = 1.0 / static_cast<double>(totals.nll_tokens);
        pair.odds_chosen = share * sigmoid(-pair.z) / (-std::expm1(pair.x) * static_cast<double>(pair.chosen));
        pair.odds_rejected = -share * sigmoid(-pair.z) / (-std::expm1(pair.y) * static_cast<double>(pair.rejected));
    }
    return pairs;
}

// c_t of one row.
inline double row_coefficient(const HeadRow& row, const PairLoss& pair) {
    return (row.in_nll ? pair.nll_share : 0.0) +
           (row.in_odds ? (row.side == 0 ? pair.odds_chosen : pair.odds_rejected) : 0.0);
}

}  // namespace orpo
