#include "model/utf8.h"

#include <simdjson.h>

namespace orpo {

size_t utf8_length(std::string_view text, size_t at, size_t* broken) {
    const auto byte = [&](size_t i) -> unsigned { return static_cast<unsigned char>(text[at + i]); };
    if (broken != nullptr) *broken = 1;
    const unsigned lead = byte(0);
    if (lead < 0x80) return 1;
    // How many bytes follow, and what the second may be: it alone rules out overlong forms, surrogates and values
    // above U+10FFFF.
    size_t following = 0;
    unsigned low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
        following = 1;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        following = 2;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        following = 3;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return 0;
    }
    for (size_t i = 1; i <= following; ++i) {
        if (at + i >= text.size() || byte(i) < low || byte(i) > high) return 0;
        if (broken != nullptr) *broken = i + 1;
        low = 0x80, high = 0xBF;
    }
    return following + 1;
}

size_t find_invalid_utf8(std::string_view text) {
    if (simdjson::validate_utf8(text.data(), text.size())) return std::string_view::npos;
    for (size_t at = 0; at < text.size();) {
        const size_t length = utf8_length(text, at);
        if (length == 0) return at;
        at += length;
    }
    return std::string_view::npos;
}

std::string repair_utf8(std::string_view bytes) {
    if (simdjson::validate_utf8(bytes.data(), bytes.size())) return std::string(bytes);
    std::string out;
    out.reserve(bytes.size() + 16);
    for (size_t at = 0; at < bytes.size();) {
        size_t broken = 0;
        if (const size_t length = utf8_length(bytes, at, &broken); length > 0) {
            out.append(bytes, at, length);
            at += length;
        } else {
            out += "\xEF\xBF\xBD";
            at += broken;
        }
    }
    return out;
}

void append_utf8(char32_t c, std::string& out) {
    const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
    }
}

}  // namespace orpo
