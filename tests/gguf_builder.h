// Builds GGUF files in memory, right ones and, byte by byte, wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

class GgufBuilder {
  public:
    // The head's fields, for tests to spoil.
    std::string magic = "GGUF";
    uint32_t version = 3;
    uint64_t alignment = 32;
    int64_t extra_tensors = 0, extra_keys = 0;  // added to the counts

    template <class T>
    static std::string le(T value) {
        std::string bytes(sizeof value, '\0');
        std::memcpy(bytes.data(), &value, sizeof value);
        return bytes;
    }
    static std::string text(std::string_view value) { return le<uint64_t>(value.size()) + std::string(value); }

    GgufBuilder& key(std::string_view name, uint32_t type, const std::string& value) {
        ++keys_;
        metadata_ += text(name) + le(type) + value;
        return *this;
    }
    GgufBuilder& u32(std::string_view name, uint32_t value) { return key(name, 4, le(value)); }
    GgufBuilder& f32(std::string_view name, float value) { return key(name, 6, le(value)); }
    GgufBuilder& str(std::string_view name, std::string_view value) { return key(name, 8, text(value)); }
    GgufBuilder& strings(std::string_view name, const std::vector<std::string>& values) {
        std::string bytes = le<uint32_t>(8) + le<uint64_t>(values.size());
        for (const std::string& value : values) bytes += text(value);
        return key(name, 9, bytes);
    }

    // dims: fastest first, as in the file. offset: of the data, -1 for the right one.
    GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                        const std::string& data, int64_t offset = -1) {
        ++tensors_;
        data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
        infos_ += text(name) + le(static_cast<uint32_t>(dims.size()));
        for (const uint64_t d : dims) infos_ += le(d);
        infos_ += le(type) + le(offset < 0 ? static_cast<uint64_t>(data_.size()) : static_cast<uint64_t>(offset));
        data_ += data;
        return *this;
    }

    std::string bytes() const {
        std::string out = magic + le(version) + le(static_cast<uint64_t>(tensors_ + extra_tensors)) +
                          le(static_cast<uint64_t>(keys_ + extra_keys)) + metadata_ + infos_;
        if (tensors_ > 0) out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
        return out + data_;
    }

  private:
    int64_t keys_ = 0, tensors_ = 0;
    std::string metadata_, infos_, data_;
};
