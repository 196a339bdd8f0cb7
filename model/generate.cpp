#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "base/error.h"
#include "base/philox.h"
#include "model/text_stream.h"

namespace orpo {
namespace {

struct Running {
    size_t index = 0;    // in prompts and results
    int32_t place = 0;   // its part of the cache
    int32_t length = 0;  // tokens whose keys and values are in the cache
    int32_t next = 0;    // token drawn last
    TextStream stream;
};

// Rows of a whole prompt, or one new row.
void add_rows(MicroBatch& mb, std::span<const int32_t> ids, int32_t first_position, int32_t place, int slot) {
    PairSpan span;
    span.begin = static_cast<int32_t>(mb.ids.size());
    span.chosen = span.rejected = span.end = span.begin + static_cast<int32_t>(ids.size());
    span.first_head = static_cast<int32_t>(mb.heads.size()), span.heads = 1;
    span.slot = slot, span.pair_in_batch = place;
    HeadRow head;
    head.row = span.end - 1, head.pair = static_cast<int32_t>(mb.pairs.size());
    mb.ids.insert(mb.ids.end(), ids.begin(), ids.end());
    for (size_t i = 0; i < ids.size(); ++i) mb.positions.push_back(first_position + static_cast<int32_t>(i));
    mb.pairs.push_back(span);
    mb.heads.push_back(head);
}

}  // namespace

void Sampling::check() const {
    const auto refuse = [](const std::string& what) { throw Error(Exit::kUsage, what); };
    if (max_tokens < 1) refuse("--max-tokens must be at least 1");
    if (!(temperature >= 0) || std::isinf(temperature)) refuse("--temperature must be 0 (greedy) or more");
    if (top_k < 0) refuse("--top-k must be 0 (off) or more");
    if (!(top_p > 0 && top_p <= 1)) refuse("--top-p must be above 0 and at most 1");
    if (!(min_p >= 0 && min_p <= 1)) refuse("--min-p must be from 0 to 1");
    for (const std::string& stop : stops)
        if (stop.empty()) refuse("--stop must not be empty");
}

int32_t sample(std::span<const float> logits, const Sampling& sampling, double random) {
    const auto V = static_cast<int32_t>(logits.size());
    const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    for (const float z : logits)
        if (std::isnan(z))
            throw Error(Exit::kDiverged, "the model computes NaN; its weights or the adapter are damaged");
    if (sampling.temperature <= 0 || sampling.top_k == 1) return best;

    // Likeliest first, the lower id among equals; only as many as can be drawn are sorted.
    std::vector<int32_t> order(V);
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    int32_t count = sampling.top_k > 0 ? std::min(sampling.top_k, V) : V;
    if (count < V)
        std::partial_sort(order.begin(), order.begin() + count, order.end(), likelier);
    else
        std::sort(order.begin(), order.end(), likelier);

    std::vector<double> weight(count);
    double sum = 0;
    for (int32_t i = 0; i < count; ++i) {
        weight[i] = std::exp((static_cast<double>(logits[order[i]]) - logits[best]) / sampling.temperature);
        sum += weight[i];
    }
    if (sampling.top_p < 1) {
        double share = 0;
        int32_t kept = 0;
        while (kept < count && share < sampling.top_p * sum) share += weight[kept++];
        count = kept, sum = share;
    }
    if (sampling.min_p > 0) {
        int32_t kept = 0;
        double share = 0;
        while (kept < count && weight[kept] >= sampling.min_p * weight[0]) share += weight[kept++];
        count = kept, sum = share;
    }
    double left = random * sum;
    for (int32_t i = 0; i < count; ++i) {
        left -= weight[i];
        if (left < 0) return order[i];
    }
    return order[count - 1];
}

std::vector<Generated> generate(Engine& engine, const Tokenizer* tokenizer,
                                std::span<const std::vector<int32_t>> prompts, const Sampling& sampling, int slot,
                                const OnText& on_text) {
    sampling.check();
    const TransformerSizes& sizes = engine.sizes();
    ORPO_CHECK(sizes.sequences > 0);
    const int limit = std::min(sizes.tokens, sizes.max_positions - 1);
    for (const auto& prompt : prompts) {
        if (prompt.empty()) throw Error(Exit::kUsage, "the prompt is empty; give at least one token of text");
        if (static_cast<int64_t>(prompt.size()) > limit)
            throw Error(Exit::kUsage, "the prompt takes " + std::to_string(prompt.size()) + " tokens, at most " +
                                          std::to_string(limit) + " fit; shorten it");
    }

    std::vector<Generated> results(prompts.size());
    const uint64_t key = stream_key(sampling.seed, Stream::kSample);
    const auto V = static_cast<size_t>(engine.config().V);
    std::vector<float> logits;

    // Takes the next token of a sequence from its logits; true: the sequence has ended.
    const auto advance = [&](Running& r, std::span<const float> z) {
        Generated& out = results[r.index];
        const auto words =
            philox(key, {static_cast<uint32_t>(out.ids.size()), sampling.first + static_cast<uint32_t>(r.index), 0, 0});
        r.next = sample(z, sampling, uniform(words[0]));
        const auto& ids = sampling.stop_ids;
        bool ended = out.stopped = std::find(ids.begin(), ids.end(), r.next) != ids.end();
        if (!ended) {
            out.ids.push_back(r.next);
            if (tokenizer && !tokenizer->is_special(r.next))
                ended = out.stopped = r.stream.add(tokenizer->token_bytes(r.next));
            ended = ended || static_cast<int>(out.ids.size()) >= sampling.max_tokens || r.length >= sizes.max_positions;
        }
        const std::string piece = r.stream.take(ended);
        if (on_text && !piece.empty()) on_text(r.index, piece);
        if (ended) out.text = r.stream.text();
        return ended;
    };

    for (size_t begin = 0; begin < prompts.size(); begin += static_cast<size_t>(sizes.sequences)) {
        std::vector<Running> running;
        const size_t end = std::min(prompts.size(), begin + static_cast<size_t>(sizes.sequences));
        for (size_t i = begin; i < end; ++i) {
            MicroBatch mb;
            const auto place = static_cast<int32_t>(i - begin), length = static_cast<int32_t>(prompts[i].size());
            add_rows(mb, prompts[i], 0, place, slot);
            logits.resize(V);
            engine.prefill(mb, logits);
            Running r{i, place, length, 0, TextStream(sampling.stops)};
            if (!advance(r, logits)) running.push_back(std::move(r));
        }
        while (!running.empty()) {
            MicroBatch mb;
            for (Running& r : running) add_rows(mb, {&r.next, 1}, r.length++, r.place, slot);
            logits.resize(running.size() * V);
            engine.decode(mb, logits);
            std::vector<Running> left;
            for (size_t i = 0; i < running.size(); ++i)
                if (!advance(running[i], std::span(logits).subspan(i * V, V))) left.push_back(std::move(running[i]));
            running.swap(left);
        }
    }
    return results;
}

}  // namespace orpo
