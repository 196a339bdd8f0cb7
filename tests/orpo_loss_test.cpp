// The loss of one batch against numbers from TRL, the other implementations' rules, and the metrics.
#include "model/orpo_loss.h"

#include <doctest/doctest.h>

#include <cmath>

#include "data/pack.h"

using namespace orpo;

namespace {

// V = 11; z[b, p, v] = 2 sin(0.37 v + 0.91 p + 1.7 b + 0.13 id[b, p]), b: chosen 0, chosen 1, rejected 0, rejected 1.
double logit(int b, int p, int id, int v) {
    return static_cast<float>(2 * std::sin(0.37 * v + 0.91 * p + 1.7 * b + 0.13 * id));
}
std::vector<PreferencePair> two_pairs() {
    PreferencePair one, two;
    one.line = 1, one.prompt = {1, 5, 6}, one.chosen = {7, 8, 2}, one.rejected = {9, 2};
    two.line = 2, two.prompt = {1, 4}, two.chosen = {3, 2}, two.rejected = {10, 9, 8, 7, 2};
    return {one, two};
}
std::vector<const PreferencePair*> pointers(const std::vector<PreferencePair>& pairs) {
    std::vector<const PreferencePair*> list;
    for (const auto& pair : pairs) list.push_back(&pair);
    return list;
}

struct Scored {
    MicroBatch mb;
    std::vector<double> logp;
    std::vector<std::vector<double>> softmax;  // per head row
};
Scored score(const std::vector<PreferencePair>& pairs, const Objective& objective, double beta) {
    PackOptions options;
    options.objective = objective;
    options.totals = batch_totals(pointers(pairs), objective);
    options.max_tokens = 100;
    options.betas = {beta};
    auto bins = pack(pointers(pairs), options);
    REQUIRE(bins.size() == 1);
    Scored s{bins[0], {}, {}};
    for (const HeadRow& h : s.mb.heads) {
        const int b = h.pair + (h.part == Part::kRejected ? 2 : 0);
        std::vector<double> z(11);
        double sum = 0;
        for (int v = 0; v < 11; ++v) {
            z[v] = std::exp(logit(b, s.mb.positions[h.row], s.mb.ids[h.row], v));
            sum += z[v];
        }
        for (double& p : z) p /= sum;
        s.logp.push_back(std::log(z[h.target]));
        s.softmax.push_back(z);
    }
    return s;
}

// TRL's formulas, written down from the pairs alone: no packing, no head rows.
struct Naive {
    double nll = 0, odds = 0;
};
double naive_logp(int b, const std::vector<int32_t>& ids, int i) {  // of token i given what is before it
    double sum = 0;
    for (int v = 0; v < 11; ++v) sum += std::exp(logit(b, i - 1, ids[i - 1], v));
    return logit(b, i - 1, ids[i - 1], ids[i]) - std::log(sum);
}
std::vector<int32_t> joined(const PreferencePair& p, const std::vector<int32_t>& answer) {
    std::vector<int32_t> ids = p.prompt;
    ids.insert(ids.end(), answer.begin(), answer.end());
    return ids;
}

}  // namespace

TEST_CASE("of equal answers none is the likelier one, however rounding has it") {
    auto pairs = two_pairs();
    pairs[0].rejected = pairs[0].chosen;
    Scored s = score(pairs, {Semantics::kTrl, NllScope::kFull}, 0.1);
    for (size_t i = 0; i < s.logp.size(); ++i)  // the first pair's chosen answer ahead by rounding, the second's truly
        s.logp[i] = s.mb.heads[i].part == Part::kRejected ? -2 - (s.mb.heads[i].pair == 0 ? 1e-7 : 1) : -2;
    const auto records = pair_records(s.mb, s.logp);
    CHECK(records[0].loss.x == records[0].loss.y);
    CHECK(records[0].chosen_logp == records[0].rejected_logp);
    CHECK(records[1].loss.x > records[1].loss.y);
    const Metrics m = summarise(records, 0.1);
    CHECK(m.rewards_accuracies.value == 0.5);
    CHECK(m.pref_acc.value == 0.5);
    CHECK(m.sum_logp_acc.value == 0.5);
    pairs[0].chosen_tail = 1;  // its first token belongs to the prompt here: not the same answer
    const Scored tail = score(pairs, {Semantics::kTrl, NllScope::kFull}, 0.1);
    const auto other = pair_records(tail.mb, tail.logp);
    CHECK(std::abs(other[0].loss.x - other[0].loss.y) > 1e-3);
}

