// SmolLM2 (Llama) forward and backward by hand, for LoRA parameters only: the base never gets a gradient. K is a
// backend of kernels/kernels.h; the same lines run on every one.
//
//   x = E[ids]                                              (N, C)
//   per layer:  n1 = rmsnorm(x);   qkv = n1 Wqkv^T + lora;  rope(q, k);  o = attention(qkv)
//               x2 = x + o Wo^T + lora
//               n2 = rmsnorm(x2);  gu = n2 Wgu^T + lora;    h = silu(g) u
//               x' = x2 + h Wd^T + lora
//   head:       logits = rmsnorm(x)[rows] W^T, one pass: log-probabilities, then U = (softmax - onehot) W
//
// Where T is narrower than F, forward's stream x, x2, x', ... carries in low_ what rounding to T cuts off: without it
// bf16 adds up the errors of 2 L additions. Backward reads x and x2 as they were rounded, one rounding each.
//
// A backend that can multiplies [x | S] by [W | B] in one go (kernels.h, Borders): where a weight has a border, the
// rows of its x (or dy) lie further apart, and S (or dS) stands behind each.
//
// Kept for backward, per layer and token: x, qkv, o, x2, gu, the lora S's, and a few scalars; norms and h are made
// again. Keep says how much less may be kept. Evaluation keeps one layer's buffers and uses them for every layer.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/kernels.h"
#include "kernels/range.h"
#include "kernels/rope_table.h"
#include "model/base_weights.h"
#include "model/borders.h"
#include "model/lora.h"
#include "model/transformer_sizes.h"

namespace orpo {

template <class K>
class Transformer {
  public:
    using T = typename K::T;
    using F = typename K::F;
    using Batch = typename K::Batch;

    // base, lora and slots outlive the transformer. slots: scale and dropout of each adapter slot.
    Transformer(K& k, const ModelConfig& config, const BaseWeights<K>& base, const LoraLayout& lora,
                const std::vector<LoraSlot>& slots, const TransformerSizes& sizes)
        : k_(k),
          cfg_(config),
          base_(base),
          lora_(lora),
          slots_(slots),
          sizes_(sizes),
          shape_{config.H, config.KV, config.HS},
          borders_(kBorders<K> ? weight_borders(lora, slots) : WeightBorders{}),
          ld1_(config.C + borders_[kQkv].columns),
          ld2_(config.C + borders_[kGateUp].columns),
          lddx_(config.C + borders_[kDownProj].rows) {
        ORPO_CHECK(lora.layers() == config.L);
        allocate();
    }

    // Trains on the micro-batch: gradients += d(loss)/d(adapters). adapters: the slots' parameters in T, slot after
    // slot (lora.slot_size() each). gradients: the same in F. The log-probabilities stay in logp().
    void train(const Batch& batch, const T* adapters, F* gradients) {
        ORPO_CHECK(sizes_.keep != Keep::kNothing);
        k_.once("train", batch, [&] {
            train_forward(batch, adapters);
            k_.orpo(batch, logp_, coefficients_);
            backward(batch, gradients);
        });
    }
    // The same in two halves, for tests that set the coefficients c_t themselves.
    void train_forward(const Batch& batch, const T* adapters) {
        forward(batch, adapters, Mode::kTrain);
        k_.head(batch, cfg_.C, normed_, base_.head(), logp_, U_);
    }

    // Log-probabilities only, no dropout: never slower or larger than the forward half of train.
    void evaluate(const Batch& batch, const T* adapters) {
        forward(batch, adapters, Mode::kEvaluate);
        k_.head(batch, cfg_.C, normed_, base_.head(), logp_, static_cast<T*>(nullptr));
    }
    const double* logp() const { return logp_; }  // (heads)

    // Generation. prefill: whole prompts (a pair without answers is a text), whose keys and values go to the cache.
    // decode: one new row per sequence; a device replays it. Both leave the logits of the batch's head rows in
    // logits(), (heads, V).
    void prefill(const Batch& batch, const T* adapters) { generate(batch, adapters, Mode::kPrefill); }
    void decode(const Batch& batch, const T* adapters) {
        k_.once("decode", batch, [&] { generate(batch, adapters, Mode::kDecode); });
    }
    const F* logits() const { return logits_; }

