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

// The same for one file's contents, however it was read. Without tokenizer.
std::shared_ptr<const HostWeights> gguf_weights(std::shared_ptr<const GgufFile> file);

}  // namespace orpo
