// The two forms in which a model lies on disk. Used by open_model.
#pragma once

#include <string>

#include "model/resolve.h"
#include "model/weights.h"

namespace orpo {

class GgufFile;

// Both check every tensor's name, shape and format. spec, path, hub_id and display_name are left to the caller.
Model open_gguf_model(const std::string& path);
Model open_hf_model(const std::string& directory);

// The weights alone, checked the same way.
std::shared_ptr<const HostWeights> gguf_weights(std::shared_ptr<const GgufFile> file);
// model.safetensors of the directory, or what its model.safetensors.index.json lists.
std::shared_ptr<const HostWeights> hf_weights(const ModelConfig& config, const std::string& directory);

}  // namespace orpo