    const TransformerSizes& sizes() const { return sizes_; }

  private:
    enum class Mode { kTrain, kEvaluate, kPrefill, kDecode };

    struct Saved {
        T *x = nullptr, *x2 = nullptr;   // (N, C) input of the layer, and after attention
        T *n1 = nullptr, *n2 = nullptr;  // (N, C) both normed, rows ld1_ and ld2_ apart: one array for all layers
                                         // unless everything is kept
        F *r1 = nullptr, *r2 = nullptr;  // (N) 1 / rms
        T* qkv = nullptr;                // (N, width) after rope
        T* o = nullptr;                  // (N, H HS)
        F* lse = nullptr;                // (N, H)
        T* gu = nullptr;                 // (N, 2I); backward overwrites it with its gradient
        T* h = nullptr;                  // (N, I) silu(g) u, as n1
        std::array<T*, kGroups> S = {};  // (N, group width) s * dropout(input) A^T
    };

    // --- forward. Leaves rmsnorm(output of the last layer) in normed_.
    void forward(const Batch& batch, const T* adapters, Mode mode) {
        ORPO_CHECK(batch.N > 0 && batch.N <= sizes_.tokens && batch.heads_n <= sizes_.heads);
        const Range range(k_, "forward");
        batch_ = &batch, adapters_ = adapters, mode_ = mode;
        Saved& first = saved(0);
        k_.embed(batch, base_.embedding, first.x);
        k_.rmsnorm(batch.N, cfg_.C, cfg_.rms_eps, first.x, base_.layers[0].norm1, first.n1, ld1_, first.r1);
        for (int l = 0; l < cfg_.L; ++l) {
            const Range layer(k_, "layer", l);
            attention_half(l, l > 0 ? low_ : nullptr, low_);  // E is in T: nothing cut off yet
            mlp_half(l);
            const bool last = l + 1 == cfg_.L;
            Saved& next = last ? out_ : saved(l + 1);
            add_rmsnorm(saved(l).x2, low_, last ? base_.final_norm : base_.layers[l + 1].norm1, next.x, low_, next.n1,
                        last ? cfg_.C : ld1_, next.r1);
        }
    }

    // x2 = x + delta_ and y = rmsnorm(x2), with the low parts of both or with none.
    void add_rmsnorm(const T* x, const T* x_low, const F* w, T* x2, T* x2_low, T* y, int ldy, F* r) {
        if constexpr (kLowParts<K>)
            k_.add_rmsnorm(batch_->N, cfg_.C, cfg_.rms_eps, x, delta_, w, x2, y, ldy, r, x_low, x2_low);
        else
            k_.add_rmsnorm(batch_->N, cfg_.C, cfg_.rms_eps, x, delta_, w, x2, y, ldy, r);
    }

    // In: n1. Out: x2 = x + o Wo^T and n2.
    void attention_half(int l, const T* x_low, T* x2_low) {
        Saved& a = saved(l);
        const auto& w = base_.layers[l];
        linear(l, kQkv, w.qkv, a.n1, a.qkv);
        if (mode_ == Mode::kDecode) {
            k_.decode_attention(*batch_, shape_, sizes_.max_positions, rope_, a.qkv, cache(l), a.o);
        } else {
            k_.rope(*batch_, shape_, rope_, 1, a.qkv);
            if (mode_ == Mode::kPrefill) k_.cache_append(*batch_, shape_, sizes_.max_positions, a.qkv, cache(l));
            k_.attention(*batch_, shape_, a.qkv, a.o, a.lse);
        }
        linear(l, kOut, w.out, a.o, delta_);
        add_rmsnorm(a.x, x_low, w.norm2, a.x2, x2_low, a.n2, ld2_, a.r2);
    }

    // In: n2. Out: h Wd^T in delta_.
    void mlp_half(int l) {
        Saved& a = saved(l);
        const auto& w = base_.layers[l];
        linear(l, kGateUp, w.gate_up, a.n2, a.gu);
        k_.swiglu(batch_->N, cfg_.I, a.gu, a.h);
        linear(l, kDownProj, w.down, a.h, delta_);
    }

