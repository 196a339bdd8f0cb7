// The safetensors format: u64 header length, JSON header, data (https://github.com/huggingface/safetensors).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/io.h"

namespace orpo {

enum class DType { kF32, kF16, kBF16 };
std::string_view dtype_name(DType dtype);  // "F32", "F16", "BF16"
int dtype_bytes(DType dtype);

struct SafetensorsEntry {
    std::string name;
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0;  // bytes, relative to the start of the data
    int64_t elements() const;
};

// One file. All checks of the format's own reader happen before anything is read from the data: header length cap,
// UTF-8, JSON, duplicate names, sizes with overflow checks, no holes, no overlaps, no bytes left over.
// Error(kBadModel) names the file, what is wrong and the remedy.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(std::unique_ptr<io::Reader> reader);
    static SafetensorsFile open(const std::string& path) { return SafetensorsFile(io::open_reader(path)); }

    const std::string& path() const { return reader_->name(); }
    const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in order of offset
    const SafetensorsEntry* find(std::string_view name) const;                 // null: no such tensor
    const std::map<std::string, std::string>& metadata() const { return metadata_; }

    // Elements [first, first + count) of the tensor, as fp32.
    void read(const SafetensorsEntry& entry, int64_t first, int64_t count, float* out) const;
    void read(const SafetensorsEntry& entry, float* out) const { read(entry, 0, entry.elements(), out); }
    // The bytes as stored: [offset, offset + n) inside the tensor.
    void read_raw(const SafetensorsEntry& entry, uint64_t offset, void* out, size_t n) const;

  private:
    std::unique_ptr<io::Reader> reader_;
    uint64_t data_begin_ = 0;
    std::vector<SafetensorsEntry> entries_;
    std::map<std::string, size_t, std::less<>> index_;
    std::map<std::string, std::string> metadata_;
};

// What `model.safetensors.index.json` says: file names, checked to be plain names. Tensor -> file.
std::map<std::string, std::string> parse_safetensors_index(std::string_view json, const std::string& file);

struct SafetensorsTensor {
    std::string name;
    DType dtype = DType::kF32;  // what is stored; fp32 values are rounded to nearest even
    std::vector<int64_t> shape;
    const float* data = nullptr;
};

// Writes the file atomically, tensors ordered by element size (4 bytes first), then by name, header padded to 8 bytes,
// {"format": "pt"} added to the metadata. The same input gives the same bytes.
void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors,
                       std::map<std::string, std::string> metadata = {});

// The same for tensors too large to hold at once: declare all, then hand over each one's values in `order()`.
class SafetensorsWriter {
  public:
    SafetensorsWriter(const std::string& path, std::vector<SafetensorsTensor> tensors,
                      std::map<std::string, std::string> metadata);
    const std::vector<SafetensorsTensor>& order() const { return tensors_; }  // data pointers are not used
    void write(const float* values, int64_t count);                           // the next values of the stream
    void commit();

  private:
    io::AtomicFile file_;
    std::vector<SafetensorsTensor> tensors_;
    size_t current_ = 0;
    int64_t done_ = 0;  // elements of the current tensor
};

}  // namespace orpo
