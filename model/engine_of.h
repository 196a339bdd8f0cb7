// Engine over any backend K.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <string>
#include <utility>
#include <vector>

#include "kernels/range.h"
#include "model/base_weights.h"
#include "model/engine.h"
#include "model/transformer.h"

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
          slots_(options.slots),
          training_(options.sizes.keep != Keep::kNothing) {
        if (slots_.empty()) slots_ = {{options.lora.scale(), options.lora.dropout}};
        const int64_t n = size();
        base_ = load_base(*k_, config, weights, training_);
        params_ = k_->template allocate<F>(Category::kAdapters, "parameters", n);
        k_->zero(n, params_);
        if constexpr (!std::same_as<T, F>)
            compute_ = k_->template allocate<T>(Category::kAdapters, "parameters, compute copy", n);
        if (training_) {
            grads_ = k_->template allocate<F>(Category::kGradients, "gradients", n);
            moment1_ = k_->template allocate<F>(Category::kOptimizer, "first moments", n);
            moment2_ = k_->template allocate<F>(Category::kOptimizer, "second moments", n);
            for (F* arena : {grads_, moment1_, moment2_}) k_->zero(n, arena);
        }
        transformer_ = std::make_unique<Transformer<K>>(*k_, config_, base_, lora_, slots_, options.sizes);
        const int pairs = std::max(1, options.sizes.tokens);
        batch_ = std::make_unique<typename K::Batch>(k_->make_batch(options.sizes.tokens, pairs, options.sizes.heads));
    }

    const ModelConfig& config() const override { return config_; }
    const LoraLayout& lora() const override { return lora_; }
    int slots() const override { return static_cast<int>(slots_.size()); }
    const TransformerSizes& sizes() const override { return transformer_->sizes(); }
    const MemoryTable& memory() const override { return k_->memory(); }
    std::string description() const override { return description_; }

    void train(const MicroBatch& mb, std::span<double> logp) override {
        ORPO_CHECK(training_ && logp.size() == mb.heads.size());
        k_->upload(mb, *batch_);
        transformer_->train(*batch_, adapters(), grads_);
        k_->read(static_cast<int64_t>(logp.size()), transformer_->logp(), logp.data());
    }
    void evaluate(const MicroBatch& mb, std::span<double> logp) override {
        ORPO_CHECK(logp.size() == mb.heads.size());
        k_->upload(mb, *batch_);
        transformer_->evaluate(*batch_, adapters());
        k_->read(static_cast<int64_t>(logp.size()), transformer_->logp(), logp.data());
    }

    void zero_gradients() override { k_->zero(size(), grads_); }
    std::vector<double> gradient_norms() override {
        std::vector<double> norms(slots_.size());
        const Range range(*k_, "gradient norms");
        k_->squared_norms(slots(), lora_.slot_size(), grads_, norms.data());
        for (double& norm : norms) norm = std::sqrt(norm);
        return norms;
    }
    void adamw(std::span<const AdamwSlot> slots) override {
        ORPO_CHECK(training_ && slots.size() == slots_.size());
        const Range range(*k_, "optimizer");
        k_->adamw(this->slots(), lora_.slot_size(), slots.data(), params_, grads_, moment1_, moment2_);
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
        k_->upload(mb, *batch_);
        transformer_->prefill(*batch_, adapters());
    }
    void decode(const MicroBatch& mb) override {
        k_->upload(mb, *batch_);
        transformer_->decode(*batch_, adapters());
    }
    // A backend may score more rows than the batch has, to fill up sizes that it knows.
    void sample(const Draw& draw, std::span<int32_t> ids) override {
        ORPO_CHECK(static_cast<int>(ids.size()) <= batch_->heads_n);
        drawn_.resize(static_cast<size_t>(batch_->heads_n));
        k_->sample(*batch_, config_.V, transformer_->logits(), draw, drawn_.data());
        std::copy_n(drawn_.begin(), ids.size(), ids.begin());
    }
    void read_logits(std::span<float> logits) override {
        std::vector<F> host(logits.size());
        k_->read(static_cast<int64_t>(host.size()), transformer_->logits(), host.data());
        std::copy(host.begin(), host.end(), logits.begin());
    }

    K& kernels() { return *k_; }

  private:
    int64_t size() const { return static_cast<int64_t>(slots_.size()) * lora_.slot_size(); }
    F* at(Arena which, int slot, size_t n) {
        ORPO_CHECK(slot >= 0 && slot < slots() && static_cast<int64_t>(n) == lora_.slot_size());
        F* arena = which == Arena::kParameters  ? params_
                   : which == Arena::kGradients ? grads_
                   : which == Arena::kMoment1   ? moment1_
                                                : moment2_;
        ORPO_CHECK(arena != nullptr || n == 0);
        return arena + slot * lora_.slot_size();
    }
    // The parameters as the kernels read them: the masters, or their copy in T after a change.
    const T* adapters() {
        if constexpr (std::same_as<T, F>) {
            return params_;
        } else {
            if (stale_) k_->cast(size(), params_, compute_);
            stale_ = false;
            return compute_;
        }
    }
    std::unique_ptr<K> k_;
    std::string description_;
    ModelConfig config_;
    LoraLayout lora_;
    std::vector<LoraSlot> slots_;
    bool training_;
    BaseWeights<K> base_;
    F *params_ = nullptr, *grads_ = nullptr, *moment1_ = nullptr, *moment2_ = nullptr;
    T* compute_ = nullptr;
    bool stale_ = true;
    std::vector<int32_t> drawn_;
    std::unique_ptr<Transformer<K>> transformer_;
    std::unique_ptr<typename K::Batch> batch_;
};

}  // namespace orpo
