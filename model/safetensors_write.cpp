#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/error.h"
#include "model/dequant.h"
#include "model/safetensors.h"

namespace orpo {

namespace {

constexpr int64_t kPiece = 1 << 16;

int64_t element_count(const SafetensorsTensor& tensor) {
    int64_t n = 1;
    for (const int64_t d : tensor.shape) n *= d;
    return n;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsTensor> tensors,
                                     std::map<std::string, std::string> metadata)
    : file_(path), tensors_(std::move(tensors)) {
    // Wide types first, so that every tensor is aligned to its element; then by name.
    std::sort(tensors_.begin(), tensors_.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
        return std::make_tuple(-dtype_bytes(a.dtype), std::string_view(a.name)) <
               std::make_tuple(-dtype_bytes(b.dtype), std::string_view(b.name));
    });
    metadata.emplace("format", "pt");
    nlohmann::ordered_json header = {{"__metadata__", metadata}};
    uint64_t offset = 0;
    for (const SafetensorsTensor& tensor : tensors_) {
        ORPO_CHECK(!header.contains(tensor.name));
        const uint64_t end = offset + static_cast<uint64_t>(element_count(tensor)) * dtype_bytes(tensor.dtype);
        header[tensor.name] = {
            {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t length = text.size();
    file_.write(&length, 8);
    file_.write(text);
}

void SafetensorsWriter::write(const float* values, int64_t count) {
    std::vector<uint16_t> halves;
    while (count > 0) {
        while (current_ < tensors_.size() && done_ == element_count(tensors_[current_])) ++current_, done_ = 0;
        ORPO_CHECK(current_ < tensors_.size());
        const DType dtype = tensors_[current_].dtype;
        const int64_t n = std::min({count, kPiece, element_count(tensors_[current_]) - done_});
        if (dtype == DType::kF32) {
            file_.write(values, static_cast<size_t>(n) * 4);
        } else {
            halves.resize(static_cast<size_t>(n));
            std::transform(values, values + n, halves.begin(), dtype == DType::kF16 ? float_to_half : float_to_bf16);
            file_.write(halves.data(), static_cast<size_t>(n) * 2);
        }
        values += n, count -= n, done_ += n;
    }
}

void SafetensorsWriter::commit() {
    while (current_ < tensors_.size() && done_ == element_count(tensors_[current_])) ++current_, done_ = 0;
    ORPO_CHECK(current_ == tensors_.size());  // every declared value was written
    file_.commit();
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors,
                       std::map<std::string, std::string> metadata) {
    SafetensorsWriter writer(path, tensors, std::move(metadata));
    for (const SafetensorsTensor& tensor : writer.order()) writer.write(tensor.data, element_count(tensor));
    writer.commit();
}

}  // namespace orpo
