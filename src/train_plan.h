// How a run is laid out in memory, decided and printed before anything large is allocated.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "model/engine.h"
#include "src/train_setup.h"

namespace orpo {

struct TrainPlan {
    DeviceOptions device;
    EngineOptions engine;
    int max_tokens = 0;      // tokens of a micro-batch
    MemoryTable memory;      // of the engine
    int64_t rest_bytes = 0;  // the program itself, data, copies while saving
    int64_t peak_bytes() const { return memory.bytes() + rest_bytes; }
};

struct PlanSizes {
    int64_t rows = 0;       // tokens, and head rows, of the largest micro-batch
    int64_t positions = 0;  // tokens of the longest sequence
};
// sizes_of(budget): what micro-batches of at most `budget` tokens need; longest: tokens of the longest pair. The
// fastest plan that leaves 5 % of `available` bytes free. resident: what the program takes already.
TrainPlan choose_plan(TrainConfig& config, const ModelConfig& model, int64_t longest,
                      const std::function<PlanSizes(int64_t budget)>& sizes_of, int64_t resident, int64_t available);

// config.micro_batch_tokens, device and dtype are resolved in `setup`. When not even the leanest plan fits:
// Error(kMemory) that says what is needed and which flag lowers it.
TrainPlan plan_training(TrainSetup& setup);

// A table by category, and the peak.
std::string plan_text(const TrainPlan& plan);

}  // namespace orpo
