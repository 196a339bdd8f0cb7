// What was done to the rows of a data file, and what looked odd: counted, each with its line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace orpo {

enum class Remark : int {
    // left out
    kBadRow,          // cannot be used (skipped under BadRow::kSkip)
    kDroppedTooLong,  // longer than max_length (Truncation::kDrop), or a prompt of 256 tokens (Semantics::kPaper)
    kDroppedEmpty,    // an answer is empty or blank
    kNeverDiverges,   // no prompt given, and one answer is a prefix of the other (strings: left out)
    // cut
    kPromptCut,
    kChosenCut,
    kRejectedCut,
    // repaired or interpreted
    kBoundaryMerge,   // a token spans prompt and answer; it counts as response
    kSplitTokenised,  // merges across the boundary reach too far: prompt and answer were tokenised apart
    kEndRepaired,     // surplus end-of-turn tokens or white space after them removed
    kPromptRemoved,   // an answer's message list repeated the prompt: taken off
    kPromptIgnored,   // a string prompt beside message lists differs from their last user message
    kContinued,       // the prompt ends in an assistant turn, which the answer continues
    kStartToken,      // no prompt token: a start token stands in its place
    kPrerendered,     // holds <|im_start|> already: taken as it is
    kImplicitPrompt,  // strings without a prompt: their common beginning is taken as the prompt
    kSystemUsed,      // the system column became a system turn
    kSeveralTurns,    // an answer of more than one message
    // noticed
    kEmptyAnswer,     // kept (semantics trl): nothing but the end token
    kEqualAnswers,    // chosen and rejected are the same
    kDuplicate,       // the same pair as an earlier line
    kPromptInAnswer,  // an answer begins with the prompt's text
    kSpecialInText,   // text that reads like a special token
    kBytesDropped,    // bytes that the vocabulary has no token for
    kPromptInEval,    // the prompt is also in the evaluation set
    kCount
};
inline constexpr int kRemarks = static_cast<int>(Remark::kCount);
std::string_view remark_name(Remark remark);  // "prompt_cut": the name in --json
std::string_view remark_text(Remark remark);  // one line for people

// A set of remarks.
class Remarks {
  public:
    void add(Remark remark) { bits_ |= 1u << static_cast<int>(remark); }
    void add(Remarks other) { bits_ |= other.bits_; }
    bool has(Remark remark) const { return (bits_ >> static_cast<int>(remark)) & 1u; }
    bool empty() const { return bits_ == 0; }
    std::vector<std::string_view> names() const;
    bool operator==(const Remarks&) const = default;

  private:
    uint32_t bits_ = 0;
};

struct DataReport {
    int64_t rows = 0;                                                                       // rows that hold something
    int64_t pairs = 0;                                                                      // rows that became pairs
    std::vector<std::vector<int64_t>> lines = std::vector<std::vector<int64_t>>(kRemarks);  // per Remark, ascending
    std::vector<std::pair<int64_t, std::string>> bad_rows;  // line and why, under BadRow::kSkip
    std::vector<std::string> notes;                         // about the file: ignored columns and the like
    int64_t tokens_cut = 0;

    int64_t count(Remark remark) const { return static_cast<int64_t>(lines[static_cast<int>(remark)].size()); }
    void add(int64_t line, Remarks remarks);
    void add(int64_t line, Remark remark) { lines[static_cast<int>(remark)].push_back(line); }
};

// For people: one line a remark that occurred, with its count and first lines. "" when there is nothing to say.
std::string report_text(const DataReport& report);

}  // namespace orpo
