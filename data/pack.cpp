#include "data/pack.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace orpo {
namespace {

// Does the NLL count a chosen-side target (a prompt token from the second on, or a token of the chosen answer)?
bool in_nll(const Objective& o, bool response, int32_t target) {
    if (o.semantics == Semantics::kPaper && target == o.eos) return false;
    if (o.semantics == Semantics::kPaper && o.nll_scope == NllScope::kResponse && target == 0) return false;
    return response || (o.nll_scope == NllScope::kFull && o.semantics != Semantics::kLlamaFactory);
}

// The first padding token after an answer counts in the authors' odds, unless the answer fills the padded length.
bool scores_padding(const Objective& o, const PreferencePair& pair, const std::vector<int32_t>& answer) {
    return o.semantics == Semantics::kPaper &&
           static_cast<int64_t>(pair.prompt.size() + answer.size()) < static_cast<int64_t>(o.max_length);
}

// Lays out one pair for one slot at the end of the micro-batch.
void append(MicroBatch& mb, const PreferencePair& pair, int32_t slot, int32_t pair_in_batch,
            const PackOptions& options) {
    const Objective& o = options.objective;
    const auto P = static_cast<int32_t>(pair.prompt.size()), begin = static_cast<int32_t>(mb.ids.size());
    const auto index = static_cast<int32_t>(mb.pairs.size());
    PairSpan span;
    span.begin = begin;
    span.chosen = begin + P;
    span.rejected = span.chosen + static_cast<int32_t>(pair.chosen.size());
    span.end = span.rejected + static_cast<int32_t>(pair.rejected.size());
    span.first_head = static_cast<int32_t>(mb.heads.size());
    span.slot = slot, span.pair_in_batch = pair_in_batch, span.line = pair.line;
    span.odds_weight = options.betas[slot] / static_cast<double>(options.totals.pairs);

    for (const auto* part : {&pair.prompt, &pair.chosen, &pair.rejected})
        mb.ids.insert(mb.ids.end(), part->begin(), part->end());
    for (int32_t n = begin; n < span.end; ++n)
        mb.positions.push_back(n < span.rejected ? n - begin : P + n - span.rejected);

    const double response_tokens = static_cast<double>(pair.chosen.size()) - pair.chosen_tail;
    const double nll_weight = o.semantics == Semantics::kLlamaFactory
                                  ? 1.0 / (static_cast<double>(options.totals.pairs) * response_tokens)
                                  : 1.0 / static_cast<double>(std::max<int64_t>(1, options.totals.nll_tokens));
    const auto score = [&](int32_t row, int32_t target, Part part, bool odds, bool nll) {
        mb.heads.push_back({row, target, index, part, odds, 0, nll ? nll_weight : 0.0});
    };
    const auto score_prompt = [&](int32_t row, int32_t target) {
        const bool nll = in_nll(o, false, target);
        if (nll || options.score_prompt) score(row, target, Part::kPrompt, false, nll);
    };
    for (int32_t i = 1; i < P; ++i) score_prompt(begin + i - 1, pair.prompt[i]);
    // Row that predicts the i-th token of the answer that starts at `first`.
    const auto before = [&](int32_t first, int32_t i) { return i == 0 ? span.chosen - 1 : first + i - 1; };
    const auto chosen = static_cast<int32_t>(pair.chosen.size()), rejected = static_cast<int32_t>(pair.rejected.size());
    for (int32_t i = 0; i < pair.chosen_tail; ++i) score_prompt(before(span.chosen, i), pair.chosen[i]);
    for (int32_t i = pair.chosen_tail; i < chosen; ++i)
        score(before(span.chosen, i), pair.chosen[i], Part::kChosen, true, in_nll(o, true, pair.chosen[i]));
    if (scores_padding(o, pair, pair.chosen)) score(span.rejected - 1, o.eos, Part::kChosen, true, false);
    for (int32_t i = pair.rejected_tail; i < rejected; ++i)
        score(before(span.rejected, i), pair.rejected[i], Part::kRejected, true, false);
    if (scores_padding(o, pair, pair.rejected)) score(span.end - 1, o.eos, Part::kRejected, true, false);

    span.heads = static_cast<int32_t>(mb.heads.size()) - span.first_head;
    mb.pairs.push_back(span);
}

}  // namespace

BatchTotals batch_totals(std::span<const PreferencePair* const> batch, const Objective& objective) {
    BatchTotals totals;
    for (const PreferencePair* pair : batch) {
        ++totals.pairs;
        for (size_t i = 1; i < pair->prompt.size(); ++i) totals.nll_tokens += in_nll(objective, false, pair->prompt[i]);
        for (size_t i = 0; i < pair->chosen.size(); ++i)
            totals.nll_tokens += in_nll(objective, static_cast<int64_t>(i) >= pair->chosen_tail, pair->chosen[i]);
    }
    return totals;
}

int64_t packed_rows(const PreferencePair& pair, const Objective& objective) {
    return pair.tokens() + (objective.semantics == Semantics::kPaper ? 1 : 0);
}

std::vector<MicroBatch> pack(std::span<const PreferencePair* const> batch, const PackOptions& options) {
    const auto K = static_cast<int32_t>(options.betas.size());
    ORPO_CHECK(K > 0 && options.totals.pairs > 0);
    std::vector<MicroBatch> bins;
    const auto open = [&] {
        MicroBatch& mb = bins.emplace_back();
        mb.dropout_key = options.dropout_key, mb.step = options.step;
    };
    const auto pairs = static_cast<int32_t>(batch.size());
    for (int32_t i = 0; i < pairs;) {
        const int64_t rows = packed_rows(*batch[i], options.objective);
        if (rows > options.max_tokens)
            throw Error(Exit::kUsage, "the pair of line " + std::to_string(batch[i]->line) + " takes " +
                                          std::to_string(rows) + " tokens, but --micro-batch-tokens is " +
                                          std::to_string(options.max_tokens) +
                                          "; raise --micro-batch-tokens or lower --max-length");
        // As many pairs as fit with all slots; a pair too large for that goes slot by slot.
        int32_t count = 0;
        int64_t taken = 0;
        while (i + count < pairs &&
               (taken + packed_rows(*batch[i + count], options.objective)) * K <= options.max_tokens)
            taken += packed_rows(*batch[i + count++], options.objective);
        const int32_t group = std::max(count, 1);
        const int32_t slots_at_once = count > 0 ? K : static_cast<int32_t>(options.max_tokens / rows);
        for (int32_t first = 0; first < K; first += slots_at_once) {
            open();
            for (int32_t slot = first; slot < std::min(K, first + slots_at_once); ++slot)
                for (int32_t p = i; p < i + group; ++p)
                    append(bins.back(), *batch[p], slot, options.first_pair + p, options);
        }
        i += group;
    }
    return bins;
}

}  // namespace orpo
