// One row of a data file, whatever its shape, as a prompt and two answers.
//
// Shapes:  {"prompt": "...", "chosen": "...", "rejected": "..."}            strings
//          {"chosen": "...", "rejected": "..."}                            strings, the prompt inside
//          {"prompt": [messages], "chosen": [messages], "rejected": ...}   conversations; an answer may be one message
//          {"chosen": [messages], "rejected": [messages]}                  conversations, the prompt inside
//          {"prompt": "...", "chosen": [messages], "rejected": ...}        a prompt string beside conversations
//          {"question" | "instruction" (+ "input"), "chosen": "...", ...}  strings; optional "system", "history"
//          {"conversations": [messages], "chosen": message, ...}           LLaMA-Factory's sharegpt form
//          {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}   OpenAI's
// Messages are {"role", "content"} or {"from", "value"}.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model/chat_template.h"

namespace simdjson::dom {
class parser;
}

namespace orpo {

// A string, a list of messages, or nothing.
struct Field {
    enum class Kind { kNone, kText, kMessages };
    Kind kind = Kind::kNone;
    std::string text;
    std::vector<Message> messages;
};

struct Row {
    Field prompt, chosen, rejected;  // the answers are never kNone
    std::string system;              // "" when there is none; only beside a string prompt
};

// Why a row cannot be used: the field ("chosen[1].content", or "" for the row) and the reason. `offset`: where in the
// row's text, when the JSON itself is broken.
struct RowFault : std::runtime_error {
    RowFault(std::string field_, const std::string& why, std::optional<size_t> offset_ = {})
        : std::runtime_error(why), field(std::move(field_)), offset(offset_) {}
    std::string field;
    std::optional<size_t> offset;
};

struct RowShape {
    std::map<std::string, std::string> columns;  // our field -> the file's column
    bool only_trl = false;                       // only prompt, chosen and rejected count, as in TRL
    bool only_paper = false;                     // only instruction, question (or prompt), chosen and rejected
};

// `text`: one JSON object, followed in memory by RowFile::kPadding readable bytes. Throws RowFault.
// Names of columns that were not used are added to `ignored`.
Row parse_row(std::string_view text, const RowShape& shape, simdjson::dom::parser& parser,
              std::set<std::string>& ignored);

}  // namespace orpo
