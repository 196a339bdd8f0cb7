#include "model/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory");

namespace orpo {

namespace {

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64, kTypes };
constexpr int kValueBytes[kTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: not of a fixed size

// Far above what any model has, far below what could hurt.
constexpr uint64_t kMaxKeys = 100'000, kMaxTensors = 100'000, kMaxKeyBytes = 65'535, kMaxNameBytes = 63;
constexpr uint64_t kMaxStringBytes = 1 << 28, kMaxArray = 1 << 24, kMaxMetadataBytes = 1 << 29;
constexpr uint64_t kMaxAlignment = 1 << 20;

// Reads the file's head from front to back through a buffer; nothing is allocated that the file is too short to fill.
class Cursor {
  public:
    explicit Cursor(const io::Reader& reader) : reader_(reader) {}

    uint64_t position() const { return position_; }
    uint64_t left() const { return reader_.size() - position_; }
    const std::string& path() const { return reader_.name(); }

    [[noreturn]] void fail(const std::string& what) const {
        throw Error(Exit::kBadModel,
                    fmt::format("{}: {} (at byte {}); the file is damaged: get it again", path(), what, position_));
    }

    void bytes(void* out, size_t n) {
        if (n > left()) fail(fmt::format("ends early: {} more bytes are needed, {} are there", n, left()));
        char* p = static_cast<char*>(out);
        while (n > 0) {
            if (position_ < buffer_at_ || position_ >= buffer_at_ + buffer_.size()) refill();
            const size_t offset = static_cast<size_t>(position_ - buffer_at_);
            const size_t part = std::min(n, buffer_.size() - offset);
            std::memcpy(p, buffer_.data() + offset, part);
            p += part, n -= part, position_ += part;
        }
    }

    template <class T>
    T number() {
        T value;
        bytes(&value, sizeof value);
        return value;
    }

    std::string text(uint64_t max_bytes, const std::string& what) {
        const uint64_t length = number<uint64_t>();
        if (length > max_bytes || length > left())
            fail(fmt::format("{} of {} bytes is too long, {} are left", what, length, left()));
        std::string text(length, '\0');
        bytes(text.data(), length);
        return text;
    }

  private:
    void refill() {
        buffer_.resize(static_cast<size_t>(std::min<uint64_t>(1 << 18, left())));
        reader_.read_at(position_, buffer_.data(), buffer_.size());
        buffer_at_ = position_;
    }

    const io::Reader& reader_;
    uint64_t position_ = 0, buffer_at_ = 0;
    std::vector<char> buffer_;
};

int64_t read_integer(Cursor& in, uint32_t type, const std::string& key) {
    switch (type) {
        case kU8:
            return in.number<uint8_t>();
        case kI8:
            return in.number<int8_t>();
        case kU16:
            return in.number<uint16_t>();
        case kI16:
            return in.number<int16_t>();
        case kU32:
            return in.number<uint32_t>();
        case kI32:
            return in.number<int32_t>();
        case kI64:
            return in.number<int64_t>();
        case kBool: {
            const uint8_t value = in.number<uint8_t>();
            if (value > 1) in.fail(fmt::format("'{}' is neither true nor false", key));
            return value;
        }
        default: {
            const uint64_t value = in.number<uint64_t>();
            if (value > INT64_MAX) in.fail(fmt::format("'{}' is {}, which is too large", key, value));
            return static_cast<int64_t>(value);
        }
    }
}

void read_array(Cursor& in, GgufValue& value, const std::string& key) {
    value.element_type = in.number<uint32_t>();
    const uint64_t n = in.number<uint64_t>();
    if (value.element_type >= kTypes || value.element_type == kArray)
        in.fail(fmt::format("'{}' is an array of type {}, which does not exist", key, value.element_type));
    const uint64_t least = value.element_type == kString ? 8 : static_cast<uint64_t>(kValueBytes[value.element_type]);
    if (n > kMaxArray || n * least > in.left())
        in.fail(fmt::format("'{}' is an array of {} elements, {} bytes are left", key, n, in.left()));
    for (uint64_t i = 0; i < n; ++i) {
        switch (value.element_type) {
            case kString:
                value.texts.push_back(in.text(kMaxStringBytes, fmt::format("'{}': a text", key)));
                break;
            case kF32:
                value.reals.push_back(in.number<float>());
                break;
            case kF64:
                value.reals.push_back(in.number<double>());
                break;
            default:
                value.integers.push_back(read_integer(in, value.element_type, key));
        }
    }
}

GgufValue read_value(Cursor& in, const std::string& key) {
    GgufValue value;
    value.type = in.number<uint32_t>();
    switch (value.type) {
        case kString:
            value.kind = GgufValue::Kind::kString;
            value.text = in.text(kMaxStringBytes, fmt::format("'{}': a text", key));
            break;
        case kF32:
            value.kind = GgufValue::Kind::kReal;
            value.real = in.number<float>();
            break;
        case kF64:
            value.kind = GgufValue::Kind::kReal;
            value.real = in.number<double>();
            break;
        case kArray:
            value.kind = GgufValue::Kind::kArray;
            read_array(in, value, key);
            break;
        default:
            if (value.type >= kTypes) in.fail(fmt::format("'{}' has type {}, which does not exist", key, value.type));
            value.kind = value.type == kBool ? GgufValue::Kind::kBool : GgufValue::Kind::kInteger;
            value.integer = read_integer(in, value.type, key);
    }
    return value;
}

// Name, shape and type. The offset is still relative to the data, bytes follow from type and shape.
GgufTensor read_tensor(Cursor& in) {
    GgufTensor tensor;
    tensor.name = in.text(kMaxNameBytes, "a tensor's name");
    if (tensor.name.empty()) in.fail("a tensor has no name");
    const std::string what = fmt::format("tensor '{}'", tensor.name);
    const uint32_t dims = in.number<uint32_t>();
    if (dims < 1 || dims > 4) in.fail(fmt::format("{} has {} dimensions, not 1 to 4", what, dims));
    int64_t elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
        const uint64_t d = in.number<uint64_t>();
        if (d < 1 || d > INT64_MAX || __builtin_mul_overflow(elements, static_cast<int64_t>(d), &elements))
            in.fail(fmt::format("{} has a side of {}, which cannot be", what, d));
        tensor.shape.push_back(static_cast<int64_t>(d));
    }
    tensor.type = in.number<uint32_t>();
    tensor.offset = in.number<uint64_t>();
    const BlockFormat* format = stored_format(tensor.type);
    if (format == nullptr) in.fail(fmt::format("{} has type {}, which does not exist", what, tensor.type));
    if (tensor.shape[0] % format->elements != 0) {
        in.fail(fmt::format("{} has rows of {} elements, which {} cannot store in blocks of {}", what, tensor.shape[0],
                            format->name, format->elements));
    }
    if (__builtin_mul_overflow(static_cast<uint64_t>(elements / format->elements), static_cast<uint64_t>(format->bytes),
                               &tensor.bytes))
        in.fail(fmt::format("{} has more bytes than can be counted", what));
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    return tensor;
}

void check_magic(Cursor& in, int* version) {
    char magic[4];
    if (in.left() < 8) in.fail("is no GGUF file: too short");
    in.bytes(magic, 4);
    if (std::memcmp(magic, "GGUF", 4) != 0) in.fail("is no GGUF file: it does not begin with \"GGUF\"");
    const uint32_t value = in.number<uint32_t>();
    if ((value & 0xffff) == 0 && value != 0) in.fail("is a GGUF file for big-endian machines, which is not supported");
    if (value != 2 && value != 3)
        in.fail(fmt::format("has GGUF version {}; supported are 2 and 3, a newer program converts it", value));
    *version = static_cast<int>(value);
}

}  // namespace

