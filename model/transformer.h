// SmolLM2 (Llama) forward and backward by hand, for LoRA parameters only: the base never gets a gradient. K is a backend
// of kernels/kernels.h; the same lines run on every one.
//
//   x = E[ids]                                              (N, C)
//   per layer:  n1 = rmsnorm(x);   qkv = n1 Wqkv^T + lora;  rope(q, k);  o = attention(qkv)
//               x2 = x + o Wo^T + lora
//               n2 = rmsnorm(x2);  gu = n2 Wgu^T + lora;    h = silu(g) u
//               x' = x2 + h Wd^T + lora
//   head:       logits = rmsnorm(x)[rows] W^T, one pass: log-probabilities, then U = (softmax - onehot) W
//
// Kept for backward, per layer and token: x, qkv, o, x2, gu, the lora S's, and three scalars; norms and h are made again.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "base/error.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/lora.h"
#include "model/micro_batch.h"

namespace orpo {

// The frozen base in the backend's storage type, q|k|v and gate|up fused row-wise as (out, in).
template <class T>
struct BaseWeights {
    struct Layer {
        std::vector<T> norm1, norm2;  // (C)
        std::vector<T> qkv;           // ((H + 2 KV) HS, C)
        std::vector<T> out;           // (C, H HS)
        std::vector<T> gate_up;       // (2 I, C)
        std::vector<T> down;          // (C, I)
    };
    std::vector<T> embedding;  // (V, C)
    std::vector<Layer> layers;
    std::vector<T> final_norm;  // (C)
    std::vector<T> head;        // (V, C), empty when tied to the embedding

    const T* head_data() const { return head.empty() ? embedding.data() : head.data(); }
};

// Dropout of one optimizer step; p = 0 turns it off.
struct DropoutStep {
    double p = 0;
    uint64_t seed = 0;
    uint32_t step = 0;
};

template <class K>
class Transformer {
  public:
    using T = typename K::T;

    // capacity: most tokens of one micro-batch. head_chunk: rows whose logits are held at once.
    Transformer(const ModelConfig& config, const BaseWeights<T>& base, const LoraLayout& lora, int capacity,
                int head_chunk = 256)
        : cfg_(config), base_(base), lora_(lora), shape_{config.H, config.KV, config.HS}, capacity_(capacity),
          head_chunk_(head_chunk), acts_(config.L) {
        ORPO_CHECK(lora.layers() == config.L);
        const auto N = static_cast<size_t>(capacity);
        for (int l = 0; l < cfg_.L; ++l) {
            Saved& a = acts_[l];
            a.x.resize(N * cfg_.C), a.x2.resize(N * cfg_.C);
            a.r1.resize(N), a.r2.resize(N);
            a.qkv.resize(N * shape_.width());
            a.o.resize(N * cfg_.H * cfg_.HS);
            a.lse.resize(N * cfg_.H);
            a.gu.resize(N * 2 * cfg_.I);
            for (int g = 0; g < kGroups; ++g) a.S[g].resize(N * lora_.group(l, g).width);
        }
        x_.resize(N * cfg_.C), r_.resize(N);
        normed_.resize(N * cfg_.C), dn_.resize(N * cfg_.C), dx_.resize(N * cfg_.C);
        wide_.resize(N * std::max(shape_.width(), cfg_.I));
        do_.resize(N * cfg_.H * cfg_.HS);
        h_.resize(N * cfg_.I);
        dS_.resize(N * 3 * lora_.config().R);
        if (lora_.config().dropout > 0) dropped_.resize(N * cfg_.I), ddropped_.resize(N * cfg_.I);
        z_.resize(static_cast<size_t>(head_chunk) * cfg_.V);
    }

    // Bytes of everything that a Transformer of this size allocates (the plan that is printed before step 0).
    static int64_t bytes(const ModelConfig& c, const LoraLayout& lora, int64_t capacity, int64_t head_chunk,
                         int64_t head_rows) {
        const int64_t attn = int64_t{c.H} * c.HS, width = attn + 2LL * c.KV * c.HS;
        int64_t S = 0;
        for (int g = 0; g < kGroups; ++g) S += lora.group(0, g).width;
        int64_t per_token = c.L * (2LL * c.C + 2 + width + attn + c.H + 2LL * c.I + S);
        per_token += 4LL * c.C + 1 + std::max<int64_t>(width, c.I) + attn + c.I + 3LL * lora.config().R;
        if (lora.config().dropout > 0) per_token += 2LL * c.I;
        return static_cast<int64_t>(sizeof(T)) * (capacity * per_token + head_chunk * c.V + 2 * head_rows * c.C);
    }

