#include "data/render.h"

#include <algorithm>

#include "base/error.h"

namespace orpo {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }
bool is_blank(std::string_view text) { return std::all_of(text.begin(), text.end(), is_space); }

// Takes end tokens, and the white space behind them, off the end. Returns what was taken.
std::string take_ends(std::string& text) {
    size_t kept = text.size();
    for (;;) {
        size_t end = kept;
        while (end > 0 && is_space(text[end - 1])) --end;
        const std::string_view rest = std::string_view(text).substr(0, end);
        if (rest.ends_with(kTurnEnd))
            kept = end - kTurnEnd.size();
        else if (rest.ends_with(kDocumentEnd))
            kept = end - kDocumentEnd.size();
        else
            break;
    }
    std::string taken = text.substr(kept);
    text.resize(kept);
    return taken;
}

// An answer begins with the prompt, as a whole: "The" is not the beginning of "Then".
bool begins_with_prompt(std::string_view answer, std::string_view prompt) {
    while (!answer.empty() && is_space(answer.front())) answer.remove_prefix(1);
    while (!prompt.empty() && is_space(prompt.front())) prompt.remove_prefix(1);
    while (!prompt.empty() && is_space(prompt.back())) prompt.remove_suffix(1);
    if (prompt.empty() || !answer.starts_with(prompt)) return false;
    const auto wordy = [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) || static_cast<unsigned char>(c) >= 0x80;
    };
    return answer.size() == prompt.size() || !wordy(answer[prompt.size()]) || !wordy(prompt.back());
}

const std::string* last_user(const std::vector<Message>& messages) {
    for (size_t i = messages.size(); i-- > 0;)
        if (messages[i].role == "user") return &messages[i].content;
    return nullptr;
}

void take_off_prompt(std::vector<Message>& answer, const std::vector<Message>& prompt, Remarks& remarks) {
    if (answer.size() > prompt.size() && common_messages(answer, prompt) == prompt.size()) {
        answer.erase(answer.begin(), answer.begin() + static_cast<std::ptrdiff_t>(prompt.size()));
        remarks.add(Remark::kPromptRemoved);
    }
}

enum class Join { kAnswer, kContinue, kTurns };

Join join_of(const Conversation& c) {
    const std::string& last = c.prompt.back().role;
    const bool chosen = c.chosen[0].role == "assistant", rejected = c.rejected[0].role == "assistant";
    if (last == "system") throw RowFault("prompt", "the prompt ends in a system message; it needs a user message");
    for (const auto* answer : {&c.chosen, &c.rejected})
        if (answer->back().role != "assistant")
            throw RowFault(answer == &c.chosen ? "chosen" : "rejected", "the answer must end in an assistant message");
    if (last == "assistant") {
        if (chosen != rejected) throw RowFault("rejected[0].role", "chosen and rejected begin with different roles");
        return chosen ? Join::kContinue : Join::kTurns;
    }
    if (!chosen || !rejected)
        throw RowFault(chosen ? "rejected[0].role" : "chosen[0].role",
                       "after a user's prompt an answer must begin with an assistant message");
    return Join::kAnswer;
}

Text full_text(ChatTemplate kind, const Conversation& c, const std::vector<Message>& answer, Join join) {
    std::vector<Message> all = c.prompt;
    size_t from = 0;
    if (join == Join::kContinue) all.back().content += answer[from++].content;
    all.insert(all.end(), answer.begin() + static_cast<std::ptrdiff_t>(from), answer.end());
    size_t header = 0;
    Text text = render_conversation(kind, all, Ending::kClosed, &header);
    text.text.resize(text.text.size() - kTurnEnd.size() - 1);  // its end token comes later, as an id
    return text;
}

