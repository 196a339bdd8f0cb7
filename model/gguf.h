// The GGUF format, versions 2 and 3, little endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/io.h"
#include "model/config.h"
#include "model/dequant.h"

namespace orpo {

struct GgufTokenizerFields;  // model/tokenizer_spec.h

// A metadata value. Integers of every width land in `integer` (u64 above INT64_MAX is refused), f32 and f64 in `real`.
struct GgufValue {
    enum class Kind { kInteger, kReal, kBool, kString, kArray };
    Kind kind = Kind::kInteger;
    uint32_t type = 0;          // as stored: 0 u8 ... 12 f64
    uint32_t element_type = 0;  // of an array
    int64_t integer = 0;        // also bool
    double real = 0;
    std::string text;
    std::vector<std::string> texts;  // array of strings
    std::vector<int64_t> integers;   // array of integers or bools
    std::vector<double> reals;       // array of floats
};

struct GgufTensor {
    std::string name;
    std::vector<int64_t> shape;  // HF order: slowest first (the file stores the reverse)
    uint32_t type = 0;           // GgmlType, or one that is not supported
    uint64_t offset = 0;         // absolute, in the file
    uint64_t bytes = 0;
    int64_t elements() const;
};

// One file: header, metadata and tensor infos are read and checked when it is opened (counts and lengths against the
// file's size before anything is allocated, overflow, duplicates, alignment, contiguous data). Error(kBadModel).
class GgufFile {
  public:
    explicit GgufFile(std::unique_ptr<io::Reader> reader);
    static GgufFile open(const std::string& path) { return GgufFile(io::open_reader(path)); }

    const std::string& path() const { return reader_->name(); }
    int version() const { return version_; }
    const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
    const GgufValue* find(std::string_view key) const;
    const std::vector<GgufTensor>& tensors() const { return tensors_; }
    const GgufTensor* find_tensor(std::string_view name) const;

    // Typed lookups: a missing key or another type is an Error(kBadModel).
    int64_t integer(std::string_view key) const;
    double real(std::string_view key) const;
    std::string text(std::string_view key) const;

    void read_raw(const GgufTensor& tensor, uint64_t offset, void* out, size_t n) const;
    // Rows [first, first + count) of the tensor in the file's own order, as fp32. 1-D tensors are one row.
    void read_rows(const GgufTensor& tensor, int64_t first, int64_t count, float* out) const;

  private:
    std::unique_ptr<io::Reader> reader_;
    int version_ = 0;
    std::map<std::string, GgufValue, std::less<>> metadata_;
    std::vector<GgufTensor> tensors_;
    std::map<std::string, size_t, std::less<>> index_;
};

ModelConfig gguf_config(const GgufFile& file);
// Error(kBadModel) when the file has no tokenizer.
GgufTokenizerFields gguf_tokenizer_fields(const GgufFile& file);

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight"; "" when GGUF has no such tensor.
std::string gguf_tensor_name(std::string_view hf_name);

// q_proj and k_proj rows are stored interleaved, for llama.cpp rotates neighbouring rows: the HF row r of a head of
// size HS is row gguf_row(r, HS) of the file.  HF row h*HS + t*HS/2 + j  <-  file row h*HS + 2j + t,  t in {0, 1}.
inline int64_t gguf_row(int64_t hf_row, int64_t HS) {
    const int64_t in_head = hf_row % HS;
    return hf_row - in_head + 2 * (in_head % (HS / 2)) + in_head / (HS / 2);
}

}  // namespace orpo
