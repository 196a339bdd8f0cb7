// A backend that counts, per kind of operation, calls, seconds and useful FLOPs: what `orpo bench` prints. It derives
// from the real one and shadows its operations, so the transformer runs on it unchanged.
#pragma once

#include <chrono>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "kernels/kernels.h"

namespace orpo {

struct OperationTime {
    int64_t calls = 0;
    double seconds = 0, flops = 0;
};
using OperationTimes = std::map<std::string, OperationTime>;

template <class K>
class Timed : public K {
  public:
    using typename K::Batch, typename K::Weight;
    using T = typename K::T;
    using F = typename K::F;
    using K::K;

    OperationTimes times;

    void linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added = {}) {
        count("linear", 2.0 * N * W.rows * W.cols + flops(added), [&] { K::linear(N, x, W, y, added); });
    }
    void linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added = {}) {
        count("linear_backward", 2.0 * N * W.rows * W.cols + flops(added),
              [&] { K::linear_backward(N, dy, W, dx, added); });
    }
    template <class... More>
    void gemm_nt(int M, int N, int C, More... more) {
        count(C <= N ? "lora S B^T" : "lora x A^T", 2.0 * M * N * C, [&] { K::gemm_nt(M, N, C, more...); });
    }
    template <class... More>
    void gemm_nn(int M, int N, int C, More... more) {
        count(C <= N ? "lora dS A" : "lora dy B", 2.0 * M * N * C, [&] { K::gemm_nn(M, N, C, more...); });
    }
    template <class... More>
    void gemm_tn(int M, int N, int C, More... more) {
        count(M <= N ? "lora dA" : "lora dB", 2.0 * M * N * C, [&] { K::gemm_tn(M, N, C, more...); });
    }
    void low_rank_backward(int N, double scale, const T* dy, int ldy,
                           std::span<const LowRankGradient<T, F>> gradients) {
        double flops = 0;
        for (const auto& g : gradients) flops += 4.0 * N * g.columns * g.R;
        count("lora dB, dS", flops, [&] { K::low_rank_backward(N, scale, dy, ldy, gradients); });
    }
    void attention(const Batch& b, const HeadShape& shape, const T* qkv, T* o, F* lse) {
        count("attention", 4.0 * shape.HS * shape.H * visible(b), [&] { K::attention(b, shape, qkv, o, lse); });
    }
    void attention_backward(const Batch& b, const HeadShape& shape, const T* qkv, const T* o, const F* lse,
                            const T* d_o, T* dqkv) {
        count("attention_backward", 10.0 * shape.HS * shape.H * visible(b),
              [&] { K::attention_backward(b, shape, qkv, o, lse, d_o, dqkv); });
    }
    void head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U) {
        count("head", (U ? 4.0 : 2.0) * b.heads_n * W.rows * C, [&] { K::head(b, C, n, W, logp, U); });
    }
#define ORPO_TIMED(operation)                                                     \
    template <class... Args>                                                      \
    void operation(Args&&... args) {                                              \
        count(#operation, 0, [&] { K::operation(std::forward<Args>(args)...); }); \
    }
    ORPO_TIMED(embed)
    ORPO_TIMED(rmsnorm)
    ORPO_TIMED(add_rmsnorm)
    ORPO_TIMED(normalize)
    ORPO_TIMED(rmsnorm_backward)
    ORPO_TIMED(rope)
    ORPO_TIMED(swiglu)
    ORPO_TIMED(swiglu_backward)
    ORPO_TIMED(dropout)
    ORPO_TIMED(dropout_add)
    ORPO_TIMED(orpo)
    ORPO_TIMED(scatter_scaled)
    ORPO_TIMED(squared_norms)
    ORPO_TIMED(adamw)
#undef ORPO_TIMED

  private:
    template <class F2>
    void count(const char* name, double flops, F2 f) {
        const auto start = std::chrono::steady_clock::now();
        f();
        OperationTime& t = times[name];
        t.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        t.flops += flops;
        ++t.calls;
    }
    static double flops(std::span<const LowRank<T>> added) {
        double sum = 0;
        for (const LowRank<T>& t : added) sum += 2.0 * t.rows * t.columns * t.R;
        return sum;
    }
    // Sum over the rows of how many rows each one sees.
    static double visible(const Batch& b) {
        double sum = 0;
        for (const auto& p : b.pairs) {
            const double prompt = p.chosen - p.begin, shared = p.rejected - p.begin, own = p.end - p.rejected;
            sum += shared * (shared + 1) / 2 + own * prompt + own * (own + 1) / 2;
        }
        return sum;
    }
};

}  // namespace orpo
