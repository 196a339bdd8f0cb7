// adapter_config.json of PEFT, understood as far as it decides what a LoRA adapter computes. Used by read_peft_adapter.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace orpo {

struct PeftConfig {
    std::string file;  // path, for messages
    int rank = 0;
    double alpha = 0;
    bool rslora = false;
    double dropout = 0;
    std::string base_name;
    // target_modules: a list of names or ends of names; nullopt when it is a regular expression, and the stored tensors
    // have to say what is adapted. "all-linear" is the list of the seven.
    std::optional<std::vector<std::string>> targets;
    std::vector<std::string> excluded;
    std::optional<std::vector<int64_t>> layers;                 // layers_to_transform
    std::vector<std::pair<std::string, double>> ranks, alphas;  // rank_pattern, alpha_pattern, first match counts

    // module: "model.layers.0.self_attn.q_proj". Whether PEFT adapts it; nullopt: only the tensors know.
    std::optional<bool> adapts(std::string_view module, int layer) const;
    double rank_of(std::string_view module) const;
    double alpha_of(std::string_view module) const;
};

// Error(kBadModel) for everything that is not plain LoRA.
PeftConfig parse_peft_config(std::string_view json, const std::string& file);

}  // namespace orpo