    void generate(const Batch& batch, const T* adapters, Mode mode) {
        ORPO_CHECK(sizes_.sequences > 0 && batch.heads_n <= sizes_.sequences);
        forward(batch, adapters, mode);
        k_.logits(batch, cfg_.C, normed_, base_.head(), logits_);
    }

    // --- backward, after train_forward and orpo.
    void backward(const Batch& batch, F* gradients) {
        const Range range(k_, "backward");
        gradients_ = gradients;
        const int N = batch.N, C = cfg_.C;
        k_.scatter_scaled(batch, C, U_, coefficients_, delta_);  // d(final norm's output)
        k_.rmsnorm_backward(N, C, delta_, out_.x, base_.final_norm, out_.r1, dx_, lddx_, false);
        for (int l = cfg_.L - 1; l >= 0; --l) backward_layer(l);
    }

    // dx_: in: gradient of the layer's output; out: of its input (layer 0: not needed, left unfinished).
    void backward_layer(int l) {
        const Range range(k_, "layer", l);
        const int N = batch_->N, C = cfg_.C, I = cfg_.I;
        const auto& w = base_.layers[l];
        Saved& a = saved(l);
        remake(l);
        // x' = x2 + h Wd^T: dx_ is d(x') and, through the residual, the start of d(x2).
        const bool again = sizes_.keep != Keep::kAll;
        linear_backward(l, kDownProj, w.down, dx_, wide_);
        k_.swiglu_backward(N, I, wide_, a.gu, again ? wide_ : nullptr);  // h in the place of its gradient
        gradient_of_A(l, kDownProj, again ? wide_ : a.h);
        if (again) k_.normalize(N, C, a.x2, w.norm2, a.r2, a.n2, ld2_);
        linear_backward(l, kGateUp, w.gate_up, a.gu, delta_);
        gradient_of_A(l, kGateUp, a.n2);
        k_.rmsnorm_backward(N, C, delta_, a.x2, w.norm2, a.r2, dx_, lddx_, true);
        // x2 = x + o Wo^T
        linear_backward(l, kOut, w.out, dx_, delta_);
        gradient_of_A(l, kOut, a.o);
        k_.attention_backward(*batch_, shape_, a.qkv, a.o, a.lse, delta_, wide_);
        k_.rope(*batch_, shape_, rope_, -1, wide_);
        if (again) k_.normalize(N, C, a.x, w.norm1, a.r1, a.n1, ld1_);
        linear_backward(l, kQkv, w.qkv, wide_, l > 0 ? delta_ : nullptr);
        gradient_of_A(l, kQkv, a.n1);
        if (l > 0) k_.rmsnorm_backward(N, C, delta_, a.x, w.norm1, a.r1, dx_, lddx_, true);
    }

    // What forward did not keep.
    void remake(int l) {
        Saved& a = saved(l);
        const auto& w = base_.layers[l];
        if (sizes_.keep == Keep::kInputs) {
            k_.normalize(batch_->N, cfg_.C, a.x, w.norm1, a.r1, a.n1, ld1_);
            attention_half(l, nullptr, nullptr);  // x as it was rounded: low parts are not kept, and low_ is dx_
            linear(l, kGateUp, w.gate_up, a.n2, a.gu);
            k_.swiglu(batch_->N, cfg_.I, a.gu, a.h);
            lora_in(l, kDownProj, a.h);
        } else if (sizes_.keep == Keep::kNoGateUp) {
            k_.normalize(batch_->N, cfg_.C, a.x2, w.norm2, a.r2, a.n2, ld2_);
            linear(l, kGateUp, w.gate_up, a.n2, a.gu);
        }
    }