Rendered render_messages(const Row& row, ChatTemplate kind, SpecialText special) {
    Rendered out;
    Conversation c = conversation_of(row, out.remarks);
    const Join join = join_of(c);
    const std::string* user = last_user(c.prompt);
    for (auto* answer : {&c.chosen, &c.rejected}) {
        std::string& last = answer->back().content;
        if (special == SpecialText::kParse && !take_ends(last).empty()) out.remarks.add(Remark::kEndRepaired);
        if (is_blank(last)) out.drop = true;
        if (answer->size() > 1) out.remarks.add(Remark::kSeveralTurns);
        if (user != nullptr && begins_with_prompt(answer->front().content, *user))
            out.remarks.add(Remark::kPromptInAnswer);
    }
    if (c.chosen == c.rejected) out.remarks.add(Remark::kEqualAnswers);
    if (out.drop) {
        out.remarks.add(Remark::kDroppedEmpty);
        return out;
    }
    if (join == Join::kContinue) out.remarks.add(Remark::kContinued);
    const Ending ending = join == Join::kAnswer     ? Ending::kGenerationPrompt
                          : join == Join::kContinue ? Ending::kContinueFinal
                                                    : Ending::kClosed;
    size_t header = 0;
    const Text prompt = render_conversation(kind, c.prompt, ending, &header);
    out.chat = true;
    out.chosen = full_text(kind, c, c.chosen, join);
    out.rejected = full_text(kind, c, c.rejected, join);
    out.prompt_bytes = prompt.text.size();
    out.split = header + kTurnStart.size();
    ORPO_CHECK(out.split <= out.prompt_bytes && out.chosen.text.starts_with(prompt.text) &&
               out.rejected.text.starts_with(prompt.text));
    return out;
}

// Strings as they are: on a model without a template, or because they hold a template's tokens already.
Rendered render_plain(const Row& row, bool prerendered, SpecialText special) {
    Rendered out;
    std::string prompt = row.prompt.text, chosen = row.chosen.text, rejected = row.rejected.text;
    if (chosen == rejected) out.remarks.add(Remark::kEqualAnswers);
    if (row.prompt.kind == Field::Kind::kNone) {
        size_t shared = common_prefix(chosen, rejected);
        if (shared == std::min(chosen.size(), rejected.size())) {
            out.remarks.add(Remark::kNeverDiverges);
            out.drop = true;
            return out;
        }
        if (shared > 0 && chosen[shared - 1] == ' ') --shared;  // the space belongs to the answers' first words
        prompt = chosen.substr(0, shared);
        chosen.erase(0, shared);
        rejected.erase(0, shared);
        out.remarks.add(Remark::kImplicitPrompt);
    } else if (begins_with_prompt(chosen, prompt) || begins_with_prompt(rejected, prompt)) {
        out.remarks.add(Remark::kPromptInAnswer);
    }
    if (!row.system.empty()) {
        prompt = row.system + "\n" + prompt;
        out.remarks.add(Remark::kSystemUsed);
    }
    if (special == SpecialText::kParse)
        for (std::string* answer : {&chosen, &rejected}) {
            const std::string taken = take_ends(*answer);
            const bool usual = prerendered && (taken == kTurnEnd || taken == std::string(kTurnEnd) + "\n");
            if (!taken.empty() && !usual) out.remarks.add(Remark::kEndRepaired);
        }
    if (is_blank(chosen) || is_blank(rejected)) {
        out.remarks.add(Remark::kDroppedEmpty);
        out.drop = true;
        return out;
    }
    if (prerendered) out.remarks.add(Remark::kPrerendered);
    out.chat = prerendered;
    out.prompt_bytes = prompt.size();
    out.chosen.text = prompt + chosen;
    out.rejected.text = prompt + rejected;
    if (!prerendered) {
        out.chosen.own = {{0, out.chosen.text.size()}};
        out.rejected.own = {{0, out.rejected.text.size()}};
    }
    return out;
}

}  // namespace

size_t common_prefix(std::string_view a, std::string_view b) {
    const size_t shorter = std::min(a.size(), b.size());
    size_t n = static_cast<size_t>(
        std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(shorter), b.begin()).first - a.begin());
    const auto inside = [](std::string_view text, size_t at) {
        return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
    };
    while (n > 0 && (inside(a, n) || inside(b, n))) --n;
    return n;
}

size_t common_messages(const std::vector<Message>& a, const std::vector<Message>& b) {
    size_t n = 0;
    while (n < std::min(a.size(), b.size()) && a[n] == b[n]) ++n;
    return n;
}