    // Runs the micro-batch through the model. adapters: the slots' parameters, slot after slot (lora.slot_size() each).
    // logp: (rows) log-probability of every head row's target. With keep_gradient, U of every row is kept for backward.
    void forward(const MicroBatch& mb, const T* adapters, const DropoutStep& drop, bool keep_gradient,
                 std::span<double> logp) {
        N_ = static_cast<int>(mb.ids.size());
        ORPO_CHECK(N_ > 0 && N_ <= capacity_ && logp.size() == mb.rows.size());
        mb_ = &mb, adapters_ = adapters, drop_ = drop;
        K::embed(N_, cfg_.C, mb.ids.data(), base_.embedding.data(), acts_[0].x.data());
        for (int l = 0; l < cfg_.L; ++l)
            forward_layer(l, l + 1 < cfg_.L ? acts_[l + 1].x.data() : x_.data());
        head(keep_gradient, logp);
    }

    // gradients += d(loss)/d(adapters), given c_t of every head row (dlogits_t = c_t (softmax_t - onehot_t)) of the
    // micro-batch that forward() saw last, with keep_gradient.
    void backward(std::span<const double> coefficients, T* gradients) {
        ORPO_CHECK(mb_ && coefficients.size() == mb_->rows.size() && U_.size() == coefficients.size() * cfg_.C);
        gradients_ = gradients;
        // d(final norm's output): the last prompt row collects both of its head rows.
        std::fill_n(dn_.begin(), size_t(N_) * cfg_.C, T{0});
        for (size_t i = 0; i < coefficients.size(); ++i) {
            T* u = U_.data() + i * cfg_.C;
            K::scale(cfg_.C, coefficients[i], u);
            K::add(cfg_.C, u, dn_.data() + size_t(mb_->rows[i].row) * cfg_.C);
        }
        std::fill_n(dx_.begin(), size_t(N_) * cfg_.C, T{0});
        K::rmsnorm_backward(N_, cfg_.C, dn_.data(), x_.data(), base_.final_norm.data(), r_.data(), dx_.data());
        for (int l = cfg_.L - 1; l >= 0; --l) backward_layer(l);
    }

  private:
    struct Saved {
        std::vector<T> x, x2;   // (N, C) input of the layer, and after attention
        std::vector<T> r1, r2;  // (N) 1 / rms
        std::vector<T> qkv;     // (N, width) after rope
        std::vector<T> o, lse;  // (N, H HS), (N, H)
        std::vector<T> gu;      // (N, 2I); backward overwrites it with its gradient
        std::array<std::vector<T>, kGroups> S;  // (N, group width) s * dropout(input) A^T
    };

    // next: (N, C) where the layer's output goes.
    void forward_layer(int l, T* next) {
        const int C = cfg_.C, I = cfg_.I, W = shape_.width();
        const auto& w = base_.layers[l];
        Saved& a = acts_[l];
        K::rmsnorm(N_, C, cfg_.rms_eps, a.x.data(), w.norm1.data(), normed_.data(), a.r1.data());
        linear(l, kQkv, w.qkv, normed_.data(), a.qkv.data());
        K::rope(N_, 0, cfg_.H + cfg_.KV, cfg_.HS, cfg_.rope_theta, 1, mb_->positions.data(), a.qkv.data(), W);
        for (const PairSpan& p : mb_->pairs)
            K::attention(shape_, {p.begin, p.chosen, p.rejected, p.end}, a.qkv.data(), a.o.data(), a.lse.data());
        linear(l, kOut, w.out, a.o.data(), a.x2.data());
        K::add(int64_t{N_} * C, a.x.data(), a.x2.data());
        K::rmsnorm(N_, C, cfg_.rms_eps, a.x2.data(), w.norm2.data(), normed_.data(), a.r2.data());
        linear(l, kGateUp, w.gate_up, normed_.data(), a.gu.data());
        K::swiglu(N_, I, a.gu.data(), h_.data());
        linear(l, kDownProj, w.down, h_.data(), next);
        K::add(int64_t{N_} * C, a.x2.data(), next);
    }

