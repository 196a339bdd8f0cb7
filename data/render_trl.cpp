// What TRL 1.16 makes of a row (trl/data_utils.py), its quirks included, wherever its output is defined. Where it is
// not (TRL raises, or returns something that depends on chance), the row is bad.
#include <algorithm>

#include "data/render.h"

namespace orpo {
namespace {

struct Strings {
    std::string prompt, chosen, rejected;
};

// extract_prompt on strings. Kept quirks: when one is the beginning of the other (or they are equal) the last shared
// character stays with the answers; when they differ at once, the space that is looked for is chosen's last character.
Strings extract_strings(const std::string& chosen, const std::string& rejected) {
    if (chosen.empty() || rejected.empty())
        throw RowFault(chosen.empty() ? "chosen" : "rejected", "empty, and there is no prompt");
    const size_t shared = common_prefix(chosen, rejected);
    const auto character_before = [](const std::string& text, size_t at) {
        --at;
        while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
        return at;
    };
    if (shared == std::min(chosen.size(), rejected.size())) {
        const size_t at = character_before(chosen, shared);
        return {chosen.substr(0, at), chosen.substr(at), rejected.substr(at)};
    }
    if (shared == 0 && chosen.back() == ' ') {
        const size_t from = character_before(rejected, rejected.size());
        return {chosen.substr(0, chosen.size() - 1), " ", rejected.substr(from)};
    }
    const size_t at = shared > 0 && chosen[shared - 1] == ' ' ? shared - 1 : shared;
    return {chosen.substr(0, at), chosen.substr(at), rejected.substr(at)};
}

Text joined(const std::vector<Message>& prompt, const std::vector<Message>& answer, ChatTemplate kind) {
    std::vector<Message> all = prompt;
    all.insert(all.end(), answer.begin(), answer.end());
    size_t header = 0;
    return render_conversation(kind, all, Ending::kClosed, &header);
}

// apply_chat_template: the three rendered texts, the prompt being what they share.
Rendered apply_template(const std::vector<Message>& prompt, const std::vector<Message>& chosen,
                        const std::vector<Message>& rejected, ChatTemplate kind) {
    if (kind == ChatTemplate::kNone)
        throw RowFault("",
                       "a conversation needs a chat template, and this model has none; pass --template chatml or take "
                       "an Instruct model");
    const std::string& last = prompt.back().role;
    if (last == "system") throw RowFault("prompt", "the prompt ends in a system message; it needs a user message");
    size_t header = 0;
    const Text open = render_conversation(
        kind, prompt, last == "assistant" ? Ending::kContinueFinal : Ending::kGenerationPrompt, &header);
    Rendered out;
    out.chosen = joined(prompt, chosen, kind);
    out.rejected = joined(prompt, rejected, kind);
    const std::string_view shared = std::string_view(open.text).substr(0, common_prefix(open.text, out.chosen.text));
    out.prompt_bytes = common_prefix(shared, out.rejected.text);
    out.split = header + kTurnStart.size() <= out.prompt_bytes ? header + kTurnStart.size() : 0;
    out.chat = true;
    return out;
}

// The answers' strings may begin with other characters than the prompt's end promises (see extract_strings), so the two
// texts are built apart.
Rendered as_rendered(const Strings& s) {
    Rendered out;
    out.prompt_bytes = s.prompt.size();
    out.chosen.text = s.prompt + s.chosen;
    out.rejected.text = s.prompt + s.rejected;
    out.chosen.own = {{0, out.chosen.text.size()}};
    out.rejected.own = {{0, out.rejected.text.size()}};
    return out;
}

}  // namespace

Rendered render_row_trl(const Row& row, ChatTemplate kind) {
    Remarks remarks;
    Rendered out;
    bool empty = false, equal = false;
    if (row.chosen.kind == Field::Kind::kText) {
        Strings s{row.prompt.text, row.chosen.text, row.rejected.text};
        equal = s.chosen == s.rejected;
        if (row.prompt.kind != Field::Kind::kText) {
            s = extract_strings(row.chosen.text, row.rejected.text);
            remarks.add(row.prompt.kind == Field::Kind::kMessages ? Remark::kPromptIgnored : Remark::kImplicitPrompt);
        }
        empty = s.chosen.empty() || s.rejected.empty();
        out = as_rendered(s);
    } else {
        std::vector<Message> prompt = row.prompt.messages, chosen = row.chosen.messages,
                             rejected = row.rejected.messages;
        equal = chosen == rejected;
        if (row.prompt.kind != Field::Kind::kMessages) {
            size_t shared = common_messages(chosen, rejected);
            if (shared == std::min(chosen.size(), rejected.size())) {
                --shared;
                remarks.add(Remark::kNeverDiverges);
            }
            if (shared == 0)
                throw RowFault("chosen[0]", "chosen and rejected share no first message, so there is no common prompt");
            const auto cut = static_cast<std::ptrdiff_t>(shared);
            prompt.assign(chosen.begin(), chosen.begin() + cut);
            chosen.erase(chosen.begin(), chosen.begin() + cut);
            rejected.erase(rejected.begin(), rejected.begin() + cut);
            if (row.prompt.kind == Field::Kind::kText &&
                (prompt.back().role != "user" || prompt.back().content != row.prompt.text))
                remarks.add(Remark::kPromptIgnored);
        }
        empty = chosen.back().content.empty() || rejected.back().content.empty();
        out = apply_template(prompt, chosen, rejected, kind);
    }
    if (empty) remarks.add(Remark::kEmptyAnswer);
    if (equal) remarks.add(Remark::kEqualAnswers);
    out.remarks.add(remarks);
    return out;
}

}  // namespace orpo
