// How a run is laid out in memory, decided and printed before anything large is allocated.
//
// On the CPU the plan fits what is free. On a GPU it depends on the card's whole memory (or --memory-limit) and never
// on what happens to be free, so that the same command makes the same micro-batches every time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/engine.h"
#include "src/train_setup.h"

namespace orpo {

// Enough rows to keep a GPU's products at their best rate; more only costs memory.
inline constexpr int64_t kMostGpuTokens = 16384;

struct TrainPlan {
    DeviceOptions device;
    EngineOptions engine;
    int max_tokens = 0;        // tokens of a micro-batch
    MemoryTable memory;        // of the engine
    int64_t device_bytes = 0;  // of a GPU: CUDA's context and the products' workspace
    int64_t rest_bytes = 0;    // of main memory: the program itself, data, copies while saving
    bool gpu() const { return device.device != "cpu"; }
    // Of the device's memory.
    int64_t peak_bytes() const { return memory.bytes() + (gpu() ? device_bytes : rest_bytes); }

    // On a GPU: what each way to keep activations allows, and the peak at that size.
    struct Mode {
        Keep keep = Keep::kActivations;
        int64_t most_tokens = 0, peak_bytes = 0;  // 0: not even the longest pair
    };
    std::vector<Mode> modes;
};

struct PlanSizes {
    int64_t rows = 0;       // tokens, and head rows, of the largest micro-batch
    int64_t positions = 0;  // tokens of the longest sequence
};
struct PlanRoom {
    int64_t resident = 0;   // main memory that the program takes already
    int64_t available = 0;  // bytes: on the CPU free ones, on a GPU the whole card's
};
// config.device and config.dtype are resolved. sizes_of(budget): what micro-batches of at most `budget` tokens need;
// longest: tokens of the longest pair. config.memory_limit caps the plan: on a GPU its arrays, on the CPU the peak.
//   CPU: the fastest plan that leaves 5 % of what is available free.
//   GPU: the way to keep activations that costs least time, with the largest micro-batch that fits (at most
//        kMostGpuTokens): everything, if a micro-batch of full size fits so; else the first way that has room for 4096
//        tokens, for 2048, for the longest pair.
// Error(kMemory) that says what is needed and which flag mends it.
TrainPlan choose_plan(TrainConfig& config, const ModelConfig& model, int64_t longest,
                      const std::function<PlanSizes(int64_t budget)>& sizes_of, const PlanRoom& room);

// config.micro_batch_tokens, device and dtype are resolved in `setup`.
TrainPlan plan_training(TrainSetup& setup);

// "norms and SwiGLU", ...: what backward makes again.
const char* made_again(Keep keep);

// A table by category, and the peak.
std::string plan_text(const TrainPlan& plan);

}  // namespace orpo
