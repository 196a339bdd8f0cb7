// Weights that lie in a GGUF file.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "model/gguf.h"
#include "model/model_files.h"
#include "model/tokenizer_spec.h"

namespace orpo {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

class GgufWeights : public HostWeights {
  public:
    explicit GgufWeights(std::shared_ptr<const GgufFile> file)
        : HostWeights(gguf_config(*file)), file_(std::move(file)) {
        std::set<std::string> known;
        for (const TensorShape& wanted : model_tensors(config())) {
            const std::string name = gguf_tensor_name(wanted.name);
            const GgufTensor* tensor = file_->find_tensor(name);
            if (tensor == nullptr) refuse(fmt::format("tensor '{}' is missing; get the file again", name));
            if (tensor->shape != wanted.shape) {
                refuse(
                    fmt::format("tensor '{}' has shape {}, but the file's own metadata ask for {}; the file is damaged",
                                name, shape_text(tensor->shape), shape_text(wanted.shape)));
            }
            if (block_format(tensor->type) == nullptr) {
                refuse(
                    fmt::format("tensor '{}' is stored as {}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
                                "Q8_0, Q4_K, Q5_K, Q6_K: get the model in one of these",
                                name, ggml_type_name(tensor->type)));
            }
            known.insert(name);
            tensors_.emplace(wanted.name, tensor);
        }
        for (const GgufTensor& tensor : file_->tensors()) {
            if (!known.contains(tensor.name))
                refuse(fmt::format("tensor '{}' is none that a SmolLM2 model has; the model is not supported",
                                   tensor.name));
        }
    }

    std::string quantisation() const override {
        std::map<std::string, uint64_t> bytes;
        for (const auto& [name, tensor] : tensors_)
            if (tensor->shape.size() == 2 && name != "model.embed_tokens.weight" && name != "lm_head.weight")
                bytes[ggml_type_name(tensor->type)] += tensor->bytes;
        return std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; })
            ->first;
    }

    uint64_t stored_bytes() const override {
        uint64_t bytes = 0;
        for (const auto& [name, tensor] : tensors_) bytes += tensor->bytes;
        return bytes;
    }

  protected:
    std::string place() const override { return file_->path(); }

    void load_rows(const std::string& name, int64_t first, int64_t count, float* out) const override {
        const GgufTensor& tensor = *tensors_.at(name);
        const bool interleaved = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        if (!interleaved) return file_->read_rows(tensor, first, count, out);

        const int64_t HS = config().HS, cols = tensor.shape[1];
        const int64_t begin = first / HS * HS, end = (first + count + HS - 1) / HS * HS;  // whole heads
        const BlockFormat& format = *block_format(tensor.type);
        const int64_t row_bytes = cols / format.elements * format.bytes;
        std::vector<uint8_t> raw(static_cast<size_t>((end - begin) * row_bytes));
        file_->read_raw(tensor, static_cast<uint64_t>(begin * row_bytes), raw.data(), raw.size());
        for (int64_t row = first; row < first + count; ++row) {
            const uint8_t* stored = raw.data() + (gguf_row(row, HS) - begin) * row_bytes;
            dequantise(static_cast<GgmlType>(tensor.type), stored, cols, out + (row - first) * cols);
        }
    }

    void hash_tensor(const std::string& name, Sha256& hash) const override {
        const GgufTensor& tensor = *tensors_.at(name);
        hash.update(fmt::format("{} {} {}\n", name, ggml_type_name(tensor.type), shape_text(tensor.shape)));
        std::vector<char> buffer(1 << 20);
        for (uint64_t done = 0; done < tensor.bytes; done += buffer.size()) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), tensor.bytes - done));
            file_->read_raw(tensor, done, buffer.data(), n);
            hash.update(buffer.data(), n);
        }
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(Exit::kBadModel, fmt::format("{}: {}", file_->path(), what));
    }

    std::shared_ptr<const GgufFile> file_;
    std::map<std::string, const GgufTensor*> tensors_;  // by HF name
};

}  // namespace

std::shared_ptr<const HostWeights> gguf_weights(std::shared_ptr<const GgufFile> file) {
    return std::make_shared<GgufWeights>(std::move(file));
}

Model open_gguf_model(const std::string& path) {
    const auto file = std::make_shared<const GgufFile>(GgufFile::open(path));
    Model model;
    model.weights = gguf_weights(file);
    model.config = model.weights->config();
    auto fields = std::make_shared<GgufTokenizerFields>(gguf_tokenizer_fields(*file));
    model.chat_template = fields->chat_template;
    model.tokenizer.gguf = std::move(fields);
    return model;
}

}  // namespace orpo
