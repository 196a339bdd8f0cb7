// The CUDA side is a shared library that the program loads where it can, so that the same program starts on machines
// without a GPU driver. These are its doors.
#pragma once

#include <memory>
#include <string>

#include "kernels/bench.h"
#include "kernels/cuda/device.h"
#include "model/bench_shapes.h"
#include "model/engine.h"

namespace orpo::cuda {

inline constexpr const char* kLibrary = "liborpo_cuda.so";
inline constexpr const char* kMakeEngine = "orpo_cuda_make_engine";
inline constexpr const char* kLook = "orpo_cuda_look";
inline constexpr const char* kBench = "orpo_cuda_bench";
inline constexpr const char* kProfile = "orpo_cuda_profile";

// Throws as make_engine does. index: of the device. dtype: "fp32" or "bf16". Plans are made without the library.
using MakeEngine = std::unique_ptr<Engine> (*)(int index, const std::string& dtype, const ModelConfig& config,
                                               const HostWeights* weights, const EngineOptions& options);
// Error(kNoDevice) that says why there is none.
using Look = DeviceInfo (*)(int index);

struct BenchRequest {
    enum class What {
        kCeilings,  // copy bandwidth and product rate alone
        kKernels,   // and every operation of the backend at `shapes`
        kProgress,  // and every version of kernels/progress/, compared with the reference first
    };
    What what = What::kCeilings;
    std::string dtype = "bf16";  // of kKernels and of the product; kernels/progress/ is bf16
    BenchShapes shapes;
    int repeats = 10;
    int gemm_size = 8192;                   // the ceiling's product: this cubed
    int64_t copy_bytes = int64_t{1} << 30;  // the ceiling's copy
};
using Bench = BenchReport (*)(int index, const BenchRequest& request);

// One optimizer step between the profiler's start and stop, after one that warms up, both without graphs, so that a
// profiler sees every kernel in its named range. Returns its seconds.
using Profile = double (*)(int index, const std::string& dtype, const ModelConfig& config, const HostWeights* weights,
                           const EngineOptions& options, const MicroBatch& batch);

}  // namespace orpo::cuda
