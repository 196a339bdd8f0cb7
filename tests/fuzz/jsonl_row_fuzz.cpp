// Any bytes as a data file, under any options: refused with words, or whole pairs that fit.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "data/dataset.h"
#include "tests/small_tokenizer.h"

using namespace orpo;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Tokenizer instruct = small_tokenizer(false), base = small_tokenizer(true);
    if (size < 2) return 0;
    const uint8_t choice = data[0];
    DataOptions options;
    options.semantics = static_cast<Semantics>(choice & 3);
    options.special = (choice & 4) != 0 ? SpecialText::kLiteral : SpecialText::kParse;
    options.chat_template = (choice & 8) != 0 ? ChatTemplate::kNone : ChatTemplate::kSmolLM2;
    options.bad_row = (choice & 16) != 0 ? BadRow::kFail : BadRow::kSkip;
    options.max_length = 2 + data[1];
    Dataset set;
    try {
        set = parse_dataset(std::string(reinterpret_cast<const char*>(data) + 2, size - 2), "fuzz.jsonl",
                            (choice & 32) != 0 ? base : instruct, options);
    } catch (const Error&) {
        return 0;
    }
    if (set.pairs.empty() || set.remarks.size() != set.pairs.size() || set.prompt_keys.size() != set.pairs.size())
        std::abort();
    for (const PreferencePair& p : set.pairs) {
        const size_t limit = static_cast<size_t>(options.max_length);
        const bool sound = p.line > 0 && !p.prompt.empty() && p.chosen_tail >= 0 && p.rejected_tail >= 0 &&
                           p.chosen.size() > static_cast<size_t>(p.chosen_tail) &&
                           p.rejected.size() > static_cast<size_t>(p.rejected_tail) &&
                           p.prompt.size() + p.chosen.size() <= limit && p.prompt.size() + p.rejected.size() <= limit;
        if (!sound) std::abort();
    }
    report_text(set.report);
    return 0;
}
