// Cuts text into the pieces that BPE works on: GPT-2's pattern, optionally with every numeric character on its own.
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// With isolated digits the text is cut at numeric characters first and the pattern runs on each part, so that its
// lookahead sees the end of the part, not the digit behind it: "a  1" is "a", "  ", "1".
// Source: Radford et al. 2019 (GPT-2, encoder.py); Digits and ByteLevel of Hugging Face tokenizers.
#pragma once

#include <cstdint>
#include <string_view>

#include "model/utf8.h"

namespace orpo {

// kDigitsOnly: numeric for the digit splitter, whose Unicode is newer, and no number for the pattern.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kDigitsOnly, kSpace };

class PreTokenizer {
  public:
    explicit PreTokenizer(bool isolate_digits);

    CharClass char_class(char32_t code_point) const { return static_cast<CharClass>(classes_[code_point]); }

    // text: valid UTF-8. Calls piece(std::string_view) for every piece, in order; together they are the text.
    template <class Piece>
    void split(std::string_view text, Piece&& piece) const {
        for (size_t at = 0; at < text.size();) {
            const size_t end = next_end(text, at);
            piece(text.substr(at, end - at));
            at = end;
        }
    }

  private:
    size_t next_end(std::string_view text, size_t at) const;
    CharClass class_at(std::string_view text, size_t at, size_t* length) const {
        const auto lead = static_cast<unsigned char>(text[at]);
        if (lead < 0x80) return *length = 1, static_cast<CharClass>(classes_[lead]);
        return char_class(decode_utf8(text, at, length));
    }

    bool isolate_digits_;
    const uint8_t* classes_;  // (0x110000)
};

}  // namespace orpo
