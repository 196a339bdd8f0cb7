// What training, evaluation and generation ask of a device, whatever it is: the one seam with virtual functions,
// because a CUDA engine lives in a library that is loaded only where it can be. Behind it stands Transformer<K>
// (transformer.h).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/batch.h"
#include "kernels/kernels.h"
#include "kernels/memory.h"
#include "model/config.h"
#include "model/lora.h"
#include "model/transformer_sizes.h"
#include "model/weights.h"

namespace orpo {

struct EngineOptions {
    LoraConfig lora;              // shapes: largest rank and the targets; no target: the base alone
    std::vector<LoraSlot> slots;  // one per adapter; empty: one slot with lora's scale and dropout
    TransformerSizes sizes;
    bool planning = false;  // fill memory() only: nothing is allocated or read
};

// The flat arenas of the adapters, each (slots, slot_size) fp32.
enum class Arena { kParameters, kGradients, kMoment1, kMoment2 };

class Engine {
  public:
    virtual ~Engine() = default;

    virtual const ModelConfig& config() const = 0;
    virtual const LoraLayout& lora() const = 0;
    virtual int slots() const = 0;
    virtual const TransformerSizes& sizes() const = 0;
    virtual const MemoryTable& memory() const = 0;
    virtual std::string description() const = 0;  // "CPU fp32, 2 threads, AVX-512"

    // One micro-batch: adds d(loss)/d(adapters) to the gradients. logp: (heads) log-probability of each head row's
    // target.
    virtual void train(const MicroBatch& mb, std::span<double> logp) = 0;
    // The log-probabilities alone, without dropout.
    virtual void evaluate(const MicroBatch& mb, std::span<double> logp) = 0;

    // Times the device's algorithms for every shape of product when it is first met, and keeps the choices in `file`;
    // those that stand there are taken. false: this device has no choice to make.
    virtual bool tune(const std::string& file) = 0;

    virtual void zero_gradients() = 0;
    virtual std::vector<double> gradient_norms() = 0;  // L2 over each slot; NaN and infinity show here
    virtual void adamw(std::span<const AdamwSlot> slots) = 0;

    // One slot of an arena, slot_size floats, in LoraLayout's order.
    virtual void read(Arena arena, int slot, std::span<float> values) = 0;
    virtual void write(Arena arena, int slot, std::span<const float> values) = 0;

    // Generation (sizes.sequences > 0). A row's sequence is its pair's pair_in_batch. Whole prompts, or one new row of
    // each sequence, go through; then the tokens that follow are drawn, ids: (heads), or logits are read: (heads, V).
    virtual void prefill(const MicroBatch& mb) = 0;
    virtual void decode(const MicroBatch& mb) = 0;
    virtual void sample(const Draw& draw, std::span<int32_t> ids) = 0;
    virtual void read_logits(std::span<float> logits) = 0;
};

// device: "cpu" or "cuda:i"; dtype: "auto", "fp32" or "bf16"; threads: 0 = all cores. weights may be null while
// planning.
struct DeviceOptions {
    std::string device = "cpu";
    std::string dtype = "fp32";
    int threads = 0;
};
std::unique_ptr<Engine> make_engine(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                                    const EngineOptions& options);

}  // namespace orpo
