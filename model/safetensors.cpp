#include "model/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "model/dequant.h"
#include "model/json_document.h"

static_assert(std::endian::native == std::endian::little, "safetensors are read as they lie in memory");

namespace orpo {

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own cap
constexpr int64_t kPiece = 1 << 16;           // elements converted at a time: stays in the cache

[[noreturn]] void damaged(const std::string& file, const std::string& what) {
    throw Error(Exit::kBadModel, fmt::format("{}: {}; the file is damaged: get it again", file, what));
}

DType parse_dtype(const std::string& name, const std::string& file, std::string_view tensor) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
        if (name == dtype_name(dtype)) return dtype;
    throw Error(Exit::kBadModel,
                fmt::format("{}: tensor '{}' is stored as {}; supported are F32, F16 and BF16", file, tensor, name));
}

SafetensorsEntry parse_entry(const JsonObject& header, std::string_view name) {
    const std::string& file = header.file();
    const std::optional<JsonObject> fields = header.object(name);
    if (!fields) damaged(file, fmt::format("tensor '{}' is null", name));
    for (const auto field : fields->fields())
        if (field.key != "dtype" && field.key != "shape" && field.key != "data_offsets")
            damaged(file, fmt::format("tensor '{}' has an unknown field '{}'", name, field.key));

    const auto list = [&](std::string_view key) {
        std::vector<uint64_t> numbers;
        simdjson::dom::array array;
        const auto value = fields->find(key);
        if (!value || value->get(array) != simdjson::SUCCESS)
            damaged(file, fmt::format("tensor '{}' has no list '{}'", name, key));
        for (const simdjson::dom::element item : array) {
            uint64_t number = 0;
            if (item.get(number) != simdjson::SUCCESS)
                damaged(file, fmt::format("'{}' of tensor '{}' holds {}", key, name, json_excerpt(item)));
            numbers.push_back(number);
        }
        return numbers;
    };

    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = parse_dtype(fields->text("dtype").value_or("an unnamed type"), file, name);
    const std::vector<uint64_t> shape = list("shape"), offsets = list("data_offsets");
    if (shape.size() > 8) damaged(file, fmt::format("tensor '{}' has {} dimensions", name, shape.size()));
    uint64_t bytes = static_cast<uint64_t>(dtype_bytes(entry.dtype));
    for (const uint64_t d : shape) {
        if (d > INT64_MAX || __builtin_mul_overflow(bytes, d, &bytes))
            damaged(file, fmt::format("tensor '{}' has a side of {}, which cannot be", name, d));
        entry.shape.push_back(static_cast<int64_t>(d));
    }
    if (offsets.size() != 2) damaged(file, fmt::format("tensor '{}' has not two 'data_offsets'", name));
    entry.begin = offsets[0];
    entry.end = offsets[1];
    if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
        damaged(file, fmt::format("tensor '{}' claims bytes {} to {}, but its shape takes {}", name, entry.begin,
                                  entry.end, bytes));
    }
    return entry;
}

}  // namespace

std::string_view dtype_name(DType dtype) {
    switch (dtype) {
        case DType::kF32:
            return "F32";
        case DType::kF16:
            return "F16";
        case DType::kBF16:
            return "BF16";
    }
    ORPO_CHECK(!"a dtype");
}

int dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

int64_t SafetensorsEntry::elements() const { return static_cast<int64_t>((end - begin) / dtype_bytes(dtype)); }

SafetensorsFile::SafetensorsFile(std::unique_ptr<io::Reader> reader) : reader_(std::move(reader)) {
    const uint64_t size = reader_->size();
    if (size < 8) damaged(path(), fmt::format("{} bytes are no safetensors file", size));
    uint64_t header_bytes = 0;
    reader_->read_at(0, &header_bytes, 8);
    if (header_bytes > kMaxHeader || header_bytes > size - 8) {
        damaged(path(), fmt::format("claims a header of {} bytes, the file has {}: not safetensors, or truncated",
                                    header_bytes, size));
    }
    std::string text(header_bytes, '\0');
    reader_->read_at(8, text.data(), header_bytes);
    if (text.empty() || text[0] != '{') damaged(path(), "the header is no JSON object: not a safetensors file");
    const JsonDocument document(text, path());
    const JsonObject& header = document.root();

    for (const auto field : header.fields()) {
        if (field.key == "__metadata__") {
            if (!field.value.is_object()) header.wrong(field.key, field.value, "an object of strings");
            for (const auto item : simdjson::dom::object(field.value)) {
                std::string_view value;
                if (item.value.get(value) != simdjson::SUCCESS)
                    header.wrong(field.key, item.value, "an object of strings");
                metadata_.emplace(item.key, value);
            }
            continue;
        }
        entries_.push_back(parse_entry(header, field.key));
    }
    std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
        return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    data_begin_ = 8 + header_bytes;
    uint64_t end = 0;
    for (size_t i = 0; i < entries_.size(); ++i) {
        const SafetensorsEntry& entry = entries_[i];
        if (entry.begin != end) {
            damaged(path(), fmt::format("tensor '{}' begins at byte {} of the data, but the one before ends at {}",
                                        entry.name, entry.begin, end));
        }
        end = entry.end;
        index_.emplace(entry.name, i);
    }
    if (end > size - data_begin_) {
        damaged(path(), fmt::format("the tensors take {} bytes, the file has {}: it is truncated or was not downloaded "
                                    "whole",
                                    end, size - data_begin_));
    }
    if (end < size - data_begin_)
        damaged(path(), fmt::format("{} bytes follow the last tensor", size - data_begin_ - end));
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &entries_[found->second];
}

void SafetensorsFile::read_raw(const SafetensorsEntry& entry, uint64_t offset, void* out, size_t n) const {
    ORPO_CHECK(offset <= entry.end - entry.begin && n <= entry.end - entry.begin - offset);
    reader_->read_at(data_begin_ + entry.begin + offset, out, n);
}

void SafetensorsFile::read(const SafetensorsEntry& entry, int64_t first, int64_t count, float* out) const {
    ORPO_CHECK(first >= 0 && count >= 0 && first <= entry.elements() && count <= entry.elements() - first);
    if (entry.dtype == DType::kF32) {
        read_raw(entry, static_cast<uint64_t>(first) * 4, out, static_cast<size_t>(count) * 4);
        return;
    }
    const GgmlType type = entry.dtype == DType::kF16 ? GgmlType::kF16 : GgmlType::kBF16;
    std::vector<uint16_t> raw(static_cast<size_t>(std::min(count, kPiece)));
    for (int64_t done = 0; done < count; done += kPiece) {
        const int64_t n = std::min(kPiece, count - done);
        read_raw(entry, static_cast<uint64_t>(first + done) * 2, raw.data(), static_cast<size_t>(n) * 2);
        dequantise(type, raw.data(), n, out + done);
    }
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view json, const std::string& file) {
    const JsonDocument document(json, file);
    const auto map = document.root().object("weight_map");
    if (!map) throw Error(Exit::kBadModel, document.root().place("weight_map") + " is missing; get the file again");
    std::map<std::string, std::string> files;
    for (const auto field : map->fields()) {
        const std::string name = map->text(field.key).value_or("");
        // A plain name in the same directory, so that an index cannot point anywhere else.
        if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
            name.find('\0') != std::string::npos || name.find('\\') != std::string::npos) {
            throw Error(Exit::kBadModel, fmt::format("{} is \"{}\", not the name of a file beside the index",
                                                     map->place(field.key), name));
        }
        files.emplace(field.key, name);
    }
    return files;
}

}  // namespace orpo
