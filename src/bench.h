// What `orpo bench` and `orpo profile` share: a model or only its shape, made-up pairs, one optimizer step, the
// ceilings of the machine.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/bench.h"
#include "kernels/cpu/cpu.h"
#include "model/bench_shapes.h"
#include "model/engine.h"
#include "model/weights.h"
#include "src/command.h"

namespace orpo {

struct BenchFlags {
    std::string model, dtype = "auto";
    int prompt_tokens = 256, response_tokens = 256, pairs = 1, steps = 5, rank = 16, micro_tokens = 0;
    std::string lengths;     // a file of "prompt chosen rejected" token counts, one pair a line; "": equal ones
    std::string memory_limit;  // bench train, of a GPU's memory; "": the whole card
    int gemm_size = 0;       // 0: 8192 on a GPU, 2048 on a CPU
    int64_t copy_bytes = 0;  // 0: 1 GiB on a GPU, 256 MiB on a CPU
    int repeats = 5;
    int cached = 512, new_tokens = 64;  // bench decode
    int layers = 1;                     // profile

    void add_model(CLI::App& app);  // --model --dtype
    // --prompt-tokens --response-tokens --pairs --lengths --lora-rank --micro-tokens
    void add_pairs(CLI::App& app);
    void add_ceilings(CLI::App& app);  // --repeats --gemm-size --copy-bytes
};

struct BenchSubject {
    std::string name;
    ModelConfig config;
    std::shared_ptr<const HostWeights> weights;
};
// A model, or "135M", "360M", "1.7B": the shape with made-up weights.
BenchSubject open_subject(const std::string& spec);
// The same with only the first `layers` layers, and made-up weights.
BenchSubject with_layers(const BenchSubject& subject, int layers);

// flags.pairs pairs of random tokens, packed into micro-batches of flags.micro_tokens; 0: a size that suits the device
// ("cpu", "cuda:i").
std::vector<MicroBatch> made_up_batches(const BenchFlags& flags, const ModelConfig& config, const std::string& device);
// All operations' shapes: the first of these micro-batches.
BenchShapes bench_shapes(const BenchFlags& flags, const ModelConfig& config, const std::string& device);

// flags.micro_tokens and what is kept for backward, as training on this GPU would choose them (src/train_plan.h).
EngineOptions plan_gpu(BenchFlags& flags, const BenchSubject& subject, const DeviceOptions& device);
EngineOptions training_options(const BenchFlags& flags, const std::vector<MicroBatch>& batches);
// Adapters away from zero, so that no product is with zeros.
void start_adapters(Engine& engine);
// Seconds of optimizer step number `step` (from 1). Error(kDiverged) when the gradient is not finite.
double run_step(Engine& engine, const std::vector<MicroBatch>& batches, int step);

DeviceOptions bench_device(const BenchFlags& flags, const Call& call);  // device and dtype resolved
Ceilings cpu_ceilings(const BenchFlags& flags, bool bf16, int threads);
// Every operation of the CPU backend at the shapes, with its ceilings.
BenchReport bench_cpu_kernels(const BenchFlags& flags, const BenchShapes& shapes, const DeviceOptions& device);
// The best of `repeats` runs on a CPU, each after the caches were emptied.
double cpu_seconds(int repeats, const std::function<void()>& work);

double seconds_since(std::chrono::steady_clock::time_point start);
int64_t peak_memory_bytes();  // high-water mark of the resident set

// The subcommands; each adds its own flags.
Exit bench_train(const BenchFlags& flags, Call& call);     // src/bench_train.cpp
Exit bench_kernels(const BenchFlags& flags, Call& call);   // src/bench_kernels.cpp
Exit bench_progress(const BenchFlags& flags, Call& call);  // src/bench_kernels.cpp
Exit bench_decode(const BenchFlags& flags, Call& call);    // src/bench_decode.cpp

}  // namespace orpo
