// Which device a run computes on. The CUDA side is a library (liborpo_cuda.so) that is loaded when a GPU is wanted:
// next to the program, or where ORPO_CUDA_LIBRARY says.
#pragma once

#include <memory>
#include <string>

#include "kernels/bf16.h"
#include "model/cuda/entry.h"
#include "model/engine.h"

namespace orpo {

// wanted: "auto", "cpu", "cuda" or "cuda:i". Gives "cpu" or "cuda:i": auto takes the first GPU when the library loads
// and finds one. A GPU that was asked for by name and is not there: Error(kNoDevice) that says why.
std::string resolve_device(const std::string& wanted);

// device as above or "cuda:i"; "auto" becomes "bf16" on a GPU and on processors with AMX, "fp32" elsewhere.
// Another word than these three: Error(kUsage).
std::string resolve_dtype(const std::string& wanted, const std::string& device);
// f(float{}) or f(bf16{}): what a resolved dtype stores activations in.
template <class Function>
auto with_dtype(const std::string& resolved, const Function& f) {
    return resolved == "bf16" ? f(bf16{}) : f(float{});
}

// One line for people: "NVIDIA H200, sm_90, 143771 MiB", or why there is no GPU to compute on.
std::string describe_cuda();

// Bytes of the GPU's memory in all, "cuda:i". Error(kNoDevice) that says why there is none.
int64_t device_bytes(const std::string& device);

// The table of an engine with these options, from shapes alone: a GPU, and the CUDA library, need not be there.
MemoryTable plan_memory(const DeviceOptions& device, const ModelConfig& config, EngineOptions options);

// The engine over the CUDA library. device: "cuda:i".
std::unique_ptr<Engine> make_cuda_engine(const DeviceOptions& device, const ModelConfig& config,
                                         const HostWeights* weights, const EngineOptions& options);

// The library's benchmarks and its one profiled step (model/cuda/entry.h). device: "cuda:i".
BenchReport bench_cuda(const std::string& device, const cuda::BenchRequest& request);
double profile_cuda(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                    const EngineOptions& options, const MicroBatch& batch);

}  // namespace orpo