    // --- the adapted linears
    // y = x W^T + S B^T,  S = s dropout(x) A^T.    x (N, in), y (N, out). Where W has a border, B stands in it and S
    // goes behind x, and kept for backward too.
    void linear(int l, Group g, const typename K::Weight& W, T* x, T* y) {
        lora_in(l, g, x);
        const LoraGroup& group = lora_.group(l, g);
        if (borders_[g].columns > 0) return k_.linear(batch_->N, x, W, y);
        added_.clear();
        for (const SlotRun& run : batch_->runs)
            for (const LoraTarget& t : group.targets) {
                const T* S = saved(l).S[g] + int64_t{run.first} * group.width + t.rank_offset;
                added_.push_back({run.first, run.rows, t.out_offset, t.out, lora_.R(), S, group.width,
                                  params(run.slot) + t.b, lora_.R()});
            }
        k_.linear(batch_->N, x, W, y, added_);
    }
    void lora_in(int l, Group g, T* x) {
        const LoraGroup& group = lora_.group(l, g);
        if (group.width == 0) return;
        const int ldx = group.in + borders_[g].columns;
        for (const SlotRun& run : batch_->runs) {
            const T* xd = dropped(l, g, run, x) + int64_t{run.first} * ldx;
            k_.gemm_nt(run.rows, group.width, group.in, slots_[run.slot].scale, xd, ldx, params(run.slot) + group.a,
                       group.in, saved(l).S[g] + int64_t{run.first} * group.width, group.width, false);
        }
        if constexpr (kBorders<K>)
            if (borders_[g].columns > 0)
                k_.copy_rows(batch_->N, group.width, saved(l).S[g], group.width, x + group.in, ldx);
    }

    // dB += dy^T S;  dS = s dy B;  dx = dy W + dropout(dS A).    dx may be null. dS stays for gradient_of_A. Where W
    // has a foot, A stands in it and dS goes behind dy.
    void linear_backward(int l, Group g, const typename K::Weight& W, T* dy, T* dx) {
        const LoraGroup& group = lora_.group(l, g);
        const int R = lora_.R(), lddy = group.out + borders_[g].rows;
        added_.clear();
        for (const SlotRun& run : batch_->runs) {
            if (group.width == 0) break;
            const T* S = saved(l).S[g] + int64_t{run.first} * group.width;
            const T* p = params(run.slot);
            F* grads = gradients_ + run.slot * lora_.slot_size();
            const auto [dS, ldds] = gradient_of_S(g, run, group.width);
            given_.clear();
            for (const LoraTarget& t : group.targets)
                given_.push_back({t.out_offset, t.out, R, S + t.rank_offset, group.width, p + t.b, grads + t.b,
                                  dS + t.rank_offset, ldds});
            k_.low_rank_backward(run.rows, slots_[run.slot].scale, dy + int64_t{run.first} * lddy, lddy, given_);
            if (borders_[g].rows == 0 && !dropping(run.slot))
                added_.push_back({run.first, run.rows, 0, group.in, group.width, dS, ldds, p + group.a, group.in});
        }
        if (!dx) return;
        k_.linear_backward(batch_->N, dy, W, dx, added_);
        for (const SlotRun& run : batch_->runs) {
            if (group.width == 0 || !dropping(run.slot)) continue;
            const int64_t first = run.first;
            const auto [dS, ldds] = gradient_of_S(g, run, group.width);
            k_.gemm_nn(run.rows, group.in, group.width, 1, dS, ldds, params(run.slot) + group.a, group.in,
                       ddropped_ + first * group.in, group.in, false);
            k_.dropout_add(*batch_, run.first, run.rows, group.in, slots_[run.slot].dropout, tensor(l, g), ddropped_,
                           dx);
        }
    }
    // dA += dS^T dropout(x), after linear_backward of the same linears.
    void gradient_of_A(int l, Group g, const T* x) {
        const LoraGroup& group = lora_.group(l, g);
        if (group.width == 0) return;
        const int ldx = group.in + borders_[g].columns;
        for (const SlotRun& run : batch_->runs) {
            const auto [dS, ldds] = gradient_of_S(g, run, group.width);
            k_.gemm_tn(group.width, group.in, run.rows, dS, ldds, dropped(l, g, run, x) + int64_t{run.first} * ldx, ldx,
                       gradients_ + run.slot * lora_.slot_size() + group.a, group.in);
        }
    }
    // Where dS of the run stands, and the distance between its rows: behind dy, or in dS_.
    std::pair<T*, int> gradient_of_S(Group g, const SlotRun& run, int width) const {
        if (borders_[g].rows > 0) return {dx_ + int64_t{run.first} * lddx_ + cfg_.C, lddx_};
        return {dS_ + int64_t{run.first} * width, width};
    }
    bool dropping(int slot) const { return mode_ == Mode::kTrain && slots_[slot].dropout > 0; }

