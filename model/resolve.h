// From what a user writes after --model to a path.
#pragma once

#include <string>
#include <vector>

namespace orpo {

struct ResolvedModel {
    std::string path;    // a directory with config.json, or a .gguf file
    std::string hub_id;  // when it came from the hub cache or is one of the official ones in our cache, else ""
    bool is_gguf = false;
};

// spec: a directory with config.json and safetensors, a .gguf file, a hub id ("HuggingFaceTB/SmolLM2-360M") found in
// the Hugging Face cache, or the bare name of an official model ("SmolLM2-135M-Instruct", "135M") found in any cache.
// "": $ORPO_MODEL, else find_default_model(). Not found: Error(kBadModel) that lists where it looked and the remedy.
ResolvedModel resolve_model(const std::string& spec);

// The first official model found in the caches: Instruct 135M, 360M, 1.7B, then the base ones. For each: our own cache
// first, then the hub's. Error(kBadModel) with the command that gets one when there is none.
ResolvedModel find_default_model();

// $XDG_CACHE_HOME/orpo or ~/.cache/orpo; downloaded models are in its "models/".
std::string cache_dir();

}  // namespace orpo
