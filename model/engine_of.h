// Engine over any backend K.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <string>
#include <utility>
#include <vector>

#include "kernels/range.h"
#include "model/engine.h"
#include "model/engine_arrays.h"

namespace orpo {

template <Kernels K>
class EngineOf final : public Engine {
  public:
    using T = typename K::T;
    using F = typename K::F;

    // k: made with planning = options.planning.
    EngineOf(std::unique_ptr<K> k, std::string description, const ModelConfig& config, const HostWeights* weights,
             const EngineOptions& options)
        : k_(std::move(k)),
          description_(std::move(description)),
          config_(config),
          lora_(config, options.lora),
          slots_(options.slots.empty() ? std::vector<LoraSlot>{{options.lora.scale(), options.lora.dropout}}
                                       : options.slots),
          training_(options.sizes.keep != Keep::kNothing),
          arrays_(*k_, config_, weights, lora_, slots_, options.sizes) {}

    const ModelConfig& config() const override { return config_; }
    const LoraLayout& lora() const override { return lora_; }
    int slots() const override { return static_cast<int>(slots_.size()); }
    const TransformerSizes& sizes() const override { return arrays_.transformer->sizes(); }
    const MemoryTable& memory() const override { return k_->memory(); }
    std::string description() const override { return description_; }

    void train(const MicroBatch& mb, std::span<double> logp) override {
        ORPO_CHECK(training_ && logp.size() == mb.heads.size());
        k_->upload(mb, *arrays_.batch);
        tune_first("train", [&] { arrays_.transformer->train(*arrays_.batch, adapters(), arrays_.grads); });
        arrays_.transformer->train(*arrays_.batch, adapters(), arrays_.grads);
        k_->read(static_cast<int64_t>(logp.size()), arrays_.transformer->logp(), logp.data());
    }
    void evaluate(const MicroBatch& mb, std::span<double> logp) override {
        ORPO_CHECK(logp.size() == mb.heads.size());
        k_->upload(mb, *arrays_.batch);
        tune_first("evaluate", [&] { arrays_.transformer->evaluate(*arrays_.batch, adapters()); });
        arrays_.transformer->evaluate(*arrays_.batch, adapters());
        k_->read(static_cast<int64_t>(logp.size()), arrays_.transformer->logp(), logp.data());
    }

    void zero_gradients() override { k_->zero(size(), arrays_.grads); }
    std::vector<double> gradient_norms() override {
        std::vector<double> norms(slots_.size());
        const Range range(*k_, "gradient norms");
        k_->squared_norms(slots(), lora_.slot_size(), arrays_.grads, norms.data());
        for (double& norm : norms) norm = std::sqrt(norm);
        return norms;
    }
    void adamw(std::span<const AdamwSlot> slots) override {
        ORPO_CHECK(training_ && slots.size() == slots_.size());
        const Range range(*k_, "optimizer");
        k_->adamw(this->slots(), lora_.slot_size(), slots.data(), arrays_.params, arrays_.grads, arrays_.moment1,
                  arrays_.moment2);
        stale_ = true;
    }

    void read(Arena which, int slot, std::span<float> values) override {
        const F* from = at(which, slot, values.size());
        std::vector<F> host(values.size());
        k_->read(static_cast<int64_t>(host.size()), from, host.data());
        std::copy(host.begin(), host.end(), values.begin());
    }
    void write(Arena which, int slot, std::span<const float> values) override {
        F* to = at(which, slot, values.size());
        const std::vector<F> host(values.begin(), values.end());
        k_->write(static_cast<int64_t>(host.size()), host.data(), to);
        stale_ = true;
    }

    void prefill(const MicroBatch& mb) override {
        k_->upload(mb, *arrays_.batch);
        arrays_.transformer->prefill(*arrays_.batch, adapters());
    }
    void decode(const MicroBatch& mb) override {
        k_->upload(mb, *arrays_.batch);
        arrays_.transformer->decode(*arrays_.batch, adapters());
    }
    // A backend may score more rows than the batch has, to fill up sizes that it knows.
    void sample(const Draw& draw, std::span<int32_t> ids) override {
        ORPO_CHECK(static_cast<int>(ids.size()) <= arrays_.batch->heads_n);
        drawn_.resize(static_cast<size_t>(arrays_.batch->heads_n));
        k_->sample(*arrays_.batch, config_.V, arrays_.transformer->logits(), draw, drawn_.data());
        std::copy_n(drawn_.begin(), ids.size(), ids.begin());
    }
    void read_logits(std::span<float> logits) override {
        std::vector<F> host(logits.size());
        k_->read(static_cast<int64_t>(host.size()), arrays_.transformer->logits(), host.data());
        std::copy(host.begin(), host.end(), logits.begin());
    }

    bool tune(const std::string& file) override {
        if constexpr (requires { k_->tune_into(file); }) {
            k_->tune_into(file);
            return true;
        }
        return false;
    }

    K& kernels() { return *k_; }

  private:
    int64_t size() const { return arrays_.n; }
    F* at(Arena which, int slot, size_t n) {
        ORPO_CHECK(slot >= 0 && slot < slots() && static_cast<int64_t>(n) == lora_.slot_size());
        F* arena = which == Arena::kParameters  ? arrays_.params
                   : which == Arena::kGradients ? arrays_.grads
                   : which == Arena::kMoment1   ? arrays_.moment1
                                                : arrays_.moment2;
        ORPO_CHECK(arena != nullptr || n == 0);
        return arena + slot * lora_.slot_size();
    }
    // With --tune: the products of sizes that are new are timed before they count.
    template <class Run>
    void tune_first(const std::string& name, const Run& run) {
        if constexpr (requires { k_->untuned(name, *arrays_.batch); }) {
            if (!k_->untuned(name, *arrays_.batch)) return;
            std::vector<F> kept(training_ ? static_cast<size_t>(size()) : 0);  // gradients so far
            if (training_) k_->read(size(), arrays_.grads, kept.data());
            k_->tune(name, *arrays_.batch, run);
            if (training_) k_->write(size(), kept.data(), arrays_.grads);
        }
    }
    // The parameters as the kernels read them: the masters, or their copy in T after a change.
    const T* adapters() {
        const T* current;
        if constexpr (std::same_as<T, F>) {
            current = arrays_.params;
        } else {
            if (stale_) k_->cast(size(), arrays_.params, arrays_.compute);
            current = arrays_.compute;
        }
        if constexpr (kBorders<K>)
            if (stale_) k_->refresh_borders(current);
        stale_ = false;
        return current;
    }
    std::unique_ptr<K> k_;
    std::string description_;
    ModelConfig config_;
    LoraLayout lora_;
    std::vector<LoraSlot> slots_;
    bool training_;
    EngineArrays<K> arrays_;
    bool stale_ = true;
    std::vector<int32_t> drawn_;
};

}  // namespace orpo
