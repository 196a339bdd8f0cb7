#include "model/pre_tokenizer.h"

#include <iterator>
#include <vector>

namespace orpo {
namespace {

constexpr uint32_t kRuns[] = {
#include "model/unicode_tables.inc"
};

// One byte a code point: 1.1 MB that is written once and touched where text needs it.
const uint8_t* expanded_classes() {
    static const std::vector<uint8_t> classes = [] {
        std::vector<uint8_t> all(0x110000);
        for (size_t run = 0; run < std::size(kRuns); ++run) {
            const size_t end = run + 1 < std::size(kRuns) ? kRuns[run + 1] / 8 : all.size();
            for (size_t c = kRuns[run] / 8; c < end; ++c) all[c] = static_cast<uint8_t>(kRuns[run] % 8);
        }
        return all;
    }();
    return classes.data();
}

// The length of a contraction at text[at] == '\'', or 0.
size_t contraction(std::string_view text, size_t at) {
    if (at + 1 >= text.size()) return 0;
    const char first = text[at + 1];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (at + 2 >= text.size()) return 0;
    const char second = text[at + 2];
    const bool long_form =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return long_form ? 3 : 0;
}

}  // namespace

PreTokenizer::PreTokenizer(bool isolate_digits) : isolate_digits_(isolate_digits), classes_(expanded_classes()) {}

size_t PreTokenizer::next_end(std::string_view text, size_t at) const {
    const auto isolated = [&](CharClass c) {
        return isolate_digits_ && (c == CharClass::kNumber || c == CharClass::kDigitsOnly);
    };
    // Without isolated digits the pattern alone decides, and for it kDigitsOnly is no number.
    const auto plain = [](CharClass c) { return c == CharClass::kDigitsOnly ? CharClass::kOther : c; };

    size_t length = 0;
    CharClass kind = class_at(text, at, &length);
    if (isolated(kind)) return at + length;
    if (text[at] == '\'') {
        if (const size_t n = contraction(text, at); n > 0) return at + n;
    }

    size_t end = at + length;
    if (text[at] == ' ' && end < text.size()) {
        const CharClass next = class_at(text, end, &length);
        if (next != CharClass::kSpace && !isolated(next)) {
            kind = next;
            end += length;
        }
    }
    if (kind != CharClass::kSpace) {
        kind = plain(kind);
        while (end < text.size()) {
            const CharClass next = class_at(text, end, &length);
            if (isolated(next) || plain(next) != kind) break;
            end += length;
        }
        return end;
    }

    // White space: all of it before the end of the part; else the last one is left for what follows.
    size_t last = at;
    while (end < text.size()) {
        const CharClass next = class_at(text, end, &length);
        if (isolated(next)) return end;
        if (next != CharClass::kSpace) return last > at ? last : end;
        last = end;
        end += length;
    }
    return end;
}

}  // namespace orpo