    // The input of A: x itself, or a copy whose rows of this run are dropped out.
    const T* dropped(int l, Group g, const SlotRun& run, const T* x) {
        if (!dropping(run.slot)) return x;
        k_.dropout(*batch_, run.first, run.rows, lora_.group(l, g).in, slots_[run.slot].dropout, tensor(l, g), x,
                   dropped_);
        return dropped_;
    }
    static uint32_t tensor(int l, Group g) { return static_cast<uint32_t>(l * kGroups + g); }
    const T* params(int slot) const { return adapters_ + slot * lora_.slot_size(); }

    // --- memory
    // Training keeps every layer; anything else works in the first layer's buffers.
    Saved& saved(int l) { return acts_[mode_ == Mode::kTrain ? l : 0]; }
    T* cache(int l) { return cache_ + int64_t{l} * cache_layer(); }
    int64_t cache_layer() const { return int64_t{sizes_.sequences} * sizes_.max_positions * 2 * shape_.KV * shape_.HS; }

    // Sets every pointer. The order and the names are those of the printed plan.
    void allocate() {
        const int64_t N = sizes_.tokens, C = cfg_.C, I = cfg_.I, attn = int64_t{shape_.H} * shape_.HS;
        const auto act = [&](const std::string& name, int64_t per_token) {
            return k_.template allocate<T>(Category::kActivations, name, N * per_token);
        };
        const auto stat = [&](const std::string& name, int64_t per_token) {
            return k_.template allocate<F>(Category::kActivations, name, N * per_token);
        };
        const Keep keep = sizes_.keep;
        const bool all = keep == Keep::kAll;
        acts_.resize(cfg_.L);
        int widest_in = 0, widest_group = 0;
        bool any_drops = false;
        for (const LoraSlot& slot : slots_) any_drops |= slot.dropout > 0;
        for (int l = 0; l < cfg_.L; ++l) {
            Saved& a = acts_[l];
            const std::string at = "layer " + std::to_string(l) + " ";
            if (l > 0) a = acts_[0];  // shared, unless it is kept
            const bool first = l == 0, inputs = first || keep != Keep::kNothing;
            const bool inner = first || all || keep == Keep::kActivations || keep == Keep::kNoGateUp;
            const bool gate_up = first || all || keep == Keep::kActivations;
            if (inputs) a.x = act(at + "x", C), a.r1 = stat(at + "r1", 1);
            if (inner) {
                // Only backward needs x beside x2.
                a.x2 = keep == Keep::kNothing ? a.x : act(at + "x2", C), a.r2 = stat(at + "r2", 1);
                a.qkv = act(at + "qkv", shape_.width());
                a.o = act(at + "o", attn), a.lse = stat(at + "lse", shape_.H);
            }
            if (gate_up) a.gu = act(at + "gate|up", 2 * I);
            if (all) a.n1 = act(at + "n1", ld1_), a.n2 = act(at + "n2", ld2_), a.h = act(at + "h", I);
            for (int g = 0; g < kGroups; ++g) {
                const LoraGroup& group = lora_.group(l, g);
                if (group.width == 0) continue;
                if (g == kGateUp ? gate_up : inner) a.S[g] = act(at + "lora " + std::to_string(g), group.width);
                widest_in = std::max(widest_in, group.in), widest_group = std::max(widest_group, group.width);
            }
        }
        out_.x = act("output", C), out_.r1 = stat("output r", 1);
        normed_ = act("normed", std::max(ld1_, ld2_)), delta_ = act("delta", std::max(C, attn));
        out_.n1 = normed_;
        T* const h = all ? nullptr : act("h", I);
        for (Saved& a : acts_)
            if (!all) a.n1 = a.n2 = normed_, a.h = h;
        logp_ = k_.template allocate<double>(Category::kActivations, "log-probabilities", sizes_.heads);
        if (keep != Keep::kNothing) {
            dx_ = act("dx", lddx_), wide_ = act("dqkv, dh", std::max<int64_t>(shape_.width(), I));
            dS_ = act("dS", widest_group);
            if (any_drops) dropped_ = act("dropped", widest_in), ddropped_ = act("d dropped", widest_in);
            U_ = k_.template allocate<T>(Category::kActivations, "head U", int64_t{sizes_.heads} * C);
            coefficients_ = k_.template allocate<double>(Category::kActivations, "coefficients", sizes_.heads);
        }
        // Backward writes dx_ only when forward has ended.
        if (kLowParts<K>) low_ = keep == Keep::kNothing ? act("x low", C) : dx_;
        if (sizes_.sequences > 0) {
            cache_ = k_.template allocate<T>(Category::kCache, "keys and values", cfg_.L * cache_layer());
            logits_ = k_.template allocate<F>(Category::kCache, "logits", int64_t{sizes_.sequences} * cfg_.V);
        }
        rope_ = k_.template allocate<F>(Category::kWorkspace, "rope table",
                                        int64_t{sizes_.max_positions} * (shape_.HS / 2) * 2);
        place_borders();
        k_.reserve({sizes_.tokens, sizes_.heads, cfg_.C, cfg_.I, cfg_.V, shape_, keep != Keep::kNothing,
                    sizes_.sequences, lora_.R()});
        if (k_.planning()) return;
        const std::vector<F> table = rope_table<F>(sizes_.max_positions, shape_.HS, cfg_.rope_theta);
        k_.write(static_cast<int64_t>(table.size()), table.data(), rope_);
    }

