// The ORPO loss of one pair from the log-probabilities of its scored rows, in double; the same lines run on every
// device, where a GPU sums in an order of its own.
//
//   loss = sum_t w_t (-logp_t) + beta / B * softplus(-z)
//   x, y = mean log-probability per scored token of chosen and rejected, capped at -1e-12
//   z    = (x - y) - (log1mexp(x) - log1mexp(y))
//
// Backward is one weighted cross-entropy: dlogits_t = c_t (softmax_t - onehot_t) with
//   c_t = w_t + beta / B * sigmoid(-z) / ((1 - e^x) |chosen|)        odds rows of chosen
//   c_t =     - beta / B * sigmoid(-z) / ((1 - e^y) |rejected|)      odds rows of rejected
// for dz/dx = 1 + e^x / (1 - e^x) = 1 / (1 - e^x).
// Source: Hong, Lee, Thorne, "ORPO", arXiv 2403.07691; the stable log1mexp: Maechler, "log1mexp" (R package Rmpfr).
#pragma once

#include <cmath>

#include "kernels/batch.h"

#ifndef ORPO_DEVICE  // a CUDA translation unit defines it as __host__ __device__
#define ORPO_DEVICE
#endif

namespace orpo {

// log(1 - e^u), u < 0, without cancellation on either side of -log 2.
ORPO_DEVICE inline double log1mexp(double u) {
    return u < -0.69314718055994530942 ? std::log1p(-std::exp(u)) : std::log(-std::expm1(u));
}
ORPO_DEVICE inline double softplus(double v) { return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v)); }
ORPO_DEVICE inline double sigmoid(double v) {
    return v >= 0 ? 1 / (1 + std::exp(-v)) : std::exp(v) / (1 + std::exp(v));
}

struct PairLoss {
    double nll = 0;                    // sum of w_t (-logp_t): this pair's share of the batch's NLL
    double x = 0, y = 0;               // mean log-probabilities, capped
    double z = 0;                      // log odds ratio
    double odds_loss = 0;              // softplus(-z)
    double odds_chosen = 0;            // c_t's odds part on a chosen odds row
    double odds_rejected = 0;          // and on a rejected one (negative)
    int32_t chosen = 0, rejected = 0;  // odds rows
};

// What the odds take from a pair's rows.
struct OddsSums {
    double chosen_logp = 0, rejected_logp = 0;
    int32_t chosen = 0, rejected = 0;

    ORPO_DEVICE void add(const HeadRow& row, double logp) {
        if (!row.in_odds) return;
        if (row.part == Part::kChosen) chosen_logp += logp, ++chosen;
        if (row.part == Part::kRejected) rejected_logp += logp, ++rejected;
    }
    ORPO_DEVICE void add(const OddsSums& other) {
        chosen_logp += other.chosen_logp, rejected_logp += other.rejected_logp;
        chosen += other.chosen, rejected += other.rejected;
    }
};

// All but nll. A pair without odds rows on both sides (a text to score) has nothing of it.
ORPO_DEVICE inline PairLoss odds_ratio(const PairSpan& span, const OddsSums& sums) {
    PairLoss pair;
    pair.chosen = sums.chosen, pair.rejected = sums.rejected;
    if (pair.chosen == 0 || pair.rejected == 0) return pair;
    const double x = sums.chosen_logp / pair.chosen, y = sums.rejected_logp / pair.rejected;
    pair.x = x > -1e-12 ? -1e-12 : x;  // NaN stays NaN
    pair.y = y > -1e-12 ? -1e-12 : y;
    pair.z = (pair.x - pair.y) - (log1mexp(pair.x) - log1mexp(pair.y));
    pair.odds_loss = softplus(-pair.z);
    const double pull = span.odds_weight * sigmoid(-pair.z);
    pair.odds_chosen = pull / (-std::expm1(pair.x) * pair.chosen);
    pair.odds_rejected = -pull / (-std::expm1(pair.y) * pair.rejected);
    return pair;
}

// heads, logp: the pair's own rows.
inline PairLoss orpo_pair(const PairSpan& span, const HeadRow* heads, const double* logp) {
    OddsSums sums;
    double nll = 0;
    for (int i = 0; i < span.heads; ++i) {
        nll -= heads[i].nll_weight * logp[i];
        sums.add(heads[i], logp[i]);
    }
    PairLoss pair = odds_ratio(span, sums);
    pair.nll = nll;
    return pair;
}

// c_t of one row.
ORPO_DEVICE inline double row_coefficient(const HeadRow& row, const PairLoss& pair) {
    if (!row.in_odds) return row.nll_weight;
    return row.nll_weight + (row.part == Part::kChosen ? pair.odds_chosen : pair.odds_rejected);
}

}  // namespace orpo