TEST_CASE("golden numbers of TRL's own functions") {
    const Scored s = score(two_pairs(), {Semantics::kTrl, NllScope::kFull}, 0.1);
    const auto records = pair_records(s.mb, s.logp);
    const Metrics m = summarise(records, 0.1);
    const auto near = [](double got, double want) { return std::abs(got - want) <= 1e-6; };
    CHECK(near(records[0].loss.x, -3.596251));
    CHECK(near(records[1].loss.x, -4.373209));
    CHECK(near(records[0].loss.y, -2.467707));
    CHECK(near(records[1].loss.y, -4.126818));
    CHECK(near(m.nll_loss.value, 3.614138));
    CHECK(near(m.log_odds_ratio.value, -1.140504));
    CHECK(near(m.log_odds_chosen.value, -0.719646));
    CHECK(near(m.loss, 3.728188));
    CHECK(near(m.rewards_margins.value, -0.068747));
    CHECK(near(0.1 * records[0].loss.x, -0.359625));
    CHECK(m.rewards_accuracies.value == 0);
    // d(loss)/d(logits): c_t (softmax - onehot), summed per (b, p), and its norm.
    double squares = 0;
    const auto gradient = [&](int pair, Part part, int position, int v) {
        double sum = 0;
        for (size_t i = 0; i < s.mb.heads.size(); ++i) {
            const HeadRow& h = s.mb.heads[i];
            const bool rejected = h.part == Part::kRejected;
            if (h.pair != pair || rejected != (part == Part::kRejected) || s.mb.positions[h.row] != position) continue;
            sum += row_coefficient(h, records[pair].loss) * (s.softmax[i][v] - (v == h.target));
        }
        return sum;
    };
    const double want0[] = {.004363, .008783, .015527, .022320}, want3[] = {.003861, .002182, .001517, .001361},
                 want2[] = {-.000320, -.000665, -.001350, -.002434};
    for (int v = 0; v < 4; ++v) {
        CHECK(near(gradient(0, Part::kPrompt, 0, v), want0[v]));
        CHECK(near(gradient(0, Part::kChosen, 3, v), want3[v]));
        CHECK(near(gradient(0, Part::kRejected, 2, v), want2[v]));
    }
    for (const int pair : {0, 1})
        for (const Part part : {Part::kChosen, Part::kRejected})
            for (int p = 0; p < 7; ++p)
                for (int v = 0; v < 11; ++v) squares += std::pow(gradient(pair, part, p, v), 2);
    CHECK(near(std::sqrt(squares), 0.400244));
}

TEST_CASE("log1mexp in two branches") {
    const double u[] = {-0.5, -0.01, -1e-3, -1e-5, -1e-7, -1e-9},
                 want[] = {-0.9328, -4.6102, -6.9083, -11.5129, -16.1181, -20.7233};
    for (int i = 0; i < 6; ++i) CHECK(std::abs(log1mexp(u[i]) - want[i]) <= 6e-5);
    CHECK(std::abs(log1mexp(-40) + std::exp(-40.0)) <= 1e-30);
    CHECK(std::abs(log1mexp(-0.6931471805599454) - log1mexp(-0.6931471805599452)) <= 1e-14);
}

TEST_CASE("a certain answer keeps every number finite; NaN is named by its line") {
    Scored s = score(two_pairs(), {}, 0.1);
    std::fill(s.logp.begin(), s.logp.end(), 0.0);
    const auto records = pair_records(s.mb, s.logp);
    CHECK(non_finite_lines(records).empty());
    for (const HeadRow& h : s.mb.heads) CHECK(std::isfinite(row_coefficient(h, records[h.pair].loss)));
    s.logp[s.mb.pairs[1].first_head + 2] = NAN;
    CHECK(non_finite_lines(pair_records(s.mb, s.logp)) == std::vector<int64_t>{2});
}

