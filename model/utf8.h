// UTF-8: checking, stepping, and the lossy way out. Well-formed sequences: The Unicode Standard, table 3-7.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace orpo {

// The length of the well-formed sequence at text[at], or 0. `broken`, when not null, gets the length of the longest
// prefix of a well-formed sequence there (at least 1): what one U+FFFD stands for when text is repaired.
size_t utf8_length(std::string_view text, size_t at, size_t* broken = nullptr);

// Offset of the first byte that does not begin a well-formed sequence; npos when there is none.
size_t find_invalid_utf8(std::string_view text);

// Every maximal broken part becomes one U+FFFD, as Rust's and Python's decoders do it.
std::string repair_utf8(std::string_view bytes);

// Appends the code point's bytes.
void append_utf8(char32_t code_point, std::string& out);

// The code point at text[at] of valid UTF-8; *length is set to its bytes.
inline char32_t decode_utf8(std::string_view text, size_t at, size_t* length) {
    const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
    const char32_t lead = byte(0);
    if (lead < 0x80) return *length = 1, lead;
    if (lead < 0xE0) return *length = 2, (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    if (lead < 0xF0) return *length = 3, (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    return *length = 4, (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

}  // namespace orpo