int64_t GgufTensor::elements() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
}

GgufFile::GgufFile(std::unique_ptr<io::Reader> reader) : reader_(std::move(reader)) {
    Cursor in(*reader_);
    check_magic(in, &version_);
    const uint64_t tensors = in.number<uint64_t>(), keys = in.number<uint64_t>();
    // A key takes at least 13 bytes, a tensor 33.
    if (tensors > kMaxTensors || tensors > in.left() / 33) in.fail(fmt::format("claims {} tensors", tensors));
    if (keys > kMaxKeys || keys > in.left() / 13) in.fail(fmt::format("claims {} keys", keys));

    for (uint64_t i = 0; i < keys; ++i) {
        std::string key = in.text(kMaxKeyBytes, "a key");
        if (key.empty()) in.fail("a key is empty");
        GgufValue value = read_value(in, key);
        if (in.position() > kMaxMetadataBytes) in.fail("has more metadata than any model");
        if (!metadata_.emplace(key, std::move(value)).second) in.fail(fmt::format("the key '{}' stands twice", key));
    }
    uint64_t alignment = 32;
    if (const GgufValue* value = find("general.alignment")) {
        if (value->type != kU32) in.fail("'general.alignment' is no u32");
        alignment = static_cast<uint64_t>(value->integer);
        if (!std::has_single_bit(alignment) || alignment > kMaxAlignment)
            in.fail(fmt::format("'general.alignment' is {}, not a power of two up to {}", alignment, kMaxAlignment));
    }
    for (uint64_t i = 0; i < tensors; ++i) {
        tensors_.push_back(read_tensor(in));
        if (!index_.emplace(tensors_.back().name, i).second)
            in.fail(fmt::format("two tensors are called '{}'", tensors_.back().name));
    }
    if (tensors == 0) return;

    // The data must lie one tensor after the other, each padded to the alignment: no holes, no overlaps.
    const auto padded = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
    const uint64_t data = padded(in.position()), size = reader_->size();
    uint64_t end = 0;  // of the tensors so far, relative to data
    for (GgufTensor& tensor : tensors_) {
        if (tensor.offset != padded(end)) {
            in.fail(fmt::format("tensor '{}' begins at {} of the data, but the one before ends at {}", tensor.name,
                                tensor.offset, end));
        }
        if (data > size || padded(end) > size - data || tensor.bytes > size - data - padded(end)) {
            throw Error(Exit::kBadModel,
                        fmt::format("{}: tensor '{}' reaches beyond the end of the file ({} bytes), which is truncated "
                                    "or was not downloaded whole: get it again",
                                    path(), tensor.name, size));
        }
        end = tensor.offset + tensor.bytes;
        tensor.offset += data;
    }
    if (size > data + padded(end)) in.fail(fmt::format("{} bytes follow the last tensor", size - data - padded(end)));
}