    // dx_: in: gradient of the layer's output; out: of its input (layer 0: not needed, left unfinished).
    void backward_layer(int l) {
        const int C = cfg_.C, I = cfg_.I, W = shape_.width();
        const auto& w = base_.layers[l];
        Saved& a = acts_[l];
        // x' = x2 + h Wd^T: dx_ is d(x') and, through the residual, the start of d(x2).
        K::swiglu(N_, I, a.gu.data(), h_.data());
        linear_backward(l, kDownProj, w.down, h_.data(), dx_.data(), wide_.data());
        K::swiglu_backward(N_, I, wide_.data(), a.gu.data());
        K::rmsnorm(N_, C, cfg_.rms_eps, a.x2.data(), w.norm2.data(), normed_.data(), a.r2.data());
        linear_backward(l, kGateUp, w.gate_up, normed_.data(), a.gu.data(), dn_.data());
        K::rmsnorm_backward(N_, C, dn_.data(), a.x2.data(), w.norm2.data(), a.r2.data(), dx_.data());
        // x2 = x + o Wo^T
        linear_backward(l, kOut, w.out, a.o.data(), dx_.data(), do_.data());
        for (const PairSpan& p : mb_->pairs)
            K::attention_backward(shape_, {p.begin, p.chosen, p.rejected, p.end}, a.qkv.data(), a.o.data(),
                                  a.lse.data(), do_.data(), wide_.data());
        K::rope(N_, 0, cfg_.H + cfg_.KV, cfg_.HS, cfg_.rope_theta, -1, mb_->positions.data(), wide_.data(), W);
        K::rmsnorm(N_, C, cfg_.rms_eps, a.x.data(), w.norm1.data(), normed_.data(), a.r1.data());
        linear_backward(l, kQkv, w.qkv, normed_.data(), wide_.data(), l > 0 ? dn_.data() : nullptr);
        if (l > 0) K::rmsnorm_backward(N_, C, dn_.data(), a.x.data(), w.norm1.data(), a.r1.data(), dx_.data());
    }

    // y = x W^T + S B^T,  S = s dropout(x) A^T.    x (N, in), y (N, out)
    void linear(int l, int g, const std::vector<T>& W, const T* x, T* y) {
        const LoraGroup& group = lora_.group(l, g);
        K::gemm_nt(N_, group.out, group.in, x, group.in, W.data(), group.in, y, group.out, false);
        if (group.width == 0) return;
        const int R = lora_.config().R;
        const T* xd = dropped(l, g, group.in, x);
        T* S = acts_[l].S[g].data();
        for_slots([&](int slot, int first, int rows) {
            const T* params = adapters_ + slot * lora_.slot_size();
            T* s = S + int64_t{first} * group.width;
            K::gemm_nt(rows, group.width, group.in, xd + int64_t{first} * group.in, group.in, params + group.a,
                       group.in, s, group.width, false);
            K::scale(int64_t{rows} * group.width, lora_.config().scale(), s);
            for (const LoraTarget& t : group.targets)
                K::gemm_nt(rows, t.out, R, s + t.rank_offset, group.width, params + t.b, R,
                           y + int64_t{first} * group.out + t.out_offset, group.out, true);
        });
    }

    // dB += dy^T S;  dS = s dy B;  dA += dS^T dropout(x);  dx = dy W + dropout(dS A).    dx may be null.
    void linear_backward(int l, int g, const std::vector<T>& W, const T* x, const T* dy, T* dx) {
        const LoraGroup& group = lora_.group(l, g);
        if (dx) K::gemm_nn(N_, group.in, group.out, dy, group.out, W.data(), group.in, dx, group.in, false);
        if (group.width == 0) return;
        const int R = lora_.config().R;
        const bool dropping = drop_.p > 0;
        const T* xd = dropped(l, g, group.in, x);
        const T* S = acts_[l].S[g].data();
        for_slots([&](int slot, int first, int rows) {
            const T* params = adapters_ + slot * lora_.slot_size();
            T* grads = gradients_ + slot * lora_.slot_size();
            T* ds = dS_.data() + int64_t{first} * group.width;
            for (const LoraTarget& t : group.targets) {
                const T* dyt = dy + int64_t{first} * group.out + t.out_offset;
                K::gemm_tn(t.out, R, rows, dyt, group.out, S + int64_t{first} * group.width + t.rank_offset,
                           group.width, grads + t.b, R, true);
                K::gemm_nn(rows, R, t.out, dyt, group.out, params + t.b, R, ds + t.rank_offset, group.width, false);
            }
            K::scale(int64_t{rows} * group.width, lora_.config().scale(), ds);
            K::gemm_tn(group.width, group.in, rows, ds, group.width, xd + int64_t{first} * group.in, group.in,
                       grads + group.a, group.in, true);
            if (dx)
                K::gemm_nn(rows, group.in, group.width, ds, group.width, params + group.a, group.in,
                           (dropping ? ddropped_.data() : dx) + int64_t{first} * group.in, group.in, !dropping);
        });
        if (dx && dropping) {
            for_branches(l, g, [&](const DropoutKey& key, int first, int rows) {
                T* part = ddropped_.data() + int64_t{first} * group.in;
                K::dropout(rows, group.in, drop_.p, key, mb_->positions.data() + first, part, part);
            });
            K::add(int64_t{N_} * group.in, ddropped_.data(), dx);
        }
    }

