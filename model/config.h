// The shape of a model: what config.json (Hugging Face) and GGUF metadata say about it, checked.
// Supported: LlamaForCausalLM with SmolLM2's traits (no biases, SiLU, plain RoPE). Everything else is an
// Error(kBadModel) that names the field and the remedy, because a guess would train quietly wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orpo {

struct ModelConfig {
    int V = 0;   // vocabulary
    int C = 0;   // hidden size, the residual stream
    int L = 0;   // layers
    int H = 0;   // query heads
    int KV = 0;  // key/value heads, H % KV == 0
    int HS = 0;  // head size
    int I = 0;   // MLP intermediate size
    double rope_theta = 0;
    double rms_eps = 0;
    int max_positions = 0;
    bool tie_embeddings = true;
    int bos = -1, eos = -1, pad = -1;  // token ids, -1: none
    std::string name;                  // for people: "SmolLM2-135M-Instruct"

    bool operator==(const ModelConfig&) const = default;
};

// The weights that every layer has, by the HF names inside "model.layers.N.": the seven linears that LoRA can adapt.
// Order: the order of use in the forward pass.
enum class Linear { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLinears = 7;
std::string_view linear_name(Linear linear);  // "q_proj"
std::string_view linear_path(Linear linear);  // "self_attn.q_proj"

struct Shape2 {
    int64_t rows = 0;  // out features
    int64_t cols = 0;  // in features
    bool operator==(const Shape2&) const = default;
};
Shape2 linear_shape(const ModelConfig& config, Linear linear);

struct TensorShape {
    std::string name;            // HF name
    std::vector<int64_t> shape;  // (rows, cols) or (n)
};
// Every tensor that a model of this shape has, HF names, in the order of the forward pass.
// lm_head.weight only when the embeddings are not tied.
std::vector<TensorShape> model_tensors(const ModelConfig& config);
int64_t parameter_count(const ModelConfig& config);  // tied embeddings counted once

// `json`: the text of config.json; `file`: its path, for messages.
// `generation_json`: the text of generation_config.json or "", whose eos counts when config.json has
// none or several.
ModelConfig parse_hf_config(std::string_view json, const std::string& file, std::string_view generation_json = "");
// The text of a config.json that every transformers version reads (old spelling). dtype: of the weights beside it,
// "bfloat16", "float32", "float16".
std::string hf_config_json(const ModelConfig& config, std::string_view dtype = "bfloat16");

// Shapes of the official models: "135M", "360M", "1.7B", also with "SmolLM2-" before or "-Instruct" behind; case does
// not matter. Returns false when `size` is none of them.
bool official_config(std::string_view size, ModelConfig* out);

// Checks what both readers share (positive, consistent, within caps). Error(kBadModel) in `file`.
void check_config(const ModelConfig& config, const std::string& file);

}  // namespace orpo
