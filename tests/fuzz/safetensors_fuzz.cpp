// Any bytes as a safetensors file, as an index of shards and as the tensors of an adapter.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "model/peft_adapter.h"
#include "model/safetensors.h"

using namespace orpo;

namespace {

// Small enough that a fuzzer finds whole adapters: C 4, H 1, KV 1, HS 4, I 4, one layer.
ModelConfig small_config() {
    ModelConfig c;
    c.V = 4, c.C = 4, c.L = 1, c.H = 1, c.KV = 1, c.HS = 4, c.I = 4;
    return c;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    try {
        for (const auto& [tensor, file] : parse_safetensors_index(bytes, "fuzz.index.json"))
            if (file.find('/') != std::string::npos) std::abort();
    } catch (const Error&) {
    }
    try {
        const SafetensorsFile file(io::memory_reader(bytes, "fuzz.safetensors"));
        uint64_t end = 0;
        for (const SafetensorsEntry& entry : file.entries()) {
            if (entry.begin != end) std::abort();  // no holes, no overlaps
            end = entry.end;
            std::vector<float> values(static_cast<size_t>(entry.elements()));
            file.read(entry, values.data());
            if (file.find(entry.name) != &entry) std::abort();
        }
        if (end > size) std::abort();
        const char* config =
            R"({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ".*", "rank_pattern": {"k_proj": 2}})";
        parse_peft_adapter(config, "adapter_config.json", file, small_config());
    } catch (const Error&) {
    }
    return 0;
}
