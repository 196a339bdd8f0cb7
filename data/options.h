// The words that choose how rows become token ids. They are written into every run.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace orpo {

// Whose text handling:
//  - kOrpo: right text, i.e. chat turns where the model knows them, one end-of-turn token an answer, answers stay
//  alive;
//  - kTrl: TRL 1.16 to the last token;
//  - kPaper: the authors' code (xfactlab/orpo), which leaves out prompts of 256 tokens or more, keeps what the template
//    writes behind an answer, and cuts ends;
//  - kLlamaFactory: LLaMA-Factory with no template named: every message tokenised apart, what the template writes
//  behind
//    an answer kept, prompt and answer cut in proportion, the prompt keeping its start.
enum class Semantics { kOrpo, kTrl, kPaper, kLlamaFactory };
// What happens to a pair that is longer than max_length: cut to fit, left out, or an Error(kBadData).
enum class Truncation { kFit, kDrop, kError };
// A row that cannot be used: an Error(kBadData), or skipped and counted.
enum class BadRow { kFail, kSkip };

// "orpo", "trl", "paper", "llamafactory" and so on; parse_* return false for any other word.
std::string_view semantics_name(Semantics value);
std::string_view truncation_name(Truncation value);
std::string_view bad_row_name(BadRow value);
std::string_view special_name(SpecialText value);
bool parse_semantics(std::string_view word, Semantics* out);
bool parse_truncation(std::string_view word, Truncation* out);
bool parse_bad_row(std::string_view word, BadRow* out);
bool parse_special(std::string_view word, SpecialText* out);

// "prompt=question,chosen=good" -> {{"prompt","question"},{"chosen","good"}}. Fields: prompt, chosen, rejected, system.
// Anything else is an Error(kUsage).
std::map<std::string, std::string> parse_map(std::string_view text);
// --template auto|chatml|plain: the model's own, ChatML without a default system turn, none. Error(kUsage) otherwise.
// `jinja`: the model's template text, "" when it has none; `model_path` for messages.
ChatTemplate choose_template(std::string_view word, std::string_view jinja, const std::string& model_path);

struct DataOptions {
    Semantics semantics = Semantics::kOrpo;
    Truncation truncation = Truncation::kFit;
    BadRow bad_row = BadRow::kFail;
    SpecialText special = SpecialText::kParse;
    ChatTemplate chat_template = ChatTemplate::kNone;
    int max_length = 1024;                       // tokens of prompt + one answer, at least 2
    std::map<std::string, std::string> columns;  // --map: our field -> the file's column
    int threads = 1;                             // the result does not depend on it
};

}  // namespace orpo
