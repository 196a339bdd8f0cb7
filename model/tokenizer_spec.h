// What a GGUF file says about its tokenizer: the raw fields, before any check of their meaning.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orpo {

struct GgufTokenizerFields {
    std::string model;                // tokenizer.ggml.model: "gpt2"
    std::string pre;                  // tokenizer.ggml.pre: "smollm"
    std::vector<std::string> tokens;  // in the byte alphabet; index = id
    std::vector<int32_t> types;       // 1 normal, 3 control; empty when the file has none
    std::vector<std::string> merges;  // "a b", index = rank
    int bos = -1, eos = -1, unk = -1, pad = -1;
    bool add_bos = false;
    std::string chat_template;        // Jinja text, "" when there is none
    std::string file;                 // the path, for messages
};

}  // namespace orpo
