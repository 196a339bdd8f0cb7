// The CUDA side is a shared library that the program loads where it can, so that the same program starts on machines
// without a GPU driver. These are its two doors.
#pragma once

#include <memory>
#include <string>

#include "model/engine.h"

namespace orpo::cuda {

inline constexpr const char* kLibrary = "liborpo_cuda.so";
inline constexpr const char* kMakeEngine = "orpo_cuda_make_engine";
inline constexpr const char* kDescribe = "orpo_cuda_describe";

// Throws as make_engine does. index: of the device. dtype: "fp32" or "bf16".
using MakeEngine = std::unique_ptr<Engine> (*)(int index, const std::string& dtype, const ModelConfig& config,
                                               const HostWeights* weights, const EngineOptions& options);
// "NVIDIA H200, sm_90, 141 GB", or why there is none.
using Describe = std::string (*)(int index);

}  // namespace orpo::cuda
