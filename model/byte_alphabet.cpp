// GPT-2's byte alphabet. Source: bytes_to_unicode of Radford et al. 2019 (GPT-2, encoder.py): '!'..'~', U+00A1..U+00AC
// and U+00AE..U+00FF stand for themselves; the other 68 bytes become U+0100, U+0101, ... in order.
#include <array>

#include "model/tokenizer_definition.h"
#include "model/utf8.h"

namespace orpo {
namespace {

constexpr bool is_printable(int byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> kChars = [] {
    std::array<char32_t, 256> chars{};
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) chars[byte] = is_printable(byte) ? static_cast<char32_t>(byte) : next++;
    return chars;
}();

constexpr std::array<int16_t, 0x144> kBytes = [] {
    std::array<int16_t, 0x144> bytes{};
    for (auto& byte : bytes) byte = -1;
    for (int byte = 0; byte < 256; ++byte) bytes[kChars[byte]] = static_cast<int16_t>(byte);
    return bytes;
}();

}  // namespace

char32_t byte_to_char(uint8_t byte) { return kChars[byte]; }

bool alphabet_to_bytes(std::string_view text, std::string* bytes) {
    bytes->clear();
    for (size_t at = 0; at < text.size();) {
        size_t length = 0;
        const char32_t c = decode_utf8(text, at, &length);
        if (c >= kBytes.size() || kBytes[c] < 0) return false;
        bytes->push_back(static_cast<char>(kBytes[c]));
        at += length;
    }
    return true;
}

}  // namespace orpo
