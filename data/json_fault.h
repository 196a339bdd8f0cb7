// Where a text stops being JSON, and why: the slow second look that names the place once the fast parser has refused
// it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace orpo {

struct JsonFault {
    size_t offset = 0;  // bytes from the start of the text
    std::string why;
};
// `fallback`: the reason to give when this second look finds nothing wrong.
JsonFault find_json_fault(std::string_view text, std::string_view fallback);

// Characters, not bytes, from the start of its line to `offset`, from 1.
size_t column_of(std::string_view text, size_t offset);

}  // namespace orpo
