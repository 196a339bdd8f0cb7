// The operations of kernels.h as they stand in text books: one loop per index, T = float or double.
// The oracle of every other backend; in double, the target of finite differences. Slow on purpose.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "kernels/dropout_mask.h"
#include "kernels/kernels.h"
#include "kernels/orpo_pair.h"
#include "kernels/sample.h"

namespace orpo {

template <class Scalar>
class Reference {
  public:
    using T = Scalar;
    using F = Scalar;
    using Batch = HostBatch;
    struct Weight {
        int rows = 0, cols = 0;
        const T* data = nullptr;  // (rows, cols)
    };

    explicit Reference(bool planning = false) : planning_(planning) {}
    Reference(const Reference&) = delete;

    // --- memory. New memory holds NaN: what is read before it was written shows.
    bool planning() const { return planning_; }
    const MemoryTable& memory() const { return memory_; }
    template <class U>
    U* allocate(Category category, const std::string& name, int64_t count) {
        memory_.add(category, name, count * static_cast<int64_t>(sizeof(U)));
        if (planning_) return nullptr;
        auto& blocks = blocks_of(static_cast<U*>(nullptr));
        return blocks.emplace_back(std::max<int64_t>(count, 1), std::numeric_limits<U>::quiet_NaN()).data();
    }
    void reserve(const Limits& limits) { z_ = allocate<T>(Category::kWorkspace, "logits of one row", limits.V); }
    Weight prepare(const std::string& name, int64_t rows, int64_t cols, unsigned, const RowReader& read) {
        T* data = allocate<T>(Category::kWeights, name, rows * cols);
        std::vector<float> row(cols);
        for (int64_t r = 0; data && r < rows; ++r) {
            read(r, 1, row.data());
            std::copy(row.begin(), row.end(), data + r * cols);
        }
        return {static_cast<int>(rows), static_cast<int>(cols), data};
    }
    Batch make_batch(int tokens, int pairs, int heads) {
        memory_.add(Category::kBatch, "micro-batch", HostBatch::bytes(tokens, pairs, heads));
        return HostBatch(tokens, pairs, heads);
    }
    void upload(const MicroBatch& mb, Batch& batch) { batch.fill(mb); }
    void write(int64_t n, const F* host, F* to) { planning_ ? void() : void(std::copy_n(host, n, to)); }
    void read(int64_t n, const F* from, F* host) { std::copy_n(from, n, host); }
    void read(int64_t n, const double* from, double* host) requires(!std::same_as<F, double>) {
        std::copy_n(from, n, host);
    }
    void zero(int64_t n, F* x) { planning_ ? void() : void(std::fill_n(x, n, F{0})); }
    void cast(int64_t n, const F* x, T* y) { std::copy_n(x, n, y); }
    void finish() {}
    void once(const std::string&, const Batch&, const std::function<void()>& f) { f(); }

