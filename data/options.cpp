#include "data/options.h"

#include <array>
#include <utility>

#include "base/error.h"

namespace orpo {
namespace {

template <class Enum, size_t N>
using Words = std::array<std::pair<std::string_view, Enum>, N>;

constexpr Words<Semantics, 4> kSemantics = {{{"orpo", Semantics::kOrpo},
                                             {"trl", Semantics::kTrl},
                                             {"paper", Semantics::kPaper},
                                             {"llamafactory", Semantics::kLlamaFactory}}};
constexpr Words<Truncation, 3> kTruncations = {
    {{"fit", Truncation::kFit}, {"drop", Truncation::kDrop}, {"error", Truncation::kError}}};
constexpr Words<BadRow, 2> kBadRows = {{{"fail", BadRow::kFail}, {"skip", BadRow::kSkip}}};
constexpr Words<SpecialText, 3> kSpecials = {
    {{"parse", SpecialText::kParse}, {"literal", SpecialText::kLiteral}, {"error", SpecialText::kError}}};

template <class Enum, size_t N>
std::string_view name_of(const Words<Enum, N>& words, Enum value) {
    for (const auto& [word, meaning] : words)
        if (meaning == value) return word;
    ORPO_CHECK(false);
    return "";
}

template <class Enum, size_t N>
bool parse_word(const Words<Enum, N>& words, std::string_view text, Enum* out) {
    for (const auto& [word, meaning] : words)
        if (word == text) {
            *out = meaning;
            return true;
        }
    return false;
}

}  // namespace

std::string_view semantics_name(Semantics value) { return name_of(kSemantics, value); }
std::string_view truncation_name(Truncation value) { return name_of(kTruncations, value); }
std::string_view bad_row_name(BadRow value) { return name_of(kBadRows, value); }
std::string_view special_name(SpecialText value) { return name_of(kSpecials, value); }
bool parse_semantics(std::string_view word, Semantics* out) { return parse_word(kSemantics, word, out); }
bool parse_truncation(std::string_view word, Truncation* out) { return parse_word(kTruncations, word, out); }
bool parse_bad_row(std::string_view word, BadRow* out) { return parse_word(kBadRows, word, out); }
bool parse_special(std::string_view word, SpecialText* out) { return parse_word(kSpecials, word, out); }

std::map<std::string, std::string> parse_map(std::string_view text) {
    std::map<std::string, std::string> columns;
    while (!text.empty()) {
        const std::string_view entry = text.substr(0, text.find(','));
        text.remove_prefix(std::min(text.size(), entry.size() + 1));
        const size_t equals = entry.find('=');
        const std::string field(entry.substr(0, equals));
        const std::string column(equals == std::string_view::npos ? "" : entry.substr(equals + 1));
        if (column.empty() || (field != "prompt" && field != "chosen" && field != "rejected" && field != "system"))
            throw Error(Exit::kUsage, "--map: '" + std::string(entry) +
                                          "' is not FIELD=COLUMN with FIELD one of prompt, chosen, rejected, system; "
                                          "for example --map prompt=question,chosen=good,rejected=bad");
        if (!columns.emplace(field, column).second)
            throw Error(Exit::kUsage, "--map: '" + field + "' is given twice; name one column for it");
    }
    return columns;
}

ChatTemplate choose_template(std::string_view word, std::string_view jinja, const std::string& model_path) {
    if (word == "auto") return recognise_template(jinja, model_path);
    if (word == "chatml") return ChatTemplate::kChatml;
    if (word == "plain") return ChatTemplate::kNone;
    throw Error(Exit::kUsage, "--template: '" + std::string(word) + "' is none of auto, chatml, plain");
}

}  // namespace orpo
