#include "src/evaluate.h"

#include <algorithm>

namespace orpo {
namespace {

// Pairs packed at a time: bounds the memory of the packed copies, whatever the size of the set.
constexpr size_t kGroup = 64;

}  // namespace

std::vector<PairRecord> evaluate_pairs(Engine& engine, std::span<const PreferencePair> pairs,
                                       const EvaluateOptions& options, const std::function<bool(int64_t)>& progress) {
    std::vector<const PreferencePair*> all;
    all.reserve(pairs.size());
    for (const PreferencePair& pair : pairs) all.push_back(&pair);

    PackOptions pack_options;
    pack_options.objective = options.objective;
    pack_options.totals = batch_totals(all, options.objective);
    pack_options.max_tokens = options.max_tokens;
    pack_options.betas = {options.beta};
    pack_options.score_prompt = options.score_prompt;

    std::vector<PairRecord> records;
    records.reserve(pairs.size());
    std::vector<double> logp;
    for (size_t first = 0; first < all.size(); first += kGroup) {
        pack_options.first_pair = static_cast<int32_t>(first);
        const auto group = std::span(all).subspan(first, std::min(kGroup, all.size() - first));
        for (const MicroBatch& mb : pack(group, pack_options)) {
            if (progress && !progress(static_cast<int64_t>(records.size()))) return {};
            logp.resize(mb.heads.size());
            engine.evaluate(mb, logp);
            for (PairRecord& record : pair_records(mb, logp)) records.push_back(record);
        }
    }
    if (progress && !progress(static_cast<int64_t>(records.size()))) return {};
    return records;
}

PairSizes largest_pair(std::span<const PreferencePair> pairs, const Objective& objective) {
    PairSizes sizes;
    for (const PreferencePair& pair : pairs) {
        sizes.rows = std::max(sizes.rows, packed_rows(pair, objective));
        const size_t answer = std::max(pair.chosen.size(), pair.rejected.size());
        sizes.positions = std::max(sizes.positions, static_cast<int64_t>(pair.prompt.size() + answer));
    }
    return sizes;
}

}  // namespace orpo