const GgufValue* GgufFile::find(std::string_view key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? nullptr : &found->second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
}

namespace {

const GgufValue& expect(const GgufFile& file, std::string_view key, GgufValue::Kind kind, const char* what) {
    const GgufValue* value = file.find(key);
    if (value == nullptr)
        throw Error(Exit::kBadModel,
                    fmt::format("{}: the key '{}' is missing; convert the model again", file.path(), key));
    if (value->kind != kind)
        throw Error(Exit::kBadModel,
                    fmt::format("{}: '{}' is not {}; convert the model again", file.path(), key, what));
    return *value;
}

}  // namespace

int64_t GgufFile::integer(std::string_view key) const {
    return expect(*this, key, GgufValue::Kind::kInteger, "a whole number").integer;
}
double GgufFile::real(std::string_view key) const {
    return expect(*this, key, GgufValue::Kind::kReal, "a floating-point number").real;
}
std::string GgufFile::text(std::string_view key) const {
    return expect(*this, key, GgufValue::Kind::kString, "a text").text;
}

void GgufFile::read_raw(const GgufTensor& tensor, uint64_t offset, void* out, size_t n) const {
    ORPO_CHECK(offset <= tensor.bytes && n <= tensor.bytes - offset);
    reader_->read_at(tensor.offset + offset, out, n);
}

void GgufFile::read_rows(const GgufTensor& tensor, int64_t first, int64_t count, float* out) const {
    const BlockFormat* format = block_format(tensor.type);
    if (format == nullptr) {
        throw Error(
            Exit::kBadModel,
            fmt::format("{}: tensor '{}' is stored as {}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
                        "Q8_0, Q4_K, Q5_K, Q6_K",
                        path(), tensor.name, ggml_type_name(tensor.type)));
    }
    const int64_t cols = tensor.shape.back(), rows = tensor.elements() / cols;
    ORPO_CHECK(first >= 0 && count >= 0 && first <= rows && count <= rows - first);
    const int64_t row_bytes = cols / format->elements * format->bytes;
    // In pieces that stay in the cache between reading and dequantising.
    const int64_t piece = std::clamp<int64_t>((1 << 18) / row_bytes, 1, std::max<int64_t>(count, 1));
    std::vector<uint8_t> raw(static_cast<size_t>(piece * row_bytes));
    for (int64_t done = 0; done < count; done += piece) {
        const int64_t n = std::min(piece, count - done);
        read_raw(tensor, static_cast<uint64_t>((first + done) * row_bytes), raw.data(),
                 static_cast<size_t>(n * row_bytes));
        dequantise(static_cast<GgmlType>(tensor.type), raw.data(), n * cols, out + done * cols);
    }
}

}  // namespace orpo
