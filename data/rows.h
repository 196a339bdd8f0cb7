// A data file cut into rows: JSON Lines or one JSON array, each row a slice of the bytes with its place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orpo {

struct RowSlice {
    size_t begin = 0, end = 0;  // bytes
    int64_t line = 0;           // where it begins, from 1
    int64_t item = 0;           // place in the array from 1; 0 in JSON Lines
};

struct RowFile {
    std::string name;
    std::string bytes;  // the file, then kPadding bytes for the parser
    size_t size = 0;    // of the file
    std::vector<RowSlice> rows;

    static constexpr size_t kPadding = 64;
    std::string_view text(const RowSlice& row) const {
        return std::string_view(bytes).substr(row.begin, row.end - row.begin);
    }
};

// Strips a byte-order mark and '\r', skips blank lines. Error(kBadData) for what is no text of rows at all: nothing in
// it, compressed, Parquet or other binary, UTF-16, an array that does not end.
RowFile cut_rows(std::string bytes, const std::string& name);

// "file:12" or "file:12 (item 3)".
std::string place(const RowFile& file, const RowSlice& row);

}  // namespace orpo
