#include "data/report.h"

#include <fmt/format.h>

#include "base/error.h"

namespace orpo {
namespace {

struct Words {
    std::string_view name, text;
};

Words words(Remark remark) {
    switch (remark) {
        case Remark::kBadRow:
            return {"bad_row", "rows left out: they cannot be used"};
        case Remark::kDroppedTooLong:
            return {"dropped_too_long", "pairs left out: too long"};
        case Remark::kDroppedEmpty:
            return {"dropped_empty", "pairs left out: an answer is empty"};
        case Remark::kNeverDiverges:
            return {"never_diverges", "no prompt given, and one answer is the beginning of the other"};
        case Remark::kPromptCut:
            return {"prompt_cut", "prompts lost their start (or their end: llamafactory)"};
        case Remark::kChosenCut:
            return {"chosen_cut", "chosen answers lost their end"};
        case Remark::kRejectedCut:
            return {"rejected_cut", "rejected answers lost their end"};
        case Remark::kBoundaryMerge:
            return {"boundary_merge", "a token spans prompt and answer, and counts as answer"};
        case Remark::kSplitTokenised:
            return {"split_tokenised", "merges across prompt and answer reach too far: tokenised apart"};
        case Remark::kEndRepaired:
            return {"end_repaired", "surplus end-of-turn tokens removed from an answer's end"};
        case Remark::kPromptRemoved:
            return {"prompt_removed", "an answer's messages repeated the prompt: taken off"};
        case Remark::kPromptIgnored:
            return {"prompt_ignored", "the prompt string beside message lists differs from their last user message"};
        case Remark::kContinued:
            return {"continued", "the prompt ends in an assistant turn, which the answer continues"};
        case Remark::kStartToken:
            return {"start_token", "no prompt: a start token stands in its place"};
        case Remark::kPrerendered:
            return {"prerendered", "text that holds <|im_start|> already: taken as it is"};
        case Remark::kImplicitPrompt:
            return {"implicit_prompt", "no prompt given: the answers' common beginning, as it is, is the prompt"};
        case Remark::kSystemUsed:
            return {"system_used", "the system column became a system turn"};
        case Remark::kSeveralTurns:
            return {"several_turns", "an answer of more than one message: all of it is trained"};
        case Remark::kEmptyAnswer:
            return {"empty_answer", "an empty answer, kept: only its end token is trained"};
        case Remark::kEqualAnswers:
            return {"equal_answers", "chosen and rejected are the same"};
        case Remark::kDuplicate:
            return {"duplicate", "the same pair as an earlier line"};
        case Remark::kPromptInAnswer:
            return {"prompt_in_answer", "an answer begins with the prompt's text"};
        case Remark::kSpecialInText:
            return {"special_in_text", "text that reads like a special token"};
        case Remark::kBytesDropped:
            return {"bytes_dropped", "bytes dropped that the vocabulary has no token for"};
        case Remark::kPromptInEval:
            return {"prompt_in_eval", "the prompt is also in the evaluation set"};
        case Remark::kCount:
            break;
    }
    ORPO_CHECK(false);
    return {};
}

}  // namespace

std::string_view remark_name(Remark remark) { return words(remark).name; }
std::string_view remark_text(Remark remark) { return words(remark).text; }

std::vector<std::string_view> Remarks::names() const {
    std::vector<std::string_view> names;
    for (int i = 0; i < kRemarks; ++i)
        if (has(static_cast<Remark>(i))) names.push_back(remark_name(static_cast<Remark>(i)));
    return names;
}

void DataReport::add(int64_t line, Remarks remarks) {
    for (int i = 0; i < kRemarks; ++i)
        if (remarks.has(static_cast<Remark>(i))) lines[i].push_back(line);
}

std::string report_text(const DataReport& report) {
    constexpr size_t kShown = 5;
    std::string text;
    for (int i = 0; i < kRemarks; ++i) {
        const std::vector<int64_t>& lines = report.lines[i];
        if (lines.empty()) continue;
        text += fmt::format("{:>7}  {}: {} {}", lines.size(), remark_text(static_cast<Remark>(i)),
                            lines.size() == 1 ? "line" : "lines",
                            fmt::join(lines.begin(), lines.begin() + std::min(kShown, lines.size()), ", "));
        text += lines.size() > kShown ? fmt::format(" and {} more\n", lines.size() - kShown) : "\n";
    }
    for (size_t i = 0; i < std::min(kShown, report.bad_rows.size()); ++i) text += report.bad_rows[i].second + "\n";
    for (const std::string& note : report.notes) text += note + "\n";
    return text;
}

}  // namespace orpo