    // A and B of the adapter beside the weights that have room for them.
    void place_borders() {
        if constexpr (kBorders<K>) {
            std::vector<Border<T>> list;
            for (int l = 0; l < cfg_.L; ++l) {
                const auto& w = base_.layers[l];
                for (const auto& [g, W] :
                     {std::pair{kQkv, &w.qkv}, {kOut, &w.out}, {kGateUp, &w.gate_up}, {kDownProj, &w.down}}) {
                    const LoraGroup& group = lora_.group(l, g);
                    if (W->border > 0)
                        for (const LoraTarget& t : group.targets)
                            list.push_back({t.b, W->data + int64_t{t.out_offset} * W->ld() + W->cols + t.rank_offset,
                                            t.out, lora_.R(), W->ld()});
                    if (W->foot > 0)
                        list.push_back({group.a, W->data + int64_t{W->rows} * W->ld(), W->foot, W->cols, W->ld()});
                }
            }
            k_.place_borders(list);
        }
    }

    K& k_;
    ModelConfig cfg_;
    const BaseWeights<K>& base_;
    const LoraLayout& lora_;
    const std::vector<LoraSlot>& slots_;
    TransformerSizes sizes_;
    HeadShape shape_;
    WeightBorders borders_;
    int ld1_, ld2_, lddx_;  // between the rows of n1, n2 and dx_

    std::vector<Saved> acts_;  // (L); layers share what is not kept
    Saved out_;                // x, n1 and r1 of the final norm
    F* rope_ = nullptr;        // (max_positions, HS/2, 2)
    T* normed_ = nullptr;      // (N, C) rows ld1_ or ld2_ apart; the final norm's C
    T* delta_ = nullptr;       // (N, max(C, H HS)) what a half layer adds; in backward gradients of its input
    T* dx_ = nullptr;          // (N, C) rows lddx_ apart
    T* low_ = nullptr;         // (N, C) forward's x + low_ or x2 + low_; null where T is F
    T* wide_ = nullptr;        // (N, max(width, I)): dqkv or dh
    T* dS_ = nullptr;          // (N, largest group width)
    T *dropped_ = nullptr, *ddropped_ = nullptr;        // (N, largest in), only with dropout
    T* U_ = nullptr;                                    // (heads, C)
    double *logp_ = nullptr, *coefficients_ = nullptr;  // (heads)
    T* cache_ = nullptr;                                // (L, sequences, max_positions, 2, KV, HS)
    F* logits_ = nullptr;                               // (sequences, V)

    // The micro-batch of the last forward().
    const Batch* batch_ = nullptr;
    std::vector<LowRank<T>> added_;             // of the linear that is being made
    std::vector<LowRankGradient<T, F>> given_;  // to its terms
    const T* adapters_ = nullptr;
    F* gradients_ = nullptr;
    Mode mode_ = Mode::kEvaluate;
};

}  // namespace orpo