    // The input of A: x itself, or its dropped-out copy.
    const T* dropped(int l, int g, int in, const T* x) {
        if (drop_.p <= 0) return x;
        ORPO_CHECK(!dropped_.empty());
        for_branches(l, g, [&](const DropoutKey& key, int first, int rows) {
            K::dropout(rows, in, drop_.p, key, mb_->positions.data() + first, x + int64_t{first} * in,
                       dropped_.data() + int64_t{first} * in);
        });
        return dropped_.data();
    }

    // f(slot, first row, rows) for every run of pairs that train one slot.
    template <class F>
    void for_slots(F f) {
        const auto& pairs = mb_->pairs;
        for (size_t i = 0; i < pairs.size();) {
            size_t j = i;
            while (j < pairs.size() && pairs[j].slot == pairs[i].slot) ++j;
            f(pairs[i].slot, pairs[i].begin, pairs[j - 1].end - pairs[i].begin);
            i = j;
        }
    }

    template <class F>
    void for_branches(int l, int g, F f) {
        for (const PairSpan& p : mb_->pairs) {
            DropoutKey key{drop_.seed, drop_.step, static_cast<uint32_t>(l * kGroups + g),
                           static_cast<uint32_t>(p.pair_in_batch), 0};
            f(key, p.begin, p.rejected - p.begin);
            key.branch = 1;
            f(key, p.rejected, p.end - p.rejected);
        }
    }

    // Per chunk of rows: z = h W^T; log-probabilities; z <- softmax - onehot; U = z W.
    void head(bool keep_gradient, std::span<double> logp) {
        const int C = cfg_.C, V = cfg_.V, rows = static_cast<int>(mb_->rows.size());
        K::rmsnorm(N_, C, cfg_.rms_eps, x_.data(), base_.final_norm.data(), normed_.data(), r_.data());
        gathered_.resize(size_t(rows) * C);
        U_.resize(keep_gradient ? size_t(rows) * C : 0);
        targets_.resize(rows);
        for (int i = 0; i < rows; ++i) {
            targets_[i] = mb_->rows[i].target;
            std::copy_n(normed_.begin() + size_t(mb_->rows[i].row) * C, C, gathered_.begin() + size_t(i) * C);
        }
        for (int i = 0; i < rows; i += head_chunk_) {
            const int n = std::min(head_chunk_, rows - i);
            K::gemm_nt(n, V, C, gathered_.data() + size_t(i) * C, C, base_.head_data(), C, z_.data(), V, false);
            K::softmax_xent(n, V, targets_.data() + i, z_.data(), logp.data() + i);
            if (keep_gradient)
                K::gemm_nn(n, C, V, z_.data(), V, base_.head_data(), C, U_.data() + size_t(i) * C, C, false);
        }
    }

    ModelConfig cfg_;
    const BaseWeights<T>& base_;
    const LoraLayout& lora_;
    HeadShape shape_;
    int capacity_, head_chunk_;

    std::vector<Saved> acts_;
    std::vector<T> x_, r_;                  // output of the last layer, its 1 / rms
    std::vector<T> normed_, dn_, dx_;       // (N, C)
    std::vector<T> wide_;                   // (N, max(width, I)): dqkv or dh
    std::vector<T> do_;                     // (N, H HS)
    std::vector<T> h_;                      // (N, I)
    std::vector<T> dS_;                     // (N, 3R)
    std::vector<T> dropped_, ddropped_;     // (N, up to I), only with dropout
    std::vector<T> z_;                      // (head_chunk, V)
    std::vector<T> gathered_, U_;           // (rows, C)
    std::vector<int32_t> targets_;

    // The micro-batch of the last forward().
    const MicroBatch* mb_ = nullptr;
    const T* adapters_ = nullptr;
    T* gradients_ = nullptr;
    DropoutStep drop_;
    int N_ = 0;
};

}  // namespace orpo
