// The operations of kernels.h as they stand in text books: one loop per index, T = float or double.
// The oracle of every other backend; in double, the target of finite differences. Slow on purpose.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/philox.h"
#include "kernels/kernels.h"

namespace orpo {

template <class Scalar>
struct Reference {
    using T = Scalar;

    static void gemm_nt(int M, int N, int K, const T* A, int lda, const T* B, int ldb, T* C, int ldc, bool accumulate) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                T sum = accumulate ? C[int64_t{m} * ldc + n] : T{0};
                for (int k = 0; k < K; ++k) sum += A[int64_t{m} * lda + k] * B[int64_t{n} * ldb + k];
                C[int64_t{m} * ldc + n] = sum;
            }
    }

    static void gemm_nn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, T* C, int ldc, bool accumulate) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                T sum = accumulate ? C[int64_t{m} * ldc + n] : T{0};
                for (int k = 0; k < K; ++k) sum += A[int64_t{m} * lda + k] * B[int64_t{k} * ldb + n];
                C[int64_t{m} * ldc + n] = sum;
            }
    }

    static void gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, T* C, int ldc, bool accumulate) {
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                T sum = accumulate ? C[int64_t{m} * ldc + n] : T{0};
                for (int k = 0; k < K; ++k) sum += A[int64_t{k} * lda + m] * B[int64_t{k} * ldb + n];
                C[int64_t{m} * ldc + n] = sum;
            }
    }

    static void embed(int N, int C, const int32_t* ids, const T* E, T* x) {
        for (int n = 0; n < N; ++n) std::copy_n(E + int64_t{ids[n]} * C, C, x + int64_t{n} * C);
    }

    static void add(int64_t n, const T* x, T* y) {
        for (int64_t i = 0; i < n; ++i) y[i] += x[i];
    }

    static void scale(int64_t n, double s, T* y) {
        for (int64_t i = 0; i < n; ++i) y[i] *= static_cast<T>(s);
    }

    static void rmsnorm(int N, int C, double eps, const T* x, const T* w, T* y, T* r) {
        for (int n = 0; n < N; ++n) {
            const T* xn = x + int64_t{n} * C;
            T squares = 0;
            for (int c = 0; c < C; ++c) squares += xn[c] * xn[c];
            r[n] = 1 / std::sqrt(squares / C + static_cast<T>(eps));
            for (int c = 0; c < C; ++c) y[int64_t{n} * C + c] = xn[c] * r[n] * w[c];
        }
    }

    static void rmsnorm_backward(int N, int C, const T* dy, const T* x, const T* w, const T* r, T* dx) {
        for (int n = 0; n < N; ++n) {
            const int64_t at = int64_t{n} * C;
            T dot = 0;
            for (int c = 0; c < C; ++c) dot += x[at + c] * w[c] * dy[at + c];
            const T pull = dot / C * r[n] * r[n];
            for (int c = 0; c < C; ++c) dx[at + c] += r[n] * (w[c] * dy[at + c] - x[at + c] * pull);
        }
    }

    static void rope(int N, int first, int heads, int HS, double theta, int sign, const int32_t* positions, T* x,
                     int ld) {
        const int half = HS / 2;
        for (int n = 0; n < N; ++n)
            for (int h = first; h < first + heads; ++h)
                for (int j = 0; j < half; ++j) {
                    const double angle = positions[n] * std::pow(theta, -2.0 * j / HS);
                    const T c = static_cast<T>(std::cos(angle)), s = static_cast<T>(sign * std::sin(angle));
                    T& a = x[int64_t{n} * ld + h * HS + j];
                    T& b = x[int64_t{n} * ld + h * HS + half + j];
                    const T a0 = a, b0 = b;
                    a = a0 * c - b0 * s;
                    b = b0 * c + a0 * s;
                }
    }

    // May row `query` see row `key`?
    static bool sees(const Branches& b, int query, int key) {
        if (key > query) return false;
        return query < b.rejected || key < b.chosen || key >= b.rejected;
    }

    static void attention(const HeadShape& shape, const Branches& b, const T* qkv, T* o, T* lse) {
        const auto [H, KV, HS] = shape;
        const int W = shape.width();
        const T scale = 1 / std::sqrt(static_cast<T>(HS));
        std::vector<T> p(b.end);
        for (int i = b.begin; i < b.end; ++i)
            for (int h = 0; h < H; ++h) {
                const T* q = qkv + int64_t{i} * W + h * HS;
                const int g = h / (H / KV);  // the key/value head of this query head
                T top = -INFINITY;
                for (int j = b.begin; j <= i; ++j) {
                    if (!sees(b, i, j)) continue;
                    const T* k = qkv + int64_t{j} * W + (H + g) * HS;
                    T dot = 0;
                    for (int d = 0; d < HS; ++d) dot += q[d] * k[d];
                    p[j] = dot * scale;
                    top = std::max(top, p[j]);
                }
                T sum = 0;
                for (int j = b.begin; j <= i; ++j)
                    if (sees(b, i, j)) sum += std::exp(p[j] - top);
                lse[int64_t{i} * H + h] = top + std::log(sum);
                T* out = o + int64_t{i} * H * HS + h * HS;
                std::fill_n(out, HS, T{0});
                for (int j = b.begin; j <= i; ++j) {
                    if (!sees(b, i, j)) continue;
                    const T weight = std::exp(p[j] - lse[int64_t{i} * H + h]);
                    const T* v = qkv + int64_t{j} * W + (H + KV + g) * HS;
                    for (int d = 0; d < HS; ++d) out[d] += weight * v[d];
                }
            }
    }

    // P = softmax(S);  dV = P^T dO;  dP = dO V^T;  dS = P (dP - rowsum(dO O));  dQ = dS K;  dK = dS^T Q
    static void attention_backward(const HeadShape& shape, const Branches& b, const T* qkv, const T* o, const T* lse,
                                   const T* d_o, T* dqkv) {
        const auto [H, KV, HS] = shape;
        const int W = shape.width();
        const T scale = 1 / std::sqrt(static_cast<T>(HS));
        std::fill(dqkv + int64_t{b.begin} * W, dqkv + int64_t{b.end} * W, T{0});
        for (int i = b.begin; i < b.end; ++i)
            for (int h = 0; h < H; ++h) {
                const int g = h / (H / KV);
                const T* q = qkv + int64_t{i} * W + h * HS;
                const T* out = o + int64_t{i} * H * HS + h * HS;
                const T* dout = d_o + int64_t{i} * H * HS + h * HS;
                T delta = 0;
                for (int d = 0; d < HS; ++d) delta += dout[d] * out[d];
                T* dq = dqkv + int64_t{i} * W + h * HS;
                for (int j = b.begin; j <= i; ++j) {
                    if (!sees(b, i, j)) continue;
                    const T* k = qkv + int64_t{j} * W + (H + g) * HS;
                    const T* v = qkv + int64_t{j} * W + (H + KV + g) * HS;
                    T* dk = dqkv + int64_t{j} * W + (H + g) * HS;
                    T* dv = dqkv + int64_t{j} * W + (H + KV + g) * HS;
                    T dot = 0, dp = 0;
                    for (int d = 0; d < HS; ++d) dot += q[d] * k[d], dp += dout[d] * v[d];
                    const T p = std::exp(dot * scale - lse[int64_t{i} * H + h]);
                    const T ds = p * (dp - delta) * scale;
                    for (int d = 0; d < HS; ++d) dq[d] += ds * k[d], dk[d] += ds * q[d], dv[d] += p * dout[d];
                }
            }
    }

    static void swiglu(int N, int I, const T* gu, T* out) {
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < I; ++i) {
                const T g = gu[int64_t{n} * 2 * I + i], u = gu[int64_t{n} * 2 * I + I + i];
                out[int64_t{n} * I + i] = g / (1 + std::exp(-g)) * u;
            }
    }

    static void swiglu_backward(int N, int I, const T* dh, T* gu) {
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < I; ++i) {
                T& g = gu[int64_t{n} * 2 * I + i];
                T& u = gu[int64_t{n} * 2 * I + I + i];
                const T sigma = 1 / (1 + std::exp(-g)), d = dh[int64_t{n} * I + i];
                const T dg = d * u * sigma * (1 + g * (1 - sigma));
                u = d * g * sigma;
                g = dg;
            }
    }

    // Counter: (tensor, pair and branch, position, channel / 4); key: seed and step. Each word decides one channel.
    static void dropout(int rows, int C, double p, const DropoutKey& key, const int32_t* positions, const T* x, T* y) {
        const T keep = static_cast<T>(1 / (1 - p));
        const uint64_t k = key.seed ^ (uint64_t{key.step} << 32 | 0x9E3779B9u);
        for (int n = 0; n < rows; ++n)
            for (int c = 0; c < C; ++c) {
                const auto words = philox(k, {key.tensor, key.pair << 1 | key.branch, static_cast<uint32_t>(positions[n]),
                                              static_cast<uint32_t>(c / 4)});
                const int64_t at = int64_t{n} * C + c;
                y[at] = uniform(words[c % 4]) < p ? T{0} : x[at] * keep;
            }
    }

    static void softmax_xent(int rows, int V, const int32_t* targets, T* z, double* logp) {
        for (int n = 0; n < rows; ++n) {
            T* zn = z + int64_t{n} * V;
            const T top = *std::max_element(zn, zn + V);
            T sum = 0;
            for (int v = 0; v < V; ++v) sum += std::exp(zn[v] - top);
            const T lse = top + std::log(sum);
            logp[n] = zn[targets[n]] - lse;
            for (int v = 0; v < V; ++v) zn[v] = std::exp(zn[v] - lse);
            // p - 1 for the target as -(1 - p) = expm1(log p): no cancellation for a confident token.
            zn[targets[n]] = static_cast<T>(std::expm1(logp[n]));
        }
    }
};

static_assert(Kernels<Reference<double>> && Kernels<Reference<float>>);

}  // namespace orpo
