// The CUDA library's doors: the engine over the CUDA backend. Built into liborpo_cuda.so, loaded by model/engine.cpp.
#include <memory>
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda.h"
#include "model/cuda/entry.h"
#include "model/engine_of.h"

namespace orpo::cuda {

namespace {

// The share of a card's memory that a plan may fill: the rest is the driver's, the context's and the libraries'.
constexpr double kUsable = 0.95;

template <class T>
std::unique_ptr<Engine> engine(int index, const std::string& dtype, const ModelConfig& config,
                               const HostWeights* weights, const EngineOptions& options) {
    EngineOptions planning = options;
    planning.planning = true;
    auto plan = std::make_unique<EngineOf<Cuda<T>>>(std::make_unique<Cuda<T>>(nullptr, nullptr), "CUDA " + dtype, config,
                                                    nullptr, planning);
    if (options.planning) return plan;
    std::shared_ptr<Device> device = Device::open(index);
    const int64_t needed = plan->memory().bytes();
    if (static_cast<double>(needed) > kUsable * static_cast<double>(device->info().bytes))
        throw Error(Exit::kMemory, "the run needs " + std::to_string(needed >> 20) + " MiB of GPU memory and " +
                                       device->info().name + " has " + std::to_string(device->info().bytes >> 20) +
                                       " MiB; lower --micro-batch-tokens or --max-length");
    const std::string description = device->info().name + ", " + dtype;
    return std::make_unique<EngineOf<Cuda<T>>>(std::make_unique<Cuda<T>>(device, &plan->memory()), description, config,
                                               weights, options);
}

}  // namespace

extern "C" std::unique_ptr<Engine> orpo_cuda_make_engine(int index, const std::string& dtype, const ModelConfig& config,
                                                         const HostWeights* weights, const EngineOptions& options) {
    if (dtype == "fp32") return engine<float>(index, dtype, config, weights, options);
    return engine<bf16>(index, dtype, config, weights, options);
}

extern "C" std::string orpo_cuda_describe(int index) {
    const std::unique_ptr<Device> device = Device::open(index);
    return device->info().name + ", " + std::to_string(device->info().bytes >> 20) + " MiB";
}

}  // namespace orpo::cuda
