// A tokenizer small enough to be written down here.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/utf8.h"

namespace orpo {

inline TokenizerSource source_of(std::shared_ptr<const GgufTokenizerFields> fields) {
    TokenizerSource source;
    source.gguf = std::move(fields);
    return source;
}

// Every byte, SmolLM2's three turn tokens, and merges enough for words to cross a boundary. `base`: as the base models
// have it (BOS and EOS <|endoftext|>), else as Instruct ones (<|im_start|>, <|im_end|>).
inline Tokenizer small_tokenizer(bool base = false) {
    auto fields = std::make_shared<GgufTokenizerFields>();
    fields->model = "gpt2";
    fields->pre = "smollm";
    fields->tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    fields->types = {3, 3, 3};
    char32_t next = 256;
    std::vector<std::string> letter(256);
    for (int b = 0; b < 256; ++b) {
        const bool plain = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        append_utf8(plain ? static_cast<char32_t>(b) : next++, letter[b]);
        fields->tokens.push_back(letter[b]);
    }
    for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{{letter['\n'], letter['\n']},
                                                                               {"a", "b"},
                                                                               {"ab", "c"},
                                                                               {letter[' '], "a"},
                                                                               {letter[' '], letter[' ']},
                                                                               {"t", "h"},
                                                                               {"th", "e"},
                                                                               {letter[' '], "the"}}) {
        fields->merges.push_back(a + " " + b);
        fields->tokens.push_back(a + b);
    }
    fields->types.resize(fields->tokens.size(), 1);
    fields->bos = base ? 0 : 1;
    fields->eos = fields->pad = base ? 0 : 2;
    return Tokenizer::load(source_of(fields));
}

}  // namespace orpo
