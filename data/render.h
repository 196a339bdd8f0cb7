// From a row to the two texts that are tokenised: prompt + chosen and prompt + rejected.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "data/options.h"
#include "data/report.h"
#include "data/row.h"

namespace orpo {

// A text, and which bytes of it the user wrote: the rest is the template's, whose special tokens are always meant.
struct Text {
    std::string text;
    std::vector<std::pair<size_t, size_t>> own;  // [begin, end), ascending, not touching each other's bytes
};

struct Rendered {
    Text chosen, rejected;     // prompt + answer, the answer without its end token; both begin with the same prompt
    size_t prompt_bytes = 0;   // length of that prompt
    size_t split = 0;          // text[0, split) ends in a special token of the template, so it may be tokenised apart
    bool chat = false;         // the answer ends its turn with <|im_end|>; otherwise with the model's end token
    std::vector<size_t> cuts;  // places in the prompt where it is tokenised apart (LLaMA-Factory), ascending
    bool drop = false;         // no pair: `remarks` says why
    Remarks remarks;
};

// Throws RowFault. `special` decides whether <|im_start|> in a string means chat text that is rendered already.
Rendered render_row(const Row& row, ChatTemplate kind, SpecialText special);

// TRL 1.16's way to the same two texts: maybe_extract_prompt and maybe_apply_chat_template of trl/data_utils.py.
// Answers keep what the template writes behind them.
Rendered render_row_trl(const Row& row, ChatTemplate kind);

// What the authors' code makes of a row (main.py of xfactlab/orpo): whole conversations, ends included; the prompt is
// chosen's without its last message. `end`: the end token's text, for the turns that it writes on models without a
// template.
Rendered render_row_paper(const Row& row, ChatTemplate kind, const std::string& end);

// What LLaMA-Factory makes of a row when no template is named there: the model's own chat template, or on a model
// without one the bare texts. Ends included.
Rendered render_row_llamafactory(const Row& row, ChatTemplate kind);

// The messages of prompt and answers, from whatever mixture of strings and lists the row has.
struct Conversation {
    std::vector<Message> prompt, chosen, rejected;
};
Conversation conversation_of(const Row& row, Remarks& remarks);

// A conversation, with the bytes of the messages' contents marked as the user's. `last_header`: where the header of the
// last turn (the open one, if there is one) begins.
Text render_conversation(ChatTemplate kind, const std::vector<Message>& messages, Ending ending, size_t* last_header);

// Bytes that two texts share at their beginning, never ending inside a character.
size_t common_prefix(std::string_view a, std::string_view b);
// Messages that two lists share at their beginning.
size_t common_messages(const std::vector<Message>& a, const std::vector<Message>& b);

inline constexpr std::string_view kTurnStart = "<|im_start|>";
inline constexpr std::string_view kTurnEnd = "<|im_end|>";
inline constexpr std::string_view kDocumentEnd = "<|endoftext|>";

}  // namespace orpo
