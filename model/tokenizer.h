// Byte-level BPE as SmolLM2 has it: added tokens, digits one by one, the GPT-2 pattern, bytes, merges by rank.
// Equal to Hugging Face `tokenizers` for Sequence[Digits(individual), ByteLevel(no prefix space)] + BPE.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/weights.h"

namespace orpo {

// What "<|im_end|>" inside a text means: the special token, the characters, or an Error(kBadData).
enum class SpecialText { kParse, kLiteral, kError };

struct TokenizerDefinition;  // model/tokenizer_definition.h

class Tokenizer {
  public:
    // Error(kBadModel) that names the file, what is unsupported and what is supported.
    static Tokenizer load(const TokenizerSource& source);
    static Tokenizer build(TokenizerDefinition definition);

    // text must be valid UTF-8 (Error(kBadData) with the byte offset otherwise). Adds no BOS or EOS. O(n log n).
    // Bytes that have no token are dropped, as the reference does; *dropped counts them when it is not null.
    std::vector<int32_t> encode(std::string_view text, SpecialText special = SpecialText::kParse,
                                int64_t* dropped = nullptr) const;
    // Lossy UTF-8 (U+FFFD for broken sequences). Ids out of range: Error(kBadData).
    std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
    // The raw bytes of one token; a streaming printer holds back incomplete UTF-8 itself.
    std::string token_bytes(int32_t id) const;
    bool is_special(int32_t id) const;
    int32_t find(std::string_view special_token) const;  // -1: no such special token
    // How many special tokens' literals the text holds.
    int64_t count_special(std::string_view text) const;

    int vocabulary() const;
    int bos() const;  // -1: none
    int eos() const;
    int pad() const;
    // SHA-256 over vocabulary, merges and special tokens.
    std::string fingerprint() const;
    static std::string unicode_version();

    // The files of a Hugging Face model directory. `tokenizers` and transformers load them with equal behaviour.
    std::string tokenizer_json() const;
    std::string tokenizer_config_json(std::string_view chat_template, int max_positions) const;
    // How many of the bytes that valid UTF-8 can hold have no token and are dropped, as hexadecimal: "0x0B 0x0E".
    std::string bytes_without_token() const;

  private:
    struct Impl;
    explicit Tokenizer(std::shared_ptr<const Impl> impl);
    std::shared_ptr<const Impl> impl_;
};

}  // namespace orpo
