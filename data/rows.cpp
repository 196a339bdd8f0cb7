#include "data/rows.h"

#include <algorithm>

#include "base/error.h"
#include "data/json_fault.h"

namespace orpo {
namespace {

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
    throw Error(Exit::kBadData, name + ": " + what);
}

// Formats that people have in place of JSON Lines, by their first bytes.
void refuse_other_formats(std::string_view bytes, const std::string& name) {
    const auto starts = [&](std::string_view magic) { return bytes.substr(0, magic.size()) == magic; };
    const std::string jsonl = " The result must be JSON Lines: one object a line.";
    if (starts("PAR1"))
        refuse(name,
               "this is a Parquet file; convert it: python3 -c \"import pyarrow.parquet as p, json; "
               "[print(json.dumps(r)) for r in p.read_table('" +
                   name +
                   "').to_pylist()]\" > data.jsonl  (or: "
                   "duckdb -c \"COPY (FROM '" +
                   name + "') TO 'data.jsonl'\")." + jsonl);
    if (starts("\x1f\x8b")) refuse(name, "this file is compressed with gzip; run: zcat " + name + " | orpo ... -");
    if (starts("\x28\xb5\x2f\xfd"))
        refuse(name, "this file is compressed with zstd; run: zstdcat " + name + " | orpo ... -");
    if (starts("BZh")) refuse(name, "this file is compressed with bzip2; run: bzcat " + name + " | orpo ... -");
    if (starts(std::string_view("\xfd"
                                "7zXZ\0",
                                6)))
        refuse(name, "this file is compressed with xz; run: xzcat " + name + " | orpo ... -");
    if (starts("PK\x03\x04")) refuse(name, "this is a zip archive; unpack it: unzip " + name);
    if (starts("ARROW1"))
        refuse(name, "this is an Arrow file; convert it with datasets: Dataset.from_file('" + name +
                         "').to_json('data.jsonl')." + jsonl);
    if (starts("GGUF")) refuse(name, "this is a GGUF model, not preference data; models go after --model");
    if (starts(std::string_view("\xff\xfe\0\0", 4)) || starts(std::string_view("\0\0\xfe\xff", 4)))
        refuse(name, "this is UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8 " + name + " > data.jsonl");
    if (starts("\xff\xfe") || starts("\xfe\xff"))
        refuse(name, "this is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 " + name + " > data.jsonl");
    if (bytes.substr(0, 8192).find('\0') != std::string_view::npos)
        refuse(name,
               "this is a binary file, not text; preference data is JSON Lines: one object a line with prompt, "
               "chosen and rejected");
}

// One array: every element is a row. Brackets are counted outside of strings only; each element is checked when it is
// parsed.
void cut_array(RowFile& file, size_t at) {
    const std::string_view text = std::string_view(file.bytes).substr(0, file.size);
    int64_t line = 1 + std::count(text.begin(), text.begin() + at, '\n');
    ++at;
    int depth = 0;
    bool in_string = false, closed = false, comma = false;
    RowSlice row{at, at, 0, 1};
    const auto finish = [&](size_t end) {
        row.end = end;
        while (row.end > row.begin && blank(text[row.end - 1])) --row.end;
        if (row.line == 0) row.line = line;
        file.rows.push_back(row);
    };
    for (; at < text.size() && !closed; ++at) {
        const char c = text[at];
        if (c == '\n') ++line;
        if (in_string) {
            if (c == '\\') {
                ++at;
                if (at < text.size() && text[at] == '\n') ++line;
            } else if (c == '"') {
                in_string = false;
            }
            continue;
        }
        if (blank(c)) continue;
        const bool ends = depth == 0 && (c == ',' || c == ']');
        if (ends) {
            if (row.line != 0 || comma || c == ',') finish(at);
            comma = c == ',';
            closed = c == ']';
            row = {at + 1, at + 1, 0, row.item + 1};
            continue;
        }
        if (row.line == 0) row.line = line, row.begin = at;
        if (c == '"') in_string = true;
        if (c == '{' || c == '[') ++depth;
        if (c == '}' || c == ']') depth = std::max(depth - 1, 0);
    }
    if (!closed) refuse(file.name, "the JSON array that begins the file has no end; the file is cut short or broken");
    for (; at < text.size(); ++at)
        if (!blank(text[at]))
            refuse(file.name + ":" + std::to_string(1 + std::count(text.begin(), text.begin() + at, '\n')) + ":" +
                       std::to_string(column_of(text, at)),
                   "text after the end of the JSON array; a file is one array of objects, or one object a line");
}

void cut_lines(RowFile& file, size_t at) {
    const std::string_view text = std::string_view(file.bytes).substr(0, file.size);
    for (int64_t line = 1; at < text.size(); ++line) {
        const size_t newline = std::min(text.find('\n', at), text.size());
        size_t begin = at, end = newline;
        while (begin < end && blank(text[begin])) ++begin;
        while (end > begin && blank(text[end - 1])) --end;
        if (begin < end) file.rows.push_back({begin, end, line, 0});
        at = newline + 1;
    }
}

}  // namespace

RowFile cut_rows(std::string bytes, const std::string& name) {
    RowFile file;
    file.name = name;
    file.size = bytes.size();
    file.bytes = std::move(bytes);
    const std::string_view text(file.bytes);
    refuse_other_formats(text, name);
    const size_t start = text.substr(0, 3) == "\xef\xbb\xbf" ? 3 : 0;
    size_t first = start;
    while (first < text.size() && blank(text[first])) ++first;
    if (first == text.size())
        refuse(name, file.size == 0 ? "the file is empty" : "the file holds nothing but blank lines");
    file.bytes.append(RowFile::kPadding, ' ');
    if (file.bytes[first] == '[')
        cut_array(file, first);
    else
        cut_lines(file, start);
    if (file.rows.empty()) refuse(name, "the JSON array is empty");
    return file;
}

std::string place(const RowFile& file, const RowSlice& row) {
    std::string text = file.name + ":" + std::to_string(row.line);
    if (row.item > 0) text += " (item " + std::to_string(row.item) + ")";
    return text;
}

}  // namespace orpo
