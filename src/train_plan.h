// How a run is laid out in memory, decided and printed before anything large is allocated.
#pragma once

#include <cstdint>
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

// config.micro_batch_tokens, device and dtype are resolved in `setup`. When not even the leanest plan fits:
// Error(kMemory) that says what is needed and which flag lowers it.
TrainPlan plan_training(TrainSetup& setup);

// A table by category, and the peak.
std::string plan_text(const TrainPlan& plan);

}  // namespace orpo