Conversation conversation_of(const Row& row, Remarks& remarks) {
    Conversation c;
    const auto answer = [](const Field& field) {
        return field.kind == Field::Kind::kText ? std::vector<Message>{{"assistant", field.text}} : field.messages;
    };
    c.chosen = answer(row.chosen);
    c.rejected = answer(row.rejected);
    const bool only_answers = c.chosen[0].role == "assistant" && c.rejected[0].role == "assistant";
    if (row.prompt.kind == Field::Kind::kMessages) {
        c.prompt = row.prompt.messages;
        take_off_prompt(c.chosen, c.prompt, remarks);
        take_off_prompt(c.rejected, c.prompt, remarks);
    } else if (row.prompt.kind == Field::Kind::kText && only_answers) {
        c.prompt = {{"user", row.prompt.text}};
    } else {
        const size_t shorter = std::min(c.chosen.size(), c.rejected.size());
        size_t shared = common_messages(c.chosen, c.rejected);
        if (shared == shorter) {  // the last shared turn must stay in both, or one answer would be nothing
            if (c.chosen.size() != c.rejected.size()) remarks.add(Remark::kNeverDiverges);
            --shared;
        }
        if (shared == 0)
            throw RowFault("chosen[0]", "chosen and rejected share no first message, so there is no common prompt");
        c.prompt.assign(c.chosen.begin(), c.chosen.begin() + static_cast<std::ptrdiff_t>(shared));
        c.chosen.erase(c.chosen.begin(), c.chosen.begin() + static_cast<std::ptrdiff_t>(shared));
        c.rejected.erase(c.rejected.begin(), c.rejected.begin() + static_cast<std::ptrdiff_t>(shared));
        if (row.prompt.kind == Field::Kind::kText) {
            const std::string* user = last_user(c.prompt);
            if (user == nullptr || *user != row.prompt.text) remarks.add(Remark::kPromptIgnored);
        }
    }
    if (!row.system.empty() && c.prompt[0].role != "system") {
        c.prompt.insert(c.prompt.begin(), {"system", row.system});
        remarks.add(Remark::kSystemUsed);
    }
    return c;
}

Text render_conversation(ChatTemplate kind, const std::vector<Message>& messages, Ending ending, size_t* last_header) {
    Text out;
    out.text = render_chat(kind, messages, ending);
    // A turn is <|im_start|>role\ncontent<|im_end|>\n; a default system turn may stand before the first.
    size_t turns = ending == Ending::kGenerationPrompt ? kTurnStart.size() + std::string_view("assistant\n").size() : 0;
    if (ending == Ending::kContinueFinal) turns -= kTurnEnd.size() + 1;
    for (const Message& m : messages)
        turns += kTurnStart.size() + m.role.size() + 1 + m.content.size() + kTurnEnd.size() + 1;
    ORPO_CHECK(turns <= out.text.size());
    size_t at = out.text.size() - turns;
    for (const Message& m : messages) {
        *last_header = at;
        at += kTurnStart.size() + m.role.size() + 1;
        if (!m.content.empty()) out.own.emplace_back(at, at + m.content.size());
        at += m.content.size() + kTurnEnd.size() + 1;
    }
    if (ending == Ending::kGenerationPrompt) *last_header = at;
    if (!messages.empty()) ORPO_CHECK(out.text.compare(*last_header, kTurnStart.size(), kTurnStart) == 0);
    return out;
}

Rendered render_row(const Row& row, ChatTemplate kind, SpecialText special) {
    const bool strings = row.chosen.kind == Field::Kind::kText && row.prompt.kind != Field::Kind::kMessages;
    if (strings) {
        const auto holds = [](const std::string& text) { return text.find(kTurnStart) != std::string::npos; };
        const bool prerendered = special != SpecialText::kLiteral &&
                                 (holds(row.prompt.text) || holds(row.chosen.text) || holds(row.rejected.text));
        if (prerendered || kind == ChatTemplate::kNone || row.prompt.kind == Field::Kind::kNone)
            return render_plain(row, prerendered, special);
    } else if (kind == ChatTemplate::kNone) {
        throw RowFault("",
                       "a conversation needs a chat template, and this model has none; pass --template chatml or take "
                       "an Instruct model");
    }
    return render_messages(row, kind, special);
}

}  // namespace orpo
