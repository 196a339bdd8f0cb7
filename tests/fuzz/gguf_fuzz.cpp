// Any bytes as a GGUF file: opened, understood as a model and as a tokenizer, every tensor dequantised.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "model/gguf.h"
#include "model/model_files.h"
#include "model/tokenizer_spec.h"

using namespace orpo;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    std::shared_ptr<const GgufFile> file;
    try {
        file = std::make_shared<const GgufFile>(io::memory_reader(bytes, "fuzz.gguf"));
    } catch (const Error&) {
        return 0;
    }
    // Whatever was accepted lies inside the file and can be read whole.
    for (const GgufTensor& tensor : file->tensors()) {
        if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
        try {
            std::vector<float> values(static_cast<size_t>(tensor.elements()));
            file->read_rows(tensor, 0, tensor.elements() / tensor.shape.back(), values.data());
        } catch (const Error&) {
        }
    }
    try {
        gguf_tokenizer_fields(*file);
    } catch (const Error&) {
    }
    try {
        const auto weights = gguf_weights(file);
        for (const TensorShape& tensor : model_tensors(weights->config())) {
            const Shape2 shape = weights->shape(tensor.name);
            std::vector<float> values(static_cast<size_t>(shape.rows * shape.cols));
            weights->read(tensor.name, values.data());
        }
        weights->fingerprint();
    } catch (const Error&) {
    }
    return 0;
}
