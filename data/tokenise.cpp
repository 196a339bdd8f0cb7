#include "data/tokenise.h"

#include <algorithm>

#include "base/error.h"

namespace orpo {
namespace {

constexpr size_t kPaperPrompt = 256;  // the authors' prompt_max_length: from here on a pair is left out

// Tokenises parts of rendered texts under the policy for special tokens in the user's words.
class Encoder {
  public:
    Encoder(const Tokenizer& tokenizer, SpecialText special) : tokenizer_(tokenizer), special_(special) {}

    // Appends the ids of text.text[begin, end). begin and end must be places where the text may be cut apart.
    void append(const Text& text, size_t begin, size_t end, std::vector<int32_t>& out) {
        const std::string_view part = std::string_view(text.text).substr(begin, end - begin);
        if (special_ == SpecialText::kParse) {
            append_ids(part, SpecialText::kParse, out);
            return;
        }
        // The template's own special tokens stay tokens: they split the text, and what lies between is literal.
        size_t from = begin;
        for (size_t at = begin; at < end;) {
            const std::string_view token = template_token(text, at, end);
            if (token.empty()) {
                ++at;
                continue;
            }
            append_ids(std::string_view(text.text).substr(from, at - from), SpecialText::kLiteral, out);
            out.push_back(tokenizer_.find(token));
            at += token.size();
            from = at;
        }
        append_ids(std::string_view(text.text).substr(from, end - from), SpecialText::kLiteral, out);
    }
    int64_t dropped() const { return dropped_; }

  private:
    static bool own(const Text& text, size_t at) {
        for (const auto& [begin, end] : text.own)
            if (at >= begin && at < end) return true;
        return false;
    }
    static std::string_view template_token(const Text& text, size_t at, size_t end) {
        if (text.text[at] != '<') return {};
        for (const std::string_view token : {kTurnStart, kTurnEnd, kDocumentEnd})
            if (at + token.size() <= end && text.text.compare(at, token.size(), token) == 0 && !own(text, at))
                return token;
        return {};
    }
    void append_ids(std::string_view part, SpecialText special, std::vector<int32_t>& out) {
        if (part.empty()) return;
        int64_t dropped = 0;
        const std::vector<int32_t> ids = tokenizer_.encode(part, special, &dropped);
        dropped_ += dropped;
        out.insert(out.end(), ids.begin(), ids.end());
    }

    const Tokenizer& tokenizer_;
    SpecialText special_;
    int64_t dropped_ = 0;
};

size_t common(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    const size_t n = std::min(a.size(), b.size());
    return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin()).first -
                               a.begin());
}

void note_special(const Text& text, size_t from, const Tokenizer& tokenizer, SpecialText special, const char* field,
                  Remarks& remarks) {
    for (const auto& [begin, end] : text.own) {
        if (end <= from) continue;
        const std::string_view own =
            std::string_view(text.text).substr(std::max(begin, from), end - std::max(begin, from));
        if (own.find('<') == std::string_view::npos || tokenizer.count_special(own) == 0) continue;
        if (special == SpecialText::kError)
            throw RowFault(field,
                           "the text holds a special token such as <|im_end|>; remove it, or pass --special literal "
                           "(characters) or --special parse (tokens)");
        remarks.add(Remark::kSpecialInText);
    }
}

// The ids of prompt, prompt + chosen and prompt + rejected, each tokenised as one text.
struct Joint {
    std::vector<int32_t> prompt, chosen, rejected;
};
Joint encode_joint(const Rendered& row, Encoder& encoder) {
    Joint ids;
    encoder.append(row.chosen, 0, row.split, ids.prompt);
    ids.chosen = ids.rejected = ids.prompt;
    encoder.append(row.chosen, row.split, row.prompt_bytes, ids.prompt);
    encoder.append(row.chosen, row.split, row.chosen.text.size(), ids.chosen);
    encoder.append(row.rejected, row.split, row.rejected.text.size(), ids.rejected);
    return ids;
}

// Both sequences begin with the same prompt token: a start token is put before them where they do not.
void ensure_start(Sequence& chosen, Sequence& rejected, const EndTokens& ends, Remarks& remarks) {
    if (chosen.prompt > 0 && rejected.prompt > 0 && chosen.ids[0] == rejected.ids[0]) return;
    if (ends.start < 0) throw RowFault("prompt", "empty, and the tokenizer has no token that could stand in for it");
    for (Sequence* s : {&chosen, &rejected}) {
        s->ids.insert(s->ids.begin(), ends.start);
        ++s->prompt;
    }
    remarks.add(Remark::kStartToken);
}

