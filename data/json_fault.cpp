#include "data/json_fault.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "model/utf8.h"

namespace orpo {
namespace {

// The parser quotes the token that it was in, which may be the whole document: of a long text only both ends.
std::string shortened(const std::string& text) {
    constexpr size_t kBegin = 120, kEnd = 80;
    if (text.size() <= kBegin + kEnd) return text;
    const auto inside = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
    size_t begin = kBegin, end = text.size() - kEnd;
    while (inside(begin)) --begin;
    while (end < text.size() && inside(end)) ++end;
    return text.substr(0, begin) + " ... " + text.substr(end);
}

// Remembers the first error; keeps nothing of the document.
class FaultFinder : public nlohmann::json_sax<nlohmann::json> {
  public:
    JsonFault fault;
    bool found = false;
    std::string large_integer;

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(int64_t) override { return true; }
    bool number_unsigned(uint64_t) override { return true; }
    bool number_float(double, const std::string& digits) override {
        // An integer of more than 64 bits comes as a float; simdjson reads none, and does not say where.
        if (large_integer.empty() && digits.find_first_of(".eE") == std::string::npos) large_integer = digits;
        return true;
    }
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
        if (dynamic_cast<const nlohmann::json::out_of_range*>(&e) != nullptr) why = "a number that is too large";
        // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while parsing value - reason"
        for (const std::string_view before : {": ", " - "}) {
            const size_t at = why.find(before);
            if (at != std::string::npos) why.erase(0, at + before.size());
        }
        fault.why = shortened(why);
        return false;
    }
};

}  // namespace

size_t column_of(std::string_view text, size_t offset) {
    offset = std::min(offset, text.size());
    const size_t newline = offset == 0 ? std::string_view::npos : text.rfind('\n', offset - 1);
    const size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
    return 1 + static_cast<size_t>(std::count_if(text.begin() + begin, text.begin() + offset, [](char c) {
               return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
           }));
}

JsonFault find_json_fault(std::string_view text, std::string_view fallback) {
    if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos)
        return {bad, "invalid UTF-8; save the file as UTF-8"};
    FaultFinder finder;
    try {
        nlohmann::json::sax_parse(text.begin(), text.end(), &finder);
    } catch (const std::exception& e) {
        return {0, e.what()};
    }
    if (finder.found) return finder.fault;
    if (!finder.large_integer.empty() && fallback.find("number") != std::string_view::npos)
        return {std::min(text.find(finder.large_integer), text.size()),
                "the integer " + shortened(finder.large_integer) + " has more than 64 bits; write it as a string"};
    return {0, std::string(fallback)};
}

}  // namespace orpo
