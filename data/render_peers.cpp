// What the paper's code and LLaMA-Factory make of a row.
#include "base/error.h"
#include "data/render.h"

namespace orpo {
namespace {

// Text that grows piece by piece, with the user's own bytes marked.
struct Growing {
    Text text;
    void add(std::string_view piece) { text.text += piece; }
    void own(std::string_view piece) {
        if (piece.empty()) return;
        text.own.emplace_back(text.text.size(), text.text.size() + piece.size());
        text.text += piece;
    }
};

// The turns that the authors' code writes for a tokenizer without a template (their main.py).
void add_paper_turns(Growing& out, const std::vector<Message>& messages, const std::string& end) {
    for (const Message& m : messages) {
        if (m.role != "user" && m.role != "system" && m.role != "assistant") continue;
        out.add("<|" + m.role + "|>\n");
        out.own(m.content);
        out.add(end + "\n");
    }
}

Text paper_text(ChatTemplate kind, const std::vector<Message>& messages, bool open, const std::string& end) {
    if (kind != ChatTemplate::kNone) {
        size_t header = 0;
        return render_conversation(kind, messages, open ? Ending::kGenerationPrompt : Ending::kClosed, &header);
    }
    Growing out;
    add_paper_turns(out, messages, end);
    if (open && !messages.empty()) out.add("<|assistant|>\n");
    return out.text;
}

std::vector<Message> appended(std::vector<Message> messages, const std::vector<Message>& more) {
    messages.insert(messages.end(), more.begin(), more.end());
    return messages;
}

bool blank_answer(const std::vector<Message>& answer) { return answer.back().content.empty(); }

constexpr const char* kNoPrompt =
    "missing: only --semantics orpo and trl read rows whose prompt is the answers' common beginning";

// The turn that the template writes before a first message that is no system message.
std::string default_system_turn(ChatTemplate kind) {
    const Message user{"user", ""};
    const std::string with = render_chat(kind, {&user, 1}, Ending::kClosed);
    return with.substr(0, with.rfind(kTurnStart));
}

}  // namespace

Rendered render_row_paper(const Row& row, ChatTemplate kind, const std::string& end) {
    Rendered out;
    std::vector<Message> chosen, rejected;
    if (row.chosen.kind == Field::Kind::kText) {
        if (row.prompt.kind == Field::Kind::kNone) throw RowFault("prompt", kNoPrompt);
        const std::vector<Message> prompt = row.prompt.kind == Field::Kind::kMessages
                                                ? row.prompt.messages
                                                : std::vector<Message>{{"user", row.prompt.text}};
        chosen = appended(prompt, {{"assistant", row.chosen.text}});
        rejected = appended(prompt, {{"assistant", row.rejected.text}});
    } else if (row.prompt.kind == Field::Kind::kMessages) {
        chosen = appended(row.prompt.messages, row.chosen.messages);
        rejected = appended(row.prompt.messages, row.rejected.messages);
    } else {
        chosen = row.chosen.messages;
        rejected = row.rejected.messages;
        if (chosen.size() == 1 && row.prompt.kind == Field::Kind::kText) {
            chosen.insert(chosen.begin(), {"user", row.prompt.text});
            rejected.insert(rejected.begin(), {"user", row.prompt.text});
        } else if (row.prompt.kind == Field::Kind::kText && chosen.size() > 1 &&
                   chosen[chosen.size() - 2].content != row.prompt.text) {
            out.remarks.add(Remark::kPromptIgnored);
        }
    }
    if (chosen.size() < 2) throw RowFault("chosen", "holds no message before the answer, so there is no prompt");
    if (chosen.back().role != "assistant" || rejected.back().role != "assistant")
        throw RowFault(chosen.back().role != "assistant" ? "chosen" : "rejected",
                       "the answer must end in an assistant message");
    if (blank_answer(chosen) || blank_answer(rejected)) out.remarks.add(Remark::kEmptyAnswer);
    if (chosen == rejected) out.remarks.add(Remark::kEqualAnswers);
    out.chosen = paper_text(kind, chosen, false, end);
    out.rejected = paper_text(kind, rejected, false, end);
    chosen.pop_back();
    const Text prompt = paper_text(kind, chosen, true, end);
    ORPO_CHECK(out.chosen.text.starts_with(prompt.text));
    out.prompt_bytes = prompt.text.size();
    out.chat = kind != ChatTemplate::kNone;
    return out;
}

Rendered render_row_llamafactory(const Row& row, ChatTemplate kind) {
    Rendered out;
    if (row.chosen.kind == Field::Kind::kText && row.prompt.kind == Field::Kind::kNone)
        throw RowFault("prompt", kNoPrompt);
    const Conversation c = conversation_of(row, out.remarks);
    for (const auto* answer : {&c.chosen, &c.rejected})
        if (answer->size() != 1 || answer->front().role != "assistant")
            throw RowFault(
                answer == &c.chosen ? "chosen" : "rejected",
                "must be one assistant message, as LLaMA-Factory reads it; --semantics orpo reads answers of "
                "several turns");
    const bool system = c.prompt[0].role == "system";
    const size_t first = system ? 1 : 0;
    if ((c.prompt.size() - first) % 2 == 0)
        throw RowFault("prompt",
                       "must hold an odd number of turns, the last one the user's, as LLaMA-Factory reads it");
    for (size_t i = first; i < c.prompt.size(); ++i)
        if ((c.prompt[i].role == "assistant") != ((i - first) % 2 == 1) || c.prompt[i].role == "system")
            throw RowFault("prompt", "user and assistant must take turns, as LLaMA-Factory reads it");

    out.chat = kind != ChatTemplate::kNone;
    const std::string end = out.chat ? std::string(kTurnEnd) + "\n" : "";
    Growing text;
    if (system && !c.prompt[0].content.empty()) {  // an empty one is none there
        if (out.chat) text.add(std::string(kTurnStart) + "system\n");
        text.own(c.prompt[0].content);
        text.add(end);
    } else if (out.chat) {
        text.add(default_system_turn(kind));
    }
    for (size_t i = first; i < c.prompt.size(); ++i) {
        out.cuts.push_back(text.text.text.size());
        const bool asks = (i - first) % 2 == 0;
        if (asks && out.chat) text.add(std::string(kTurnStart) + "user\n");
        text.own(c.prompt[i].content);
        text.add(end);
        if (asks && out.chat) text.add(std::string(kTurnStart) + "assistant\n");
    }
    out.prompt_bytes = text.text.text.size();
    Growing chosen = text, rejected = std::move(text);
    for (const auto& [side, answer] : {std::pair{&chosen, &c.chosen}, std::pair{&rejected, &c.rejected}}) {
        side->own(answer->front().content);
        side->add(end);
    }
    if (blank_answer(c.chosen) || blank_answer(c.rejected)) out.remarks.add(Remark::kEmptyAnswer);
    if (c.chosen == c.rejected) out.remarks.add(Remark::kEqualAnswers);
    out.chosen = std::move(chosen.text);
    out.rejected = std::move(rejected.text);
    return out;
}

}  // namespace orpo
