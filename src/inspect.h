// What a file or directory is, and whether it is sound.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace orpo {

struct Inspection {
    std::string kind;              // "model", "adapter", "checkpoint", "run", "safetensors file", "data"
    nlohmann::ordered_json facts;  // name -> string or number, for people in this order
    std::vector<std::string> notes;
    std::vector<std::string> faults;  // empty: sound
};

// path: as --model takes it, or an adapter, checkpoint, run, safetensors or data file. model: what an adapter or data
// file is checked against, "" for the adapter's own base or the default model, where there is one.
// Reads every byte. What is wrong beyond use is thrown as the Error that training would give.
Inspection inspect(const std::string& path, const std::string& model);

}  // namespace orpo
