// Every operation of kernels/kernels.h at a model's shapes, one by one: what `orpo bench kernels` times on either
// device. FLOPs and elements are counted as the table there says; weights and activations in K::T, statistics,
// adapters' masters and moments in K::F.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/bench.h"
#include "kernels/kernels.h"
#include "kernels/rope_table.h"
#include "model/bench_shapes.h"

namespace orpo {

template <Kernels K>
class BenchOperations {
  public:
    using T = typename K::T;
    using F = typename K::F;

    // Allocates; a planning backend only counts.
    BenchOperations(K& k, const BenchShapes& s)
        : k_(k),
          c_(s.config),
          R_(s.rank),
          cached_(s.cached),
          shape_{c_.H, c_.KV, c_.HS},
          N_(static_cast<int>(s.batch.ids.size())),
          heads_(static_cast<int>(s.batch.heads.size())),
          batch_(k.make_batch(N_, static_cast<int>(s.batch.pairs.size()) + 1, heads_)),
          one_(k.make_batch(64, 8, 64)) {
        const RowReader weights = [this](int64_t first, int64_t count, float* out) {
            uint32_t state = static_cast<uint32_t>(first) + 1;
            for (int64_t i = 0; i < count * cols_; ++i) out[i] = 0.1f * next(state);
        };
        const auto prepare = [&](const char* name, int64_t rows, int64_t cols, unsigned use) {
            cols_ = cols;
            return k_.prepare(name, rows, cols, use, weights);
        };
        const int attention = c_.H * c_.HS;
        qkv_w_ = prepare("qkv", shape_.width(), c_.C, kForward | kBackward);
        out_w_ = prepare("out", c_.C, attention, kForward | kBackward);
        gate_up_w_ = prepare("gate|up", 2 * c_.I, c_.C, kForward | kBackward);
        down_w_ = prepare("down", c_.C, c_.I, kForward | kBackward);
        head_w_ = prepare("embedding", c_.V, c_.C, kForward | kBackward | kRows);
        const auto act = [&](const char* name, int64_t n) {
            return k_.template allocate<T>(Category::kActivations, name, n);
        };
        const auto full = [&](const char* name, int64_t n) {
            return k_.template allocate<F>(Category::kActivations, name, n);
        };
        const int64_t N = N_, widest = std::max<int64_t>({2 * c_.I, shape_.width(), c_.C});
        x_ = act("x", N * c_.C), d_ = act("d", N * c_.C), y_ = act("y", N * c_.C), dx_ = act("dx", N * c_.C);
        qkv_ = act("qkv", N * shape_.width()), dqkv_ = act("dqkv", N * shape_.width());
        o_ = act("o", N * attention), d_o_ = act("d_o", N * attention);
        gu_ = act("gu", N * 2 * c_.I), h_ = act("h", N * c_.I), wide_ = act("wide", std::max(N * widest, kStaged));
        S_ = act("S", N * 3 * R_), dS_ = act("dS", N * 3 * R_), U_ = act("U", int64_t{heads_} * c_.C);
        parameters_n_ = int64_t{3} * R_ * widest;
        params_ = act("A, B", parameters_n_);
        cache_ = act("cache", int64_t{cached_ + 1} * 2 * c_.KV * c_.HS);
        r_ = full("r", N), lse_ = full("lse", N * c_.H), w_ = full("w", c_.C);
        staged_ = full("staged", kStaged);
        z_ = full("z", c_.V);
        for (F** arena : {&p_, &g_, &m_, &v_}) *arena = full("arena", arena_size());
        logp_ = k_.template allocate<double>(Category::kActivations, "logp", heads_);
        coefficients_ = k_.template allocate<double>(Category::kActivations, "coefficients", heads_);
        positions_ = std::max(s.positions, cached_ + 1);
        table_ = full("table", int64_t{positions_} * c_.HS);
        k_.reserve({std::max(N_, 64), std::max(heads_, 64), c_.C, c_.I, c_.V, shape_, true, 1, R_});
        if (k_.planning()) return;
        k_.upload(s.batch, batch_);
        k_.upload(one_token(), one_);
        const auto turns = rope_table<F>(positions_, c_.HS, c_.rope_theta);
        k_.write(static_cast<int64_t>(turns.size()), turns.data(), table_);
        for (auto [to, n] : {std::pair{x_, N * c_.C},
                             {d_, N * c_.C},
                             {dx_, N * c_.C},
                             {qkv_, N * shape_.width()},
                             {o_, N * attention},
                             {d_o_, N * attention},
                             {gu_, N * 2 * c_.I},
                             {h_, N * c_.I},
                             {wide_, N * widest},
                             {S_, N * 3 * R_},
                             {U_, int64_t{heads_} * c_.C},
                             {params_, parameters_n_},
                             {cache_, int64_t{cached_ + 1} * 2 * c_.KV * c_.HS}})
            fill(to, n);
        for (F* arena : {p_, g_, m_, v_}) fill_full(arena, arena_size(), 1e-3);
        fill_full(w_, c_.C, 1);
        // The statistics that the timed operations read.
        k_.rmsnorm(N_, c_.C, c_.rms_eps, x_, w_, y_, c_.C, r_);
        k_.attention(batch_, shape_, qkv_, o_, lse_);
        k_.head(batch_, c_.C, x_, head_w_, logp_, U_);
        k_.orpo(batch_, logp_, coefficients_);
        k_.finish();
    }

