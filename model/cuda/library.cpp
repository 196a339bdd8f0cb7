// The CUDA library's doors: the engine over the CUDA backend. Built into liborpo_cuda.so, loaded by model/devices.cpp.
#include "base/error.h"
#include "kernels/cuda/cuda.h"
#include "model/cuda/entry.h"
#include "model/devices.h"
#include "model/engine_of.h"

namespace orpo::cuda {

namespace {

template <class T>
std::unique_ptr<Engine> engine(int index, const std::string& dtype, const ModelConfig& config,
                               const HostWeights* weights, const EngineOptions& options) {
    ORPO_CHECK(!options.planning);
    const MemoryTable plan = plan_memory({"cuda:" + std::to_string(index), dtype, 0}, config, options);
    std::shared_ptr<Device> device = Device::open(index);
    const DeviceInfo& card = device->info();
    if (plan.bytes() > usable_bytes(card.bytes))
        throw Error(Exit::kMemory, "this needs " + std::to_string(plan.bytes() >> 20) + " MiB of GPU memory, and " +
                                       card.name + " has room for " + std::to_string(usable_bytes(card.bytes) >> 20) +
                                       "; lower --micro-batch-tokens or --max-length, or use --device cpu");
    const std::string description = card.name + ", " + dtype;
    return std::make_unique<EngineOf<Cuda<T>>>(std::make_unique<Cuda<T>>(std::move(device), &plan), description, config,
                                               weights, options);
}

}  // namespace

extern "C" std::unique_ptr<Engine> orpo_cuda_make_engine(int index, const std::string& dtype, const ModelConfig& config,
                                                         const HostWeights* weights, const EngineOptions& options) {
    if (dtype == "fp32") return engine<float>(index, dtype, config, weights, options);
    return engine<bf16>(index, dtype, config, weights, options);
}

extern "C" DeviceInfo orpo_cuda_look(int index) { return Device::look(index); }

}  // namespace orpo::cuda