// build_tokenized_answer of TRL: where prompt + answer does not begin with the prompt's ids, the boundary moves back by
// exactly one token.
Sequence trl_sequence(const std::vector<int32_t>& prompt, std::vector<int32_t> full) {
    if (full.size() < prompt.size())
        throw RowFault("prompt",
                       "prompt and answer together have fewer tokens than the prompt alone, which TRL refuses; "
                       "--semantics orpo handles this row");
    Sequence s;
    const bool same = common(prompt, full) == prompt.size();
    s.prompt = same ? prompt.size() : prompt.size() - 1;
    s.ids = std::move(full);
    return s;
}

Tokenised tokenise_trl(const Rendered& row, Encoder& encoder, const EndTokens& ends, const DataOptions& options) {
    Tokenised out;
    Joint ids = encode_joint(row, encoder);
    Sequence chosen = trl_sequence(ids.prompt, std::move(ids.chosen));
    Sequence rejected = trl_sequence(ids.prompt, std::move(ids.rejected));
    size_t differences = 0;
    for (size_t i = 0; i < std::min(chosen.prompt, rejected.prompt); ++i)
        differences += chosen.ids[i] != rejected.ids[i];
    const size_t lengths = std::max(chosen.prompt, rejected.prompt) - std::min(chosen.prompt, rejected.prompt);
    if (differences > 1 || lengths > 1)
        throw RowFault("prompt",
                       "tokens merge across prompt and answer further than TRL allows (its prompts would differ "
                       "in more than their last token); --semantics orpo handles this row");
    if (chosen.prompt != ids.prompt.size() || rejected.prompt != ids.prompt.size())
        out.remarks.add(Remark::kBoundaryMerge);
    for (Sequence* s : {&chosen, &rejected}) {
        if (ends.bos >= 0 && (s->prompt == 0 || s->ids[0] != ends.bos)) {
            s->ids.insert(s->ids.begin(), ends.bos);
            ++s->prompt;
        }
        if (s->prompt == 0 || s->ids[0] != chosen.ids[0])
            throw RowFault("prompt", "empty, and the tokenizer has no BOS to stand in for it");
        if (s->ids.size() == s->prompt || s->ids.back() != ends.eos) s->ids.push_back(ends.eos);
        const size_t limit = static_cast<size_t>(options.max_length);
        if (s->ids.size() <= limit) continue;
        if (options.truncation == Truncation::kError || options.truncation == Truncation::kDrop) {
            out.drop = true;
            continue;
        }
        if (s->prompt >= limit)
            throw RowFault("prompt", "the prompt alone has " + std::to_string(s->prompt) +
                                         " tokens, which leaves no room "
                                         "for an answer in max-length " +
                                         std::to_string(limit) + " under --semantics trl; raise --max-length");
        out.tokens_cut += static_cast<int64_t>(s->ids.size() - limit);
        s->ids.resize(limit);
        out.remarks.add(s == &chosen ? Remark::kChosenCut : Remark::kRejectedCut);
    }
    out.pair = make_pair(chosen, rejected);
    return out;
}

// The authors' code tokenises the prompt and both rendered conversations, each as one text, and cuts ends beyond
// max_length. The first so many tokens of a conversation as the prompt has count as prompt, whatever they are. The
// padding token that it scores after an answer is the loss's affair (data/pack.h).
Tokenised tokenise_paper(const Rendered& row, Encoder& encoder, const EndTokens& ends, const DataOptions& options) {
    Tokenised out;
    std::vector<int32_t> prompt;
    encoder.append(row.chosen, 0, row.prompt_bytes, prompt);
    Sequence sequences[2] = {{{}, prompt.size()}, {{}, prompt.size()}};
    encoder.append(row.chosen, 0, row.chosen.text.size(), sequences[0].ids);
    encoder.append(row.rejected, 0, row.rejected.text.size(), sequences[1].ids);
    for (Sequence& s : sequences) s.prompt = std::min(s.prompt, s.ids.size());
    ensure_start(sequences[0], sequences[1], ends, out.remarks);
    const size_t limit = static_cast<size_t>(options.max_length);
    for (Sequence& s : sequences) {
        if (s.ids.size() > limit) {
            out.tokens_cut += static_cast<int64_t>(s.ids.size() - limit);
            s.ids.resize(limit);
            out.remarks.add(&s == sequences ? Remark::kChosenCut : Remark::kRejectedCut);
            out.drop |= options.truncation != Truncation::kFit;
        }
        out.drop |= s.prompt >= s.ids.size();  // nothing is scored: NaN there
    }
    out.drop |= prompt.size() >= kPaperPrompt;
    if (!out.drop) out.pair = make_pair(sequences[0], sequences[1]);
    return out;
}