    // timer(f): seconds of one run of f, which launches one operation.
    template <class Timer>
    std::vector<BenchRow> run(Timer timer) {
        std::vector<BenchRow> rows;
        const double N = batch_.N, C = c_.C, I = c_.I, V = c_.V, t = sizeof(T), f = sizeof(F);
        const double attention = c_.H * c_.HS, heads = batch_.heads_n;
        const double arena = static_cast<double>(arena_size());
        const auto row = [&](const char* operation, const char* name, double flops, double bytes, auto&& launch) {
            rows.push_back({operation, name, timer(launch), flops, bytes});
        };
        for (const auto& [name, W, in, out] : {std::tuple{"qkv", &qkv_w_, x_, dqkv_},
                                               {"out", &out_w_, o_, y_},
                                               {"gate|up", &gate_up_w_, x_, wide_},
                                               {"down", &down_w_, h_, y_}}) {
            const double flops = 2.0 * N * W->rows * W->cols;
            const double bytes = t * (N * (W->rows + W->cols) + double(W->rows) * W->cols);
            row("linear", name, flops, bytes, [&, W = W, in = in, out = out] { k_.linear(batch_.N, in, *W, out); });
            row("linear_backward", name, flops, bytes,
                [&, W = W, in = in, out = out] { k_.linear_backward(batch_.N, out, *W, in == x_ ? d_ : wide_); });
        }
        const double R = R_;
        row("gemm_nt", "lora x A^T", 2 * N * C * 3 * R, t * (N * C + N * 3 * R + 3 * R * C),
            [&] { k_.gemm_nt(batch_.N, 3 * R_, c_.C, 2, x_, c_.C, params_, c_.C, S_, 3 * R_, false); });
        row("gemm_nt", "lora S B^T", 2 * N * C * R, t * (2 * N * C + N * R + C * R),
            [&] { k_.gemm_nt(batch_.N, c_.C, R_, 1, S_, 3 * R_, params_, R_, y_, c_.C, true); });
        row("gemm_nn", "lora dy B", 2 * N * C * R, t * (N * C + N * R + C * R),
            [&] { k_.gemm_nn(batch_.N, R_, c_.C, 2, d_, c_.C, params_, R_, S_, 3 * R_, false); });
        row("gemm_nn", "lora dS A", 2 * N * C * 3 * R, t * (2 * N * C + N * 3 * R + 3 * R * C),
            [&] { k_.gemm_nn(batch_.N, c_.C, 3 * R_, 1, S_, 3 * R_, params_, c_.C, dx_, c_.C, true); });
        row("gemm_tn", "lora dA", 2 * N * C * 3 * R, t * (N * C + N * 3 * R) + 2 * f * 3 * R * C,
            [&] { k_.gemm_tn(3 * R_, c_.C, batch_.N, S_, 3 * R_, x_, c_.C, g_, c_.C); });
        row("gemm_tn", "lora dB", 2 * N * C * R, t * (N * C + N * R) + 2 * f * R * C,
            [&] { k_.gemm_tn(c_.C, R_, batch_.N, d_, c_.C, S_, 3 * R_, g_, R_); });
        const int q = c_.H * c_.HS, kv = c_.KV * c_.HS;
        for (const auto& [name, dy, widths] : {std::tuple{"lora dB, dS: qkv", dqkv_, std::vector{q, kv, kv}},
                                               {"lora dB, dS: gate|up", wide_, std::vector{c_.I, c_.I}}}) {
            std::vector<LowRankGradient<T, F>> terms;
            int width = 0;
            for (const int out : widths) {
                const int i = static_cast<int>(terms.size());
                terms.push_back({width, out, R_, S_ + i * R_, 3 * R_, params_ + int64_t{width} * R_,
                                 g_ + int64_t{width} * R_, dS_ + i * R_, 3 * R_});
                width += out;
            }
            const double out = width, n = static_cast<double>(terms.size());
            row("low_rank_backward", name, 4 * N * out * R, t * (N * (out + 2 * n * R) + out * R) + 2 * f * out * R,
                [&, dy = dy, width = width] { k_.low_rank_backward(batch_.N, 2, dy, width, terms); });
        }
        row("embed", "", 0, 2 * t * N * C, [&] { k_.embed(batch_, head_w_, y_); });
        row("rmsnorm", "", 4 * N * C, 2 * t * N * C,
            [&] { k_.rmsnorm(batch_.N, c_.C, c_.rms_eps, x_, w_, y_, c_.C, r_); });
        row("add_rmsnorm", "", (kLowParts<K> ? 7 : 5) * N * C, (kLowParts<K> ? 6 : 4) * t * N * C, [&] {
            if constexpr (kLowParts<K>)
                k_.add_rmsnorm(batch_.N, c_.C, c_.rms_eps, x_, d_, w_, dx_, y_, c_.C, r_, wide_, wide_);
            else
                k_.add_rmsnorm(batch_.N, c_.C, c_.rms_eps, x_, d_, w_, dx_, y_, c_.C, r_);
        });
        row("normalize", "", 2 * N * C, 2 * t * N * C, [&] { k_.normalize(batch_.N, c_.C, x_, w_, r_, y_, c_.C); });
        row("rmsnorm_backward", "", 8 * N * C, 4 * t * N * C,
            [&] { k_.rmsnorm_backward(batch_.N, c_.C, d_, x_, w_, r_, dx_, c_.C, true); });
        row("rope", "", 3 * N * (c_.H + c_.KV) * c_.HS, 2 * t * N * (c_.H + c_.KV) * c_.HS,
            [&] { k_.rope(batch_, shape_, table_, 1, dqkv_); });
        row("attention", "", 4 * c_.HS * c_.H * context(), t * N * (2 * attention + 2 * c_.KV * c_.HS),
            [&] { k_.attention(batch_, shape_, qkv_, o_, lse_); });
        row("attention_backward", "", 10 * c_.HS * c_.H * context(), t * N * 4 * (attention + c_.KV * c_.HS),
            [&] { k_.attention_backward(batch_, shape_, qkv_, o_, lse_, d_o_, dqkv_); });
        row("swiglu", "", 5 * N * I, 3 * t * N * I, [&] { k_.swiglu(batch_.N, c_.I, gu_, h_); });
        row("swiglu_backward", "", 10 * N * I, 6 * t * N * I, [&] { k_.swiglu_backward(batch_.N, c_.I, h_, gu_, h_); });
        row("dropout", "", N * C, 2 * t * N * C, [&] { k_.dropout(batch_, 0, batch_.N, c_.C, 0.1, 1, x_, y_); });
        row("dropout_add", "", 2 * N * C, 3 * t * N * C,
            [&] { k_.dropout_add(batch_, 0, batch_.N, c_.C, 0.1, 1, d_, dx_); });
        row("head", "loss and gradient", 4 * heads * C * V, t * (2 * heads * C + 2 * V * C),
            [&] { k_.head(batch_, c_.C, x_, head_w_, logp_, U_); });
        row("head", "loss alone", 2 * heads * C * V, t * (heads * C + V * C),
            [&] { k_.head(batch_, c_.C, x_, head_w_, logp_, static_cast<T*>(nullptr)); });
        row("orpo", "", 0, 2 * 8 * heads, [&] { k_.orpo(batch_, logp_, coefficients_); });
        row("scatter_scaled", "", 2 * heads * C, t * (heads * C + N * C),
            [&] { k_.scatter_scaled(batch_, c_.C, U_, coefficients_, dx_); });
        row("squared_norms", "", 2 * arena, f * arena, [&] { k_.squared_norms(1, arena_size(), g_, &norm_); });
        AdamwSlot slot;
        slot.lr = 1e-5, slot.bias1 = 0.5, slot.bias2 = 0.5;
        row("adamw", "", 14 * arena, 7 * f * arena, [&] { k_.adamw(1, arena_size(), &slot, p_, g_, m_, v_); });
        row("cast", "", 0, (t + f) * kStaged, [&] { k_.cast(kStaged, staged_, wide_); });
        // Decoding: one new token behind `cached` ones.
        row("linear", "gate|up, 1 row", 2.0 * gate_up_w_.rows * C, t * gate_up_w_.rows * C,
            [&] { k_.linear(1, x_, gate_up_w_, wide_); });
        row("linear", "down, 1 row", 2.0 * C * I, t * C * I, [&] { k_.linear(1, h_, down_w_, y_); });
        row("cache_append", "1 row", 0, t * 4 * c_.KV * c_.HS,
            [&] { k_.cache_append(one_, shape_, cached_ + 1, qkv_, cache_); });
        row("decode_attention", "1 row", 4.0 * c_.HS * c_.H * (cached_ + 1), t * 2 * c_.KV * c_.HS * (cached_ + 1),
            [&] { k_.decode_attention(one_, shape_, cached_ + 1, table_, qkv_, cache_, o_); });
        row("logits", "1 row", 2 * C * V, t * C * V, [&] { k_.logits(one_, c_.C, x_, head_w_, z_); });
        return rows;
    }