TEST_CASE("response scope, LLaMA-Factory and the authors' code, against their formulas on the bare pairs") {
    const auto pairs = two_pairs();
    const int eos = 2, max_length = 7;
    struct Sums {
        double nll = 0, tokens = 0;
    };
    // Response scope: pooled over chosen response tokens.
    Sums response, paper;
    double factory = 0, odds = 0, paper_odds = 0;
    for (int i = 0; i < 2; ++i) {
        const PreferencePair& p = pairs[i];
        const int P = static_cast<int>(p.prompt.size());
        const auto chosen = joined(p, p.chosen), rejected = joined(p, p.rejected);
        const auto mean = [&](int b, std::vector<int32_t> ids, bool padded) {
            if (padded && static_cast<int>(ids.size()) < max_length) ids.push_back(eos);
            double sum = 0;
            for (int t = P; t < static_cast<int>(ids.size()); ++t) sum += naive_logp(b, ids, t);
            return sum / static_cast<double>(ids.size() - P);
        };
        for (int t = 1; t < static_cast<int>(chosen.size()); ++t) {
            const double lp = naive_logp(i, chosen, t);
            if (t >= P) response.nll -= lp, ++response.tokens;
            if (chosen[t] != eos) paper.nll -= lp, ++paper.tokens;
        }
        const auto ratio = [](double x, double y) {
            const double z = (x - y) - (std::log(1 - std::exp(x)) - std::log(1 - std::exp(y)));
            return std::log(1 + std::exp(-z));
        };
        const double x = mean(i, chosen, false), y = mean(i + 2, rejected, false);
        factory -= x / 2;
        odds += ratio(x, y) / 2;
        paper_odds += ratio(mean(i, chosen, true), mean(i + 2, rejected, true)) / 2;
    }
    const double beta = 0.3;
    const auto loss = [&](const Objective& objective) {
        const Scored s = score(pairs, objective, beta);
        return summarise(pair_records(s.mb, s.logp), beta).loss;
    };
    CHECK(loss({Semantics::kOrpo, NllScope::kResponse}) ==
          doctest::Approx(response.nll / response.tokens + beta * odds).epsilon(1e-12));
    CHECK(loss({Semantics::kLlamaFactory, NllScope::kFull}) == doctest::Approx(factory + beta * odds).epsilon(1e-12));
    CHECK(loss({Semantics::kPaper, NllScope::kFull, eos, max_length}) ==
          doctest::Approx(paper.nll / paper.tokens + beta * paper_odds).epsilon(1e-12));
    // One sequence of two_pairs() fills max_length: it has no padding to score.
    const Scored s = score(pairs, {Semantics::kPaper, NllScope::kFull, eos, max_length}, beta);
    CHECK(pair_records(s.mb, s.logp)[1].rejected_tokens == 5);
    CHECK(pair_records(s.mb, s.logp)[1].chosen_tokens == 3);
}

TEST_CASE("tails at the boundary are prompt: in the NLL of full scope, never in the odds") {
    auto pairs = two_pairs();
    pairs[0].chosen_tail = 1, pairs[0].rejected_tail = 1;
    const Scored s = score(pairs, {}, 0.1);
    const PairRecord r = pair_records(s.mb, s.logp)[0];
    CHECK(r.prompt_tokens == 3);  // two of the prompt, one of the tail
    CHECK(r.chosen_tokens == 2);
    CHECK(r.rejected_tokens == 1);
    CHECK(batch_totals(pointers(pairs), {}).nll_tokens == 8);
    CHECK(batch_totals(pointers(pairs), {Semantics::kOrpo, NllScope::kResponse}).nll_tokens == 4);
}

TEST_CASE("standard errors, weighting by tokens, sums and shares") {
    const auto pairs = two_pairs();
    const Scored s = score(pairs, {}, 0.5);
    const auto records = pair_records(s.mb, s.logp);
    const Metrics m = summarise(records, 0.5);
    CHECK(m.pairs == 2);
    CHECK(m.tokens == 8 + 9);
    CHECK(m.nll_chosen.value == doctest::Approx(-(records[0].chosen_logp + records[1].chosen_logp) / 5));
    const double a = records[0].loss.z, b = records[1].loss.z;
    CHECK(m.log_odds.se == doctest::Approx(std::abs(a - b) / 2));  // sd / sqrt(2) of two numbers
    CHECK(m.rewards_chosen.value == doctest::Approx(0.5 * m.logps_chosen.value));
    CHECK(m.pref_share > 0);
    CHECK(m.pref_share < 1);
    CHECK(std::isnan(summarise(std::span(records).first(1), 0.5).margin.se));
}
