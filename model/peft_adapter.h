// LoRA adapters in PEFT's form: a directory with adapter_config.json and adapter_model.safetensors
// (https://github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md).
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace orpo {

class SafetensorsFile;

struct AdapterMatrix {
    int64_t rows = 0, cols = 0;
    std::vector<float> values;  // (rows, cols)
};

struct PeftAdapter {
    int rank = 0;      // r
    double alpha = 0;  // lora_alpha; the scale is alpha / r, or alpha / sqrt(r) with rslora
    bool rslora = false;
    double dropout = 0;
    std::vector<std::string> targets;  // of "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    // Ranks or alphas differed by module: they were brought to one rank and scale by rows of zeros and by scaling B,
    // which computes the same, but a module's learning rate is no longer what it was.
    bool folded = false;
    std::string base_name;         // base_model_name_or_path
    std::string base_fingerprint;  // HostWeights::fingerprint() of the base it was trained on; "" when unknown
    std::string base_quant;        // HostWeights::quantisation() of that base; "" when unknown

    // Keys: "model.layers.0.self_attn.q_proj.lora_A" (R, in) and "....lora_B" (out, R): HF's module path plus the side.
    // (In the file: "base_model.model." + key + ".weight".)
    std::map<std::string, AdapterMatrix> tensors;

    double scale() const;
};

// Key into PeftAdapter::tensors; side is 'A' or 'B'.
std::string adapter_key(int layer, Linear linear, char side);

// Reads and checks against the model's shape. target_modules may be a list, "all-linear" or a regular expression (then
// the tensors say what is adapted). Layers that layers_to_transform or the targets leave out are filled with zeros,
// which stay zero in training. Refused with Error(kBadModel) that names file, field and remedy: other PEFT types, DoRA,
// biases, modules_to_save, initialisations that change the base (PiSSA, OLoRA, LoftQ), unknown or missing tensors,
// other shapes, non-finite values.
PeftAdapter read_peft_adapter(const std::string& directory, const ModelConfig& config);
// The same from the files' contents. `file`: the path of adapter_config.json, for messages.
PeftAdapter parse_peft_adapter(std::string_view json, const std::string& file, const SafetensorsFile& tensors,
                               const ModelConfig& config);

// Writes adapter_config.json and adapter_model.safetensors (F32) into `directory`, each atomically, the configuration
// last. The directory is made when it is missing.
void write_peft_adapter(const std::string& directory, const PeftAdapter& adapter);

}  // namespace orpo