  private:
    static constexpr int64_t kStaged = 1 << 16;

    int64_t arena_size() const {  // the adapters of one layer
        const int64_t outs = shape_.width() + c_.C + 2 * int64_t{c_.I} + c_.C;
        const int64_t ins = 4 * int64_t{c_.C} + c_.I + 2 * int64_t{c_.C};
        return R_ * (outs + ins);
    }
    // Uniform in [-1/2, 1/2).
    static float next(uint32_t& state) {
        state = state * 1664525u + 1013904223u;
        return static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    }
    void fill_full(F* to, int64_t n, double scale) {
        std::vector<F> values(static_cast<size_t>(n));
        uint32_t state = 777;
        for (F& value : values) value = static_cast<F>(scale * (0.75 + next(state)));
        k_.write(n, values.data(), to);
    }
    // Numbers around zero, never zeros: a processor's power, and so its clock, depends on what it multiplies.
    void fill(T* to, int64_t n) {
        std::vector<F> values(static_cast<size_t>(kStaged));
        uint32_t state = 12345;
        for (F& value : values) value = next(state);
        k_.write(kStaged, values.data(), staged_);
        for (int64_t at = 0; at < n; at += kStaged) k_.cast(std::min(kStaged, n - at), staged_, to + at);
    }
    MicroBatch one_token() const {
        MicroBatch mb;
        mb.ids = {1}, mb.positions = {cached_};
        PairSpan span;
        span.chosen = span.rejected = span.end = 1, span.heads = 1;
        mb.pairs = {span};
        mb.heads = {HeadRow{}};
        return mb;
    }
    // The sum over the rows of how many rows each one sees.
    double context() const {
        double sum = 0;
        for (const PairSpan& p : pairs(batch_)) {
            const double branch = p.rejected - p.begin, own = p.end - p.rejected, prompt = p.chosen - p.begin;
            sum += branch * (branch + 1) / 2 + own * prompt + own * (own + 1) / 2;
        }
        return sum;
    }
    static const std::vector<PairSpan>& pairs(const HostBatch& b) { return b.pairs; }
    template <class B>
    static const std::vector<PairSpan>& pairs(const B& b) requires requires {
        b.host->pairs;
    }
    { return b.host->pairs; }

    K& k_;
    ModelConfig c_;
    int R_, cached_, positions_ = 0;
    HeadShape shape_;
    int N_, heads_;
    typename K::Batch batch_, one_;
    int64_t cols_ = 0, parameters_n_ = 0;
    typename K::Weight qkv_w_, out_w_, gate_up_w_, down_w_, head_w_;
    T *x_ = nullptr, *d_ = nullptr, *y_ = nullptr, *dx_ = nullptr, *qkv_ = nullptr, *dqkv_ = nullptr, *o_ = nullptr,
      *d_o_ = nullptr, *gu_ = nullptr, *h_ = nullptr, *wide_ = nullptr, *S_ = nullptr, *dS_ = nullptr, *U_ = nullptr,
      *params_ = nullptr, *cache_ = nullptr;
    F *r_ = nullptr, *lse_ = nullptr, *w_ = nullptr, *staged_ = nullptr, *z_ = nullptr, *p_ = nullptr, *g_ = nullptr,
      *m_ = nullptr, *v_ = nullptr, *table_ = nullptr;
    double *logp_ = nullptr, *coefficients_ = nullptr;
    double norm_ = 0;
};

}  // namespace orpo