    // --- products
    void linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added = {}) {
        gemm_nt(N, W.rows, W.cols, 1, x, W.cols, W.data, W.cols, y, W.rows, false);
        for (const LowRank<T>& t : added)
            gemm_nt(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, y + int64_t{t.row} * W.rows + t.column, W.rows,
                    true);
    }
    void linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added = {}) {
        gemm_nn(N, W.cols, W.rows, 1, dy, W.rows, W.data, W.cols, dx, W.cols, false);
        for (const LowRank<T>& t : added)
            gemm_nn(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, dx + int64_t{t.row} * W.cols + t.column, W.cols,
                    true);
    }
    void gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                T sum = 0;
                for (int k = 0; k < K; ++k) sum += A[int64_t{m} * lda + k] * B[int64_t{n} * ldb + k];
                T& c = C[int64_t{m} * ldc + n];
                c = static_cast<T>(a) * sum + (accumulate ? c : T{0});
            }
    }
    void gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                T sum = 0;
                for (int k = 0; k < K; ++k) sum += A[int64_t{m} * lda + k] * B[int64_t{k} * ldb + n];
                T& c = C[int64_t{m} * ldc + n];
                c = static_cast<T>(a) * sum + (accumulate ? c : T{0});
            }
    }
    void gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, F* C, int ldc) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                F sum = 0;
                for (int k = 0; k < K; ++k) sum += A[int64_t{k} * lda + m] * B[int64_t{k} * ldb + n];
                C[int64_t{m} * ldc + n] += sum;
            }
    }

    void low_rank_backward(int N, double scale, const T* dy, int ldy,
                           std::span<const LowRankGradient<T, F>> gradients) {
        low_rank_products(*this, N, scale, dy, ldy, gradients);
    }

    // --- layers
    void embed(const Batch& b, const Weight& E, T* x) {
        for (int n = 0; n < b.N; ++n) std::copy_n(E.data + int64_t{b.ids[n]} * E.cols, E.cols, x + int64_t{n} * E.cols);
    }
    void rmsnorm(int N, int C, double eps, const T* x, const F* w, T* y, int ldy, F* r) {
        for (int n = 0; n < N; ++n) {
            const T* xn = x + int64_t{n} * C;
            T squares = 0;
            for (int c = 0; c < C; ++c) squares += xn[c] * xn[c];
            r[n] = 1 / std::sqrt(squares / C + static_cast<T>(eps));
        }
        normalize(N, C, x, w, r, y, ldy);
    }
    void add_rmsnorm(int N, int C, double eps, const T* x, const T* d, const F* w, T* x2, T* y, int ldy, F* r) {
        for (int64_t i = 0; i < int64_t{N} * C; ++i) x2[i] = x[i] + d[i];
        rmsnorm(N, C, eps, x2, w, y, ldy, r);
    }
    void normalize(int N, int C, const T* x, const F* w, const F* r, T* y, int ldy) {
        for (int n = 0; n < N; ++n)
            for (int c = 0; c < C; ++c) y[int64_t{n} * ldy + c] = x[int64_t{n} * C + c] * r[n] * w[c];
    }
    void rmsnorm_backward(int N, int C, const T* dy, const T* x, const F* w, const F* r, T* dx, int lddx,
                          bool accumulate) {
        for (int n = 0; n < N; ++n) {
            const int64_t at = int64_t{n} * C;
            T* to = dx + int64_t{n} * lddx;
            T dot = 0;
            for (int c = 0; c < C; ++c) dot += x[at + c] * w[c] * dy[at + c];
            const T pull = dot / C * r[n] * r[n];
            for (int c = 0; c < C; ++c)
                to[c] = r[n] * (w[c] * dy[at + c] - x[at + c] * pull) + (accumulate ? to[c] : T{0});
        }
    }
    void rope(const Batch& b, const HeadShape& shape, const F* table, int sign, T* qkv) {
        const int half = shape.HS / 2;
        for (int n = 0; n < b.N; ++n)
            for (int h = 0; h < shape.H + shape.KV; ++h)
                for (int j = 0; j < half; ++j) {
                    const F* turn = table + (int64_t{b.positions[n]} * half + j) * 2;
                    const T c = turn[0], s = sign * turn[1];
                    T* head = qkv + int64_t{n} * shape.width() + h * shape.HS;
                    const T x = head[j], y = head[j + half];
                    head[j] = x * c - y * s;
                    head[j + half] = y * c + x * s;
                }
    }

    // May row `query` see row `key`?
    static bool sees(const PairSpan& p, int query, int key) {
        if (key > query) return false;
        return query < p.rejected || key < p.chosen || key >= p.rejected;
    }
    void attention(const Batch& b, const HeadShape& shape, const T* qkv, T* o, F* lse) {
        const auto [H, KV, HS] = shape;
        const int W = shape.width();
        std::vector<T> s(b.N);
        std::vector<const T*> values(b.N);
        for (const PairSpan& pair : b.pairs)
            for (int i = pair.begin; i < pair.end; ++i)
                for (int h = 0; h < H; ++h) {
                    const int g = h / (H / KV);  // the key/value head of this query head
                    int count = 0;
                    for (int j = pair.begin; j <= i; ++j) {
                        if (!sees(pair, i, j)) continue;
                        s[count] =
                            dot(HS, qkv + int64_t{i} * W + h * HS, qkv + int64_t{j} * W + (H + g) * HS) / root(HS);
                        values[count++] = qkv + int64_t{j} * W + (H + KV + g) * HS;
                    }
                    lse[int64_t{i} * H + h] = weigh(HS, count, s.data(), values.data(), o + (int64_t{i} * H + h) * HS);
                }
    }
    // P = softmax(S);  dV = P^T dO;  dP = dO V^T;  dS = P (dP - rowsum(dO O));  dQ = dS K;  dK = dS^T Q
    void attention_backward(const Batch& b, const HeadShape& shape, const T* qkv, const T* o, const F* lse,
                            const T* d_o, T* dqkv) {
        const auto [H, KV, HS] = shape;
        const int W = shape.width();
        std::fill_n(dqkv, int64_t{b.N} * W, T{0});
        for (const PairSpan& pair : b.pairs)
            for (int i = pair.begin; i < pair.end; ++i)
                for (int h = 0; h < H; ++h) {
                    const int g = h / (H / KV);
                    const T* q = qkv + int64_t{i} * W + h * HS;
                    const T* dout = d_o + (int64_t{i} * H + h) * HS;
                    const T delta = dot(HS, dout, o + (int64_t{i} * H + h) * HS);
                    T* dq = dqkv + int64_t{i} * W + h * HS;
                    for (int j = pair.begin; j <= i; ++j) {
                        if (!sees(pair, i, j)) continue;
                        const int64_t at_k = int64_t{j} * W + (H + g) * HS, at_v = at_k + int64_t{KV} * HS;
                        const T p = std::exp(dot(HS, q, qkv + at_k) / root(HS) - lse[int64_t{i} * H + h]);
                        const T ds = p * (dot(HS, dout, qkv + at_v) - delta) / root(HS);
                        for (int d = 0; d < HS; ++d) {
                            dq[d] += ds * qkv[at_k + d];
                            dqkv[at_k + d] += ds * q[d];
                            dqkv[at_v + d] += p * dout[d];
                        }
                    }
                }
    }
    void swiglu(int N, int I, const T* gu, T* h) {
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < I; ++i) {
                const T g = gu[int64_t{n} * 2 * I + i], u = gu[int64_t{n} * 2 * I + I + i];
                h[int64_t{n} * I + i] = g / (1 + std::exp(-g)) * u;
            }
    }
    void swiglu_backward(int N, int I, const T* dh, T* gu, T* h) {
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < I; ++i) {
                T& g = gu[int64_t{n} * 2 * I + i];
                T& u = gu[int64_t{n} * 2 * I + I + i];
                const T sigma = 1 / (1 + std::exp(-g)), d = dh[int64_t{n} * I + i];
                const T dg = d * u * sigma * (1 + g * (1 - sigma));
                if (h) h[int64_t{n} * I + i] = g * sigma * u;
                u = d * g * sigma;
                g = dg;
            }
    }
    void dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* x, T* y) {
        each_masked(b, first, rows, C, p, tensor, [&](int64_t at, T factor) { y[at] = factor * x[at]; });
    }
    void dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* d, T* dx) {
        each_masked(b, first, rows, C, p, tensor, [&](int64_t at, T factor) { dx[at] += factor * d[at]; });
    }

    // --- the head and the loss: one row of logits at a time
    void head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U) {
        for (int i = 0; i < b.heads_n; ++i) {
            const int V = W.rows, target = b.heads[i].target;
            linear(1, n + int64_t{b.heads[i].row} * C, W, z_);
            const T top = *std::max_element(z_, z_ + V);
            T sum = 0;
            for (int v = 0; v < V; ++v) sum += std::exp(z_[v] - top);
            const T lse = top + std::log(sum);
            // A confident token: log p = -log1p(the others' weight relative to the target's), with no cancellation.
            T others = 0;
            for (int v = 0; v < V; ++v)
                if (v != target) others += std::exp(z_[v] - z_[target]);
            logp[i] = z_[target] - lse < T{-1} ? z_[target] - lse : -std::log1p(others);
            if (!U) continue;
            for (int v = 0; v < V; ++v) z_[v] = std::exp(z_[v] - lse);
            z_[target] = static_cast<T>(std::expm1(logp[i]));  // p - 1
            linear_backward(1, z_, W, U + int64_t{i} * C);
        }
    }
    void orpo(const Batch& b, const double* logp, double* coefficients) {
        for (const PairSpan& span : b.pairs) {
            const PairLoss pair = orpo_pair(span, b.heads.data() + span.first_head, logp + span.first_head);
            for (int i = span.first_head; i < span.first_head + span.heads; ++i)
                coefficients[i] = row_coefficient(b.heads[i], pair);
        }
    }
    void scatter_scaled(const Batch& b, int C, const T* U, const double* coefficients, T* dn) {
        for (int n = 0; n < b.N; ++n) {
            std::fill_n(dn + int64_t{n} * C, C, T{0});
            for (const int i : {b.head1[n], b.head2[n]})
                for (int c = 0; i >= 0 && c < C; ++c)
                    dn[int64_t{n} * C + c] += static_cast<T>(coefficients[i]) * U[int64_t{i} * C + c];
        }
    }
    void logits(const Batch& b, int C, const T* n, const Weight& W, F* z) {
        for (int i = 0; i < b.heads_n; ++i) linear(1, n + int64_t{b.heads[i].row} * C, W, z + int64_t{i} * W.rows);
    }

    void sample(const Batch& b, int V, const F* z, const Draw& draw, int32_t* ids) {
        for (int i = 0; i < b.heads_n; ++i) {
            const std::vector<float> row(z + int64_t{i} * V, z + int64_t{i + 1} * V);
            ids[i] = orpo::sample(row, draw.rule, draw_random(draw, b.heads[i].text));
        }
    }

    // --- the optimizer
    void squared_norms(int slots, int64_t n, const F* g, double* out) {
        for (int s = 0; s < slots; ++s) {
            out[s] = 0;
            for (int64_t i = 0; i < n; ++i) out[s] += static_cast<double>(g[s * n + i]) * g[s * n + i];
        }
    }
    void adamw(int slots, int64_t n, const AdamwSlot* slot, F* p, const F* g, F* m, F* v) {
        for (int s = 0; s < slots; ++s) {
            const AdamwSlot& a = slot[s];
            for (int64_t i = s * n; a.active && i < (s + 1) * n; ++i) {
                const F gi = g[i] * static_cast<F>(a.grad_scale);
                p[i] *= static_cast<F>(1 - a.lr * a.weight_decay);
                m[i] += static_cast<F>(1 - a.beta1) * (gi - m[i]);
                v[i] = static_cast<F>(a.beta2) * v[i] + static_cast<F>(1 - a.beta2) * gi * gi;
                p[i] -= static_cast<F>(a.lr / a.bias1) * m[i] /
                        (std::sqrt(v[i]) / static_cast<F>(std::sqrt(a.bias2)) + static_cast<F>(a.eps));
            }
        }
    }

    // --- generation
    void cache_append(const Batch& b, const HeadShape& shape, int capacity, const T* qkv, T* cache) {
        const auto [H, KV, HS] = shape;
        for (int n = 0; n < b.N; ++n)
            std::copy_n(qkv + int64_t{n} * shape.width() + H * HS, 2 * KV * HS,
                        cache + (int64_t{b.mask_pair[n] / 2} * capacity + b.positions[n]) * 2 * KV * HS);
    }
    void decode_attention(const Batch& b, const HeadShape& shape, int capacity, const F* table, T* qkv, T* cache,
                          T* o) {
        const auto [H, KV, HS] = shape;
        rope(b, shape, table, 1, qkv);
        cache_append(b, shape, capacity, qkv, cache);
        for (int n = 0; n < b.N; ++n) {
            const T* rows = cache + int64_t{b.mask_pair[n] / 2} * capacity * 2 * KV * HS;
            const int count = b.positions[n] + 1;
            std::vector<T> s(count);
            std::vector<const T*> values(count);
            for (int h = 0; h < H; ++h) {
                for (int j = 0; j < count; ++j) {
                    const T* k = rows + (int64_t{j} * 2 * KV + h / (H / KV)) * HS;
                    s[j] = dot(HS, qkv + int64_t{n} * shape.width() + h * HS, k) / root(HS);
                    values[j] = k + KV * HS;
                }
                weigh(HS, count, s.data(), values.data(), o + (int64_t{n} * H + h) * HS);
            }
        }
    }

  private:
    static T root(int HS) { return std::sqrt(static_cast<T>(HS)); }
    static T dot(int n, const T* a, const T* b) {
        T sum = 0;
        for (int i = 0; i < n; ++i) sum += a[i] * b[i];
        return sum;
    }
    // out = softmax(s) values; returns log sum exp(s).
    static T weigh(int HS, int count, const T* s, const T* const* values, T* out) {
        const T top = *std::max_element(s, s + count);
        T sum = 0;
        for (int j = 0; j < count; ++j) sum += std::exp(s[j] - top);
        const T lse = top + std::log(sum);
        std::fill_n(out, HS, T{0});
        for (int j = 0; j < count; ++j)
            for (int d = 0; d < HS; ++d) out[d] += std::exp(s[j] - lse) * values[j][d];
        return lse;
    }
    // f(index, 0 or 1 / (1 - p)) for every element of rows [first, first + rows).
    template <class Each>
    void each_masked(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, Each f) {
        const T keep = static_cast<T>(1 / (1 - p));
        for (int n = first; n < first + rows; ++n)
            for (int c = 0; c < C; ++c) {
                const auto words =
                    dropout_words(b.dropout_key, b.step, b.mask_pair[n], b.positions[n], tensor, uint32_t(c / 4));
                f(int64_t{n} * C + c, dropout_keeps(words[c % 4], p) ? keep : T{0});
            }
    }
    std::deque<std::vector<T>>& blocks_of(T*) { return blocks_; }
    std::deque<std::vector<double>>& blocks_of(double*) requires(!std::same_as<T, double>) { return doubles_; }

    bool planning_;
    MemoryTable memory_;
    std::deque<std::vector<T>> blocks_;
    std::deque<std::vector<double>> doubles_;
    T* z_ = nullptr;  // (V)
};

static_assert(Kernels<Reference<double>> && Kernels<Reference<float>>);

}  // namespace orpo
