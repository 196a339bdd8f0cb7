#include "data/json_fault.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

namespace orpo {
namespace {

// Remembers the first error; keeps nothing of the document.
class FaultFinder : public nlohmann::json_sax<nlohmann::json> {
  public:
    JsonFault fault;
    bool found = false;

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(int64_t) override { return true; }
    bool number_unsigned(uint64_t) override { return true; }
    bool number_float(double, const std::string&) override { return true; }
    bool string(std::string&) override { return true; }
    bool binary(nlohmann::json::binary_t&) override { return true; }
    bool start_object(std::size_t) override { return true; }
    bool key(std::string&) override { return true; }
    bool end_object() override { return true; }
    bool start_array(std::size_t) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
        found = true;
        fault.offset = position == 0 ? 0 : position - 1;
        std::string why = e.what();
        // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while parsing value - reason"
        for (const std::string_view before : {": ", " - "}) {
            const size_t at = why.find(before);
            if (at != std::string::npos) why.erase(0, at + before.size());
        }
        fault.why = why;
        return false;
    }
};

}  // namespace

size_t first_invalid_utf8(std::string_view text) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    size_t i = 0;
    const size_t n = text.size();
    while (i < n) {
        const unsigned char lead = bytes[i];
        if (lead < 0x80) {
            ++i;
            continue;
        }
        const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
        if (lead < 0xC2 || lead > 0xF4 || i + length > n) return i;
        for (size_t k = 1; k < length; ++k)
            if ((bytes[i + k] & 0xC0) != 0x80) return i;
        const unsigned char second = bytes[i + 1];
        if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
            (lead == 0xF4 && second > 0x8F))
            return i;
        i += length;
    }
    return std::string_view::npos;
}

size_t column_of(std::string_view text, size_t offset) {
    offset = std::min(offset, text.size());
    const size_t newline = offset == 0 ? std::string_view::npos : text.rfind('\n', offset - 1);
    const size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
    return 1 + static_cast<size_t>(std::count_if(text.begin() + begin, text.begin() + offset, [](char c) {
               return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
           }));
}

JsonFault find_json_fault(std::string_view text, std::string_view fallback) {
    if (const size_t bad = first_invalid_utf8(text); bad != std::string_view::npos)
        return {bad, "invalid UTF-8; save the file as UTF-8"};
    FaultFinder finder;
    try {
        nlohmann::json::sax_parse(text.begin(), text.end(), &finder);
    } catch (const std::exception& e) {
        return {0, e.what()};
    }
    if (finder.found) return finder.fault;
    return {0, std::string(fallback)};
}

}  // namespace orpo
