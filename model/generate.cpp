#include "model/generate.h"

#include <algorithm>
#include <cmath>
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

// Rows of a whole prompt, or one new row. text: the number by which its tokens are drawn.
void add_rows(MicroBatch& mb, std::span<const int32_t> ids, int32_t first_position, int32_t place, uint32_t text,
              int slot) {
    PairSpan span;
    span.begin = static_cast<int32_t>(mb.ids.size());
    span.chosen = span.rejected = span.end = span.begin + static_cast<int32_t>(ids.size());
    span.first_head = static_cast<int32_t>(mb.heads.size()), span.heads = 1;
    span.slot = slot, span.pair_in_batch = place;
    HeadRow head;
    head.row = span.end - 1, head.pair = static_cast<int32_t>(mb.pairs.size());
    head.text = static_cast<int32_t>(text);
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
    const auto text_of = [&](size_t index) { return sampling.first + static_cast<uint32_t>(index); };
    std::vector<int32_t> ids;
    // Draws the tokens that follow the rows of the last micro-batch, all of them at the same place of their texts.
    const auto draw = [&](size_t rows, size_t place) {
        ids.resize(rows);
        engine.sample({sampling, stream_key(sampling.seed, Stream::kSample), static_cast<uint32_t>(place)}, ids);
    };

    // Takes the next token of a sequence; true: the sequence has ended.
    const auto advance = [&](Running& r, int32_t next) {
        Generated& out = results[r.index];
        r.next = next;
        const auto& stops = sampling.stop_ids;
        bool ended = out.stopped = std::find(stops.begin(), stops.end(), next) != stops.end();
        if (!ended) {
            out.ids.push_back(next);
            if (tokenizer && !tokenizer->is_special(next))
                ended = out.stopped = r.stream.add(tokenizer->token_bytes(next));
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
            add_rows(mb, prompts[i], 0, place, text_of(i), slot);
            engine.prefill(mb);
            draw(1, 0);
            Running r{i, place, length, 0, TextStream(sampling.stops)};
            if (!advance(r, ids[0])) running.push_back(std::move(r));
        }
        for (size_t at = 1; !running.empty(); ++at) {
            MicroBatch mb;
            for (Running& r : running) add_rows(mb, {&r.next, 1}, r.length++, r.place, text_of(r.index), slot);
            engine.decode(mb);
            draw(running.size(), at);
            std::vector<Running> left;
            for (size_t i = 0; i < running.size(); ++i)
                if (!advance(running[i], ids[i])) left.push_back(std::move(running[i]));
            running.swap(left);
        }
    }
    return results;
}

}  // namespace orpo
