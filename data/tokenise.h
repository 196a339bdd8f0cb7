// From the two rendered texts of a row to a PreferencePair that fits.
#pragma once

#include <cstdint>
#include <vector>

#include "data/options.h"
#include "data/pair.h"
#include "data/render.h"

namespace orpo {

// The special tokens that rows need. Error(kBadModel) when the tokenizer has none that can end an answer.
struct EndTokens {
    int32_t bos = -1;
    int32_t eos = -1;
    int32_t turn_end = -1;  // <|im_end|>
    int32_t start = -1;     // stands in for a prompt of no tokens: <|endoftext|>, else BOS

    explicit EndTokens(const Tokenizer& tokenizer);
};

struct Tokenised {
    PreferencePair pair;
    Remarks remarks;
    bool drop = false;  // `remarks` says why
    int64_t tokens_cut = 0;
};

// options.max_length bounds prompt + each answer. Throws RowFault where the options say that the row is bad.
Tokenised tokenise_row(const Rendered& row, const Tokenizer& tokenizer, const EndTokens& ends,
                       const DataOptions& options);

// ---- the parts, for tests ----

// One answer's whole sequence; ids[0, prompt) is seen as prompt, the rest is scored as response.
struct Sequence {
    std::vector<int32_t> ids;
    size_t prompt = 0;
};
// The shared prompt is the common beginning of the two prompts; what is left of each becomes its tail.
PreferencePair make_pair(const Sequence& chosen, const Sequence& rejected);

// Truncation::kFit of Semantics::kOrpo, for any max_length >= 2 and tails of at most max_tail(max_length): the prompt
// loses its start but keeps a quarter of max_length (rounded up), then answers lose their end.
Remarks cut_to_fit(PreferencePair& pair, int max_length, int64_t* tokens_cut);
int64_t max_tail(int max_length);
// LLaMA-Factory's split of `limit` between a prompt and an answer of these lengths; both keep at least one token.
void proportional_lengths(int64_t prompt, int64_t answer, int64_t limit, int64_t* keep_prompt, int64_t* keep_answer);

}  // namespace orpo
