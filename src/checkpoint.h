// Checkpoints: everything that a run needs to go on as if it had never stopped.
//
//   checkpoints/step-N/adapter/        the adapter in PEFT form, for use elsewhere
//   checkpoints/step-N/state.f32       masters | m | v [| masters of the best evaluation]: little-endian fp32, (n) each
//   checkpoints/step-N/manifest.json   step, place in the data order, best evaluation, what the run was made of, and
//                                      size and SHA-256 of every other file and of itself; written last
//
// A checkpoint is written under a temporary name, brought to disk and renamed: it is there whole or not at all, and
// what was damaged later is noticed when it is read. There is no random state: order and dropout are functions of the
// seed.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace orpo {

using Json = nlohmann::ordered_json;
struct PeftAdapter;

struct Checkpoint {
    int64_t step = 0;      // optimizer steps done
    int64_t epoch = 0;     // epoch of the next step
    int64_t position = 0;  // pairs of that epoch's order which are done
    Json trainer;          // the trainer's own small values: metrics at step 0, best metric, time spent, ...
    Json identity;         // what the run was made of: configuration, fingerprints, build, device

    // (n) each; best is empty when there is no best evaluation yet or it is this step's.
    std::vector<float> masters, m, v, best;
};

// What is saved without copying it first.
struct CheckpointView {
    int64_t step = 0, epoch = 0, position = 0;
    const Json* trainer = nullptr;
    const Json* identity = nullptr;
    std::span<const float> masters, m, v, best;
};

std::string checkpoint_path(const std::string& run, int64_t step);
// Steps that have a directory under run/checkpoints, ascending, sound or not.
std::vector<int64_t> list_checkpoints(const std::string& run);

// Replaces a checkpoint of the same step. Error(kIo) leaves every other checkpoint as it was.
void save_checkpoint(const std::string& run, const CheckpointView& state, const PeftAdapter& adapter);

// Bytes that save_checkpoint will need for n parameters.
inline uint64_t checkpoint_bytes(int64_t n) { return static_cast<uint64_t>(n) * 4 * 5 + (1 << 16); }

// Reads and checks every byte. Error(kCannotResume) names the file and what is wrong with it.
Checkpoint load_checkpoint(const std::string& directory);

// The newest sound one; what is passed over is handed to `warn`. nullopt: there is none at all. Only damaged ones:
// Error(kCannotResume).
std::optional<Checkpoint> newest_checkpoint(const std::string& run,
                                            const std::function<void(const std::string&)>& warn);

// Removes all but the newest `keep` (0: keeps all), and what interrupted writers left.
void prune_checkpoints(const std::string& run, int64_t keep);

}  // namespace orpo
