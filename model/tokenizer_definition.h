// What a tokenizer is made of, from whichever file it came, before tables are built from it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/tokenizer_spec.h"

namespace orpo {

struct TokenizerDefinition {
    std::string file;                                         // for messages
    std::vector<std::string> tokens;                          // the BPE's vocabulary in the byte alphabet, index = id
    std::vector<std::pair<std::string, std::string>> merges;  // index = rank
    // Found in text before anything else.
    struct Added {
        int32_t id = -1;
        std::string content;
        bool special = true;
        bool normalized = false;  // looked for only where no token without it was found
    };
    std::vector<Added> added;    // by id; ids at or above tokens.size() go on from there
    bool isolate_digits = true;  // Digits before ByteLevel, as SmolLM2; false: GPT-2
    bool ignore_merges = false;  // a piece that is a token is taken as it is
    int32_t bos = -1, eos = -1, unk = -1, pad = -1;
};

// Readers. Error(kBadModel) for whatever is not exactly this kind of tokenizer.
TokenizerDefinition definition_from_gguf(const GgufTokenizerFields& fields, const std::string& file);
// The texts of tokenizer.json, and of tokenizer_config.json and special_tokens_map.json or "" where there is none.
struct TokenizerFiles {
    std::string directory, tokenizer, config, special_tokens;
};
TokenizerDefinition definition_from_json(const TokenizerFiles& files);
TokenizerDefinition definition_from_directory(const std::string& directory);

// Writers, of what definition_from_json reads.
std::string tokenizer_json(const TokenizerDefinition& definition);
std::string tokenizer_config_json(const TokenizerDefinition& definition, std::string_view chat_template,
                                  int max_positions);

// GPT-2's byte alphabet: every byte as a printable character.
char32_t byte_to_char(uint8_t byte);
// Token text in the alphabet -> bytes. False when a character is none of the alphabet.
bool alphabet_to_bytes(std::string_view text, std::string* bytes);

}  // namespace orpo