// LLaMA-Factory tokenises every message apart.
Tokenised tokenise_llamafactory(const Rendered& row, Encoder& encoder, const EndTokens& ends,
                                const DataOptions& options) {
    Tokenised out;
    PreferencePair& pair = out.pair;
    size_t from = 0;
    for (const size_t cut : row.cuts) {
        encoder.append(row.chosen, from, cut, pair.prompt);
        from = cut;
    }
    encoder.append(row.chosen, from, row.prompt_bytes, pair.prompt);
    encoder.append(row.chosen, row.prompt_bytes, row.chosen.text.size(), pair.chosen);
    encoder.append(row.rejected, row.prompt_bytes, row.rejected.text.size(), pair.rejected);
    if (pair.chosen.empty() || pair.rejected.empty()) {
        out.drop = true;  // no tokens to average over: NaN there
        out.remarks.add(Remark::kDroppedEmpty);
        return out;
    }
    if (pair.prompt.empty()) {
        if (ends.start < 0)
            throw RowFault("prompt", "empty, and the tokenizer has no token that could stand in for it");
        pair.prompt = {ends.start};
        out.remarks.add(Remark::kStartToken);
    }
    const int64_t prompt = static_cast<int64_t>(pair.prompt.size());
    const int64_t answer = static_cast<int64_t>(std::max(pair.chosen.size(), pair.rejected.size()));
    if (prompt + answer <= options.max_length) return out;
    out.drop = options.truncation != Truncation::kFit;
    int64_t keep_prompt = 0, keep_answer = 0;
    proportional_lengths(prompt, answer, options.max_length, &keep_prompt, &keep_answer);
    const int64_t before = pair.tokens();
    const auto cut = [&](std::vector<int32_t>& ids, int64_t keep, Remark remark) {
        if (static_cast<int64_t>(ids.size()) <= keep) return;
        ids.resize(static_cast<size_t>(keep));
        out.remarks.add(remark);
    };
    cut(pair.prompt, keep_prompt, Remark::kPromptCut);
    cut(pair.chosen, keep_answer, Remark::kChosenCut);
    cut(pair.rejected, keep_answer, Remark::kRejectedCut);
    out.tokens_cut = before - pair.tokens();
    return out;
}

Tokenised tokenise_orpo(const Rendered& row, Encoder& encoder, int32_t end, const EndTokens& ends,
                        const DataOptions& options) {
    Tokenised out;
    Joint ids = encode_joint(row, encoder);
    Sequence chosen{std::move(ids.chosen), 0}, rejected{std::move(ids.rejected), 0};
    chosen.prompt = common(ids.prompt, chosen.ids);
    rejected.prompt = common(ids.prompt, rejected.ids);
    const size_t shared = std::min(chosen.prompt, rejected.prompt);
    if (static_cast<int64_t>(std::max(chosen.prompt, rejected.prompt) - shared) > max_tail(options.max_length)) {
        for (Sequence* s : {&chosen, &rejected}) {
            const Text& text = s == &chosen ? row.chosen : row.rejected;
            s->ids = ids.prompt;
            s->prompt = ids.prompt.size();
            encoder.append(text, row.prompt_bytes, text.text.size(), s->ids);
        }
        out.remarks.add(Remark::kSplitTokenised);
    } else if (shared < ids.prompt.size()) {
        out.remarks.add(Remark::kBoundaryMerge);
    }
    ensure_start(chosen, rejected, ends, out.remarks);
    chosen.ids.push_back(end);
    rejected.ids.push_back(end);
    out.pair = make_pair(chosen, rejected);
    const int64_t longest = static_cast<int64_t>(std::max(chosen.ids.size(), rejected.ids.size()));
    if (longest <= options.max_length) return out;
    out.drop = options.truncation != Truncation::kFit;
    if (!out.drop) out.remarks.add(cut_to_fit(out.pair, options.max_length, &out.tokens_cut));
    return out;
}

}  // namespace

EndTokens::EndTokens(const Tokenizer& tokenizer)
    : bos(tokenizer.bos()),
      eos(tokenizer.eos()),
      turn_end(tokenizer.find(kTurnEnd)),
      start(tokenizer.find("<|endoftext|>")) {
    if (start < 0) start = bos;
    if (eos < 0)
        throw Error(Exit::kBadModel,
                    "the tokenizer names no end-of-sequence token, so answers cannot end; take a "
                    "model with eos_token_id in its configuration");
}

