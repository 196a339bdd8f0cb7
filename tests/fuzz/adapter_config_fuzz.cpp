// Any bytes as adapter_config.json, read beside sound tensors: rank 1 on q_proj, rank 2 on k_proj, of a model of one
// layer.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/peft_adapter.h"
#include "model/safetensors.h"

using namespace orpo;

namespace {

const std::string& tensor_file() {
    static const std::string bytes = [] {
        const std::string q = R"("base_model.model.model.layers.0.self_attn.q_proj.lora_)";
        const std::string k = R"("base_model.model.model.layers.0.self_attn.k_proj.lora_)";
        const std::string header = "{" + q + R"(A.weight":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]},)" + q +
                                   R"(B.weight":{"dtype":"F32","shape":[4,1],"data_offsets":[16,32]},)" + k +
                                   R"(A.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[32,64]},)" + k +
                                   R"(B.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[64,96]}})";
        const uint64_t length = header.size();
        std::string file(8, '\0');
        std::memcpy(file.data(), &length, 8);
        return file + header + std::string(96, '\x3f');
    }();
    return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view json(reinterpret_cast<const char*>(data), size);
    ModelConfig config;
    config.V = 4, config.C = 4, config.L = 1, config.H = 1, config.KV = 1, config.HS = 4, config.I = 4;
    try {
        const SafetensorsFile file(io::memory_reader(tensor_file(), "adapter_model.safetensors"));
        const PeftAdapter adapter = parse_peft_adapter(json, "adapter_config.json", file, config);
        if (adapter.rank < 1 || !std::isfinite(adapter.scale())) std::abort();
        if (adapter.tensors.size() != 2 * adapter.targets.size()) std::abort();
    } catch (const Error&) {
    }
    return 0;
}