PreferencePair make_pair(const Sequence& chosen, const Sequence& rejected) {
    ORPO_CHECK(chosen.ids.size() > chosen.prompt && rejected.ids.size() > rejected.prompt);
    const size_t limit = std::min(chosen.prompt, rejected.prompt);
    size_t shared = 0;
    while (shared < limit && chosen.ids[shared] == rejected.ids[shared]) ++shared;
    ORPO_CHECK(shared > 0);
    const auto at = static_cast<std::ptrdiff_t>(shared);
    PreferencePair pair;
    pair.prompt.assign(chosen.ids.begin(), chosen.ids.begin() + at);
    pair.chosen.assign(chosen.ids.begin() + at, chosen.ids.end());
    pair.rejected.assign(rejected.ids.begin() + at, rejected.ids.end());
    pair.chosen_tail = static_cast<int32_t>(chosen.prompt - shared);
    pair.rejected_tail = static_cast<int32_t>(rejected.prompt - shared);
    return pair;
}

int64_t max_tail(int max_length) { return std::clamp<int64_t>(max_length - (max_length + 3) / 4 - 1, 0, 4); }

Remarks cut_to_fit(PreferencePair& pair, int max_length, int64_t* tokens_cut) {
    const int64_t before = pair.tokens();
    const int64_t prompt = static_cast<int64_t>(pair.prompt.size());
    const int64_t answer = static_cast<int64_t>(std::max(pair.chosen.size(), pair.rejected.size()));
    Remarks remarks;
    if (prompt + answer <= max_length) return remarks;
    const int64_t quarter = (max_length + 3) / 4;
    const int64_t keep = std::min(prompt, std::max(quarter, max_length - answer));
    if (keep < prompt) {
        pair.prompt.erase(pair.prompt.begin(), pair.prompt.begin() + (prompt - keep));
        remarks.add(Remark::kPromptCut);
    }
    const size_t room = static_cast<size_t>(max_length - keep);
    const auto cut = [&](std::vector<int32_t>& ids, int32_t tail, Remark remark) {
        ORPO_CHECK(static_cast<int64_t>(room) > tail);
        if (ids.size() <= room) return;
        ids.resize(room);
        remarks.add(remark);
    };
    cut(pair.chosen, pair.chosen_tail, Remark::kChosenCut);
    cut(pair.rejected, pair.rejected_tail, Remark::kRejectedCut);
    *tokens_cut += before - pair.tokens();
    return remarks;
}

void proportional_lengths(int64_t prompt, int64_t answer, int64_t limit, int64_t* keep_prompt, int64_t* keep_answer) {
    int64_t most = 0;
    if (answer * 2 < limit)
        most = limit;
    else if (prompt * 2 < limit)
        most = limit - prompt;
    else
        most = static_cast<int64_t>(static_cast<double>(limit) *
                                    (static_cast<double>(answer) / static_cast<double>(prompt + answer)));
    *keep_answer = std::clamp<int64_t>(std::min(most, answer), 1, limit - 1);
    *keep_prompt = std::clamp<int64_t>(limit - *keep_answer, 1, prompt);
}

Tokenised tokenise_row(const Rendered& row, const Tokenizer& tokenizer, const EndTokens& ends,
                       const DataOptions& options) {
    const int32_t end = row.chat && ends.turn_end >= 0 ? ends.turn_end : ends.eos;
    Encoder encoder(tokenizer, options.special);
    Remarks remarks;
    note_special(row.chosen, 0, tokenizer, options.special, "prompt or chosen", remarks);
    note_special(row.rejected, row.prompt_bytes, tokenizer, options.special, "rejected", remarks);
    if (options.special == SpecialText::kError && row.remarks.has(Remark::kPrerendered))
        throw RowFault("", "the text holds <|im_start|>; pass --special parse for text that is rendered already");
    Tokenised out;
    switch (options.semantics) {
        case Semantics::kOrpo:
            out = tokenise_orpo(row, encoder, end, ends, options);
            break;
        case Semantics::kTrl:
            out = tokenise_trl(row, encoder, ends, options);
            break;
        case Semantics::kPaper:
            out = tokenise_paper(row, encoder, ends, options);
            break;
        case Semantics::kLlamaFactory:
            out = tokenise_llamafactory(row, encoder, ends, options);
            break;
    }
    out.remarks.add(remarks);
    if (encoder.dropped() > 0) out.remarks.add(Remark::kBytesDropped);
    if (out.drop && !out.remarks.has(Remark::kDroppedEmpty)) out.remarks.add(Remark::kDroppedTooLong);
    return out;
}

}  // namespace orpo
