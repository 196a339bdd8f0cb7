// The contract of every operation: one concept, implemented by
//   kernels/reference/  scalar text-book code, float or double: the oracle, and the target of finite differences
//   kernels/cpu/        vectorised, threaded; fp32 or bf16
//   kernels/cuda/       one GPU
// A backend is an object `k` of class K: threads, streams, handles and scratch live in it, there are no globals.
//   K::T       how activations are stored: float, bf16, double
//   K::F       full precision: float (double in Reference<double>); adapters' masters, gradients, moments, statistics
//   K::Weight  a frozen (out, in) matrix in whatever form the backend multiplies fastest
//   K::Batch   a micro-batch where the kernels can read it
// Pointers are row-major; "(N, C)" is a shape; ld* is the distance between rows in elements. T*, F* and double* point
// into the backend's own memory (k.allocate): nobody else may read or write it, except through k.read and k.write.
// Nothing here knows of models or data.
//
// Borders. A backend whose Weight has a `border` and a `foot` (kBorders) may hold a linear's low-rank term beside it:
//   [[W, B], [A, .]]   B (out, border), A (foot, in)
// so that [x | S] [W | B]^T and [dy | dS] [W ; A] are one product each, without another pass over the result. x then
// has rows of in + border, dy rows of out + foot; what writes x or dy takes the distance between its rows.
//
// Determinism: every output element is the sum of its terms in one fixed order that does not depend on the number of
// threads nor, for products over features (linear, gemm_nt, gemm_nn, attention, norms, head), on the number of rows.
// Two runs give the same bits. Sums over rows (gemm_tn, low_rank_backward's dB, squared_norms) have an order fixed by
// the shapes.
// Calls are in order; on a device they may still be running when they return. k.read waits.
// A backend may also have push_range(name, number) and pop_range(), for profilers (kernels/range.h).
//
//   operation          formula                                                     FLOPs               elements moved
//   linear             y = x W^T + low-rank terms                                  2 N in out          N(in+out) + W
//   linear_backward    dx = dy W + low-rank terms                                  2 N in out          N(in+out) + W
//   gemm_nt            C = a A B^T + (accumulate ? C : 0)                          2 M N K             MK + NK + MN
//   gemm_nn            C = a A B   + (accumulate ? C : 0)                          2 M N K             MK + KN + MN
//   gemm_tn            C += A^T B, C in F                                          2 M N K             KM + KN + 2MN
//   low_rank_backward  dB += dy^T S;  dS = a dy B                                  4 N out R           N out + 2 N R
//   embed              x[n] = E[ids[n]]                                            0                   2 N C
//   rmsnorm            y = x r w,  r = 1 / sqrt(mean(x^2) + eps)                   4 N C               2 N C
//   add_rmsnorm        x2 = x + d;  y = x2 r w                                     5 N C               4 N C
//     with low parts   x2 + x2_low = x + x_low + d;  y = (x2 + x2_low) r w         7 N C               6 N C
//   normalize          y = x r w, r given                                          2 N C               2 N C
//   rmsnorm_backward   dx (+)= r (w dy - x r^2 mean(x w dy))                         8 N C               4 N C
//   rope               (a, b) -> (a c - sign b s, b c + sign a s), j and j + HS/2  3 N (H+KV) HS       2 N (H+KV) HS
//   attention          o = softmax(q k^T / sqrt(HS)) v by ranges                   4 HS H ctx          N (2H + 2KV) HS
//   attention_backward dq, dk, dv                                                  10 HS H ctx         4 N (H + KV) HS
//   swiglu             h = silu(g) u                                               5 N I               3 N I
//   swiglu_backward    dg = dh u silu'(g), du = dh silu(g); h again                10 N I              6 N I
//   dropout            y = x mask / (1 - p)                                        n                   2 n
//   dropout_add        dx += d mask / (1 - p)                                      2 n                 3 n
//   head               z = n W^T; logp = z[t] - lse(z); U = (softmax(z) - onehot) W   4 rows C V       2 rows C + 2 W
//   orpo               c_t of every head row (kernels/orpo_pair.h)                 ~ 20 pairs          2 rows
//   scatter_scaled     dn[n] = sum over the head rows i at n of c_i U_i            2 rows C            rows C + N C
//   logits             z = n[row] W^T, in F                                        2 rows C V          rows (C + V) + W
//   sample             the next token of each row of logits (kernels/sample.h)     ~ 20 rows V         rows V
//   squared_norms      sum of g^2 of each slot, in double                          2 n                 n
//   adamw              PyTorch's AdamW, decoupled weight decay                     ~ 14 n              7 n
//   cast               y = (T) x                                                   0                   2 n
//   cache_append       K/V rows of qkv -> cache                                    0                   4 N KV HS
//   decode_attention   rope and append of a new row a sequence, o over its cache   4 HS H ctx          2 KV HS ctx
// ctx: the sum over rows of how many rows each one sees.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/batch.h"
#include "kernels/border.h"
#include "kernels/low_rank.h"
#include "kernels/memory.h"

namespace orpo {

// Widths of the fused attention input: a row of qkv is [H heads of q | KV heads of k | KV heads of v], each HS wide.
struct HeadShape {
    int H = 0, KV = 0, HS = 0;
    int width() const { return (H + 2 * KV) * HS; }
};

// What a weight will be asked for; a backend keeps only the forms that these need.
enum WeightUse : unsigned {
    kForward = 1,   // linear
    kBackward = 2,  // linear_backward
    kRows = 4,      // embed
};
// Rows [first, first + count) of the matrix as fp32, (count, cols). Called once per row, in ascending order.
using RowReader = std::function<void(int64_t first, int64_t count, float* out)>;

// The largest sizes that operations will be called with; a backend sizes its scratch from them.
struct Limits {
    int tokens = 0;  // rows of any call
    int heads = 0;   // head rows of a micro-batch
    int C = 0, I = 0, V = 0;
    HeadShape shape;
    bool gradients = true;  // backward operations will be called
    int sequences = 0;      // rows of decode_attention
    int R = 0;              // of the adapters that low_rank_backward will be called for
};

// One adapter slot's part of an AdamW step. torch.optim.AdamW:
//   p *= 1 - lr wd;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) +
//   eps)
// with g scaled by grad_scale first (clipping) and bias_i = 1 - b_i^t.
struct AdamwSlot {
    double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
    double bias1 = 1, bias2 = 1;
    double grad_scale = 1;
    bool active = true;  // false: this slot is left as it is
};

// A long sum in K::T, such as the residual stream, needs a second array for what its rounding cuts off.
template <class K>
inline constexpr bool kLowParts = sizeof(typename K::T) < sizeof(typename K::F);

// A linear's low-rank term may stand beside its weight (above).
template <class K>
inline constexpr bool kBorders = requires(typename K::Weight W) {
    W.border, W.foot;
};

template <class K>
concept Kernels = requires(K k, typename K::T* y, const typename K::T* x, typename K::F* f, const typename K::F* cf,
                           double* d, const double* cd, const typename K::Weight& W, typename K::Batch& wb,
                           const typename K::Batch& b, const MicroBatch& mb, const RowReader& reader, Limits limits,
                           HeadShape h, int n, int64_t n64, double s, bool flag, uint32_t u, const AdamwSlot* slots,
                           std::string name, const Draw& draw, int32_t* ids,
                           std::span<const LowRank<typename K::T>> added,
                           std::span<const LowRankGradient<typename K::T, typename K::F>> low_rank) {
    // --- memory: all of it before the first step. While planning, allocate returns null and write/zero do nothing.
    { k.planning() } -> std::convertible_to<bool>;
    { k.memory() } -> std::convertible_to<const MemoryTable&>;
    { k.template allocate<typename K::T>(Category::kActivations, name, n64) } -> std::same_as<typename K::T*>;
    { k.template allocate<typename K::F>(Category::kActivations, name, n64) } -> std::same_as<typename K::F*>;
    { k.template allocate<double>(Category::kActivations, name, n64) } -> std::same_as<double*>;
    k.reserve(limits);  // scratch; a second call may only ask for the same or less
    // name, rows (out), cols (in), WeightUse, reader (never called while planning)
    { k.prepare(name, n64, n64, unsigned{}, reader) } -> std::same_as<typename K::Weight>;
    // most tokens, pairs, head rows
    { k.make_batch(n, n, n) } -> std::same_as<typename K::Batch>;
    k.upload(mb, wb);
    { b.N } -> std::convertible_to<int>;                          // tokens
    { b.heads_n } -> std::convertible_to<int>;                    // head rows
    { b.runs.begin()->slot } -> std::convertible_to<int>;         // SlotRun list, on the host
    k.write(n64, static_cast<const typename K::F*>(nullptr), f);  // host -> backend
    k.read(n64, cf, static_cast<typename K::F*>(nullptr));        // backend -> host
    k.read(n64, cd, static_cast<double*>(nullptr));
    k.zero(n64, f);
    k.cast(n64, cf, y);
    k.finish();  // waits for everything
    // Runs f. What f launches depends on name and the batch's sizes alone, so a device may record it and replay it.
    k.once(name, b, std::function<void()>());

    // Where parts of the adapters stand beside weights, once; then, after each change of them: copies them there. And
    // rows, cols, from (rows, cols) ld_from, to ld_to
    requires !kBorders<K> || requires(K k, std::vector<Border<typename K::T>> list) {
        k.place_borders(list);
        k.refresh_borders(x);
        k.copy_rows(n, n, x, n, y, n);
    };

    // --- products.  N, x (N, in), W (out, in), y (N, out), terms ordered by row, every row in one run of rows at most
    k.linear(n, x, W, y, added);
    k.linear_backward(n, x, W, y, added);
    k.linear(n, x, W, y);
    k.linear_backward(n, x, W, y);
    // M, N, K, a, A (M, K) lda, B (N, K) ldb, C (M, N) ldc, accumulate
    k.gemm_nt(n, n, n, s, x, n, x, n, y, n, flag);
    // M, N, K, a, A (M, K) lda, B (K, N) ldb, C (M, N) ldc, accumulate
    k.gemm_nn(n, n, n, s, x, n, x, n, y, n, flag);
    // M, N, K, A (K, M) lda, B (K, N) ldb, C (M, N) ldc in F, always added to
    k.gemm_tn(n, n, n, x, n, x, n, f, n);
    // N, scale, dy (N, *) ldy, terms of one R whose columns and dS do not overlap: their dB added to, their dS written
    k.low_rank_backward(n, s, x, n, low_rank);

    // --- layers.  E (V, C), x (N, C)
    k.embed(b, W, y);
    // N, C, eps, x (N, C), w (C), y (N, C), ldy, r (N)
    k.rmsnorm(n, n, s, x, cf, y, n, f);
    // N, C, eps, x (N, C), d (N, C), w (C), x2 (N, C; may be x), y (N, C; may be d), ldy, r (N)
    k.add_rmsnorm(n, n, s, x, x, cf, y, y, n, f);
    // Where T is narrower than F: x_low (N, C; null: zeros) and x2_low (N, C; may be x_low), what rounding cut off.
    requires !kLowParts<K> || requires(K k) { k.add_rmsnorm(n, n, s, x, x, cf, y, y, n, f, x, y); };
    // N, C, x (N, C), w (C), r (N), y (N, C), ldy
    k.normalize(n, n, x, cf, cf, y, n);
    // N, C, dy (N, C), x (N, C), w (C), r (N), dx (N, C), lddx, accumulate: added to dx, or written
    k.rmsnorm_backward(n, n, x, x, cf, cf, y, n, flag);
    // shape, table (positions, HS/2, {cos, sin}) (kernels/rope_table.h), sign, qkv (N, width): q and k heads in place
    k.rope(b, h, cf, n, y);
    // all pairs: shape, qkv (N, width), o (N, H HS), lse (N, H)
    k.attention(b, h, x, y, f);
    // shape, qkv, o, lse, d_o (N, H HS), dqkv (N, width) overwritten
    k.attention_backward(b, h, x, x, cf, x, y);
    // N, I, gu (N, 2I) = [g | u], h (N, I)
    k.swiglu(n, n, x, y);
    // N, I, dh (N, I), gu (N, 2I) overwritten by [dg | du], h (N, I; may be dh; null: not wanted)
    k.swiglu_backward(n, n, x, y, y);
    // first row, rows, C, p, tensor, x (N, C), y (N, C): rows [first, first + rows) only; masks: kernels/dropout_mask.h
    k.dropout(b, n, n, n, s, u, x, y);
    k.dropout_add(b, n, n, n, s, u, x, y);

    // --- the head and the loss.  C, n (N, C), W (V, C), logp (heads), U (heads, C) or null
    k.head(b, n, x, W, d, y);
    // logp (heads), coefficients (heads)
    k.orpo(b, cd, d);
    // C, U (heads, C), coefficients (heads), dn (N, C) overwritten, rows without a head row with 0
    k.scatter_scaled(b, n, x, cd, y);
    // C, n (N, C), W, z (heads, V)
    k.logits(b, n, x, W, f);

    // --- the optimizer, over flat arenas (slots, n).  out, slots: host memory
    k.squared_norms(n, n64, cf, d);
    // slots, n, AdamwSlot (slots), p, g, m, v
    k.adamw(n, n64, slots, f, cf, f, f);

    // --- drawing.  V, z (heads, V), draw, ids (heads): host memory. Error(kDiverged) for NaN.
    k.sample(b, n, cf, draw, ids);

    // --- generation. Row n belongs to sequence mask_pair / 2 and stands at positions[n] of it.
    // shape, capacity, qkv (N, width) after rope, cache (sequences, capacity, 2, KV, HS)
    k.cache_append(b, h, n, x, y);
    // shape, capacity, table, qkv before rope (may be overwritten), cache, to which the new rows' keys and values are
    // appended, o (N, H HS): row n sees positions 0..positions[n]
    k.decode_attention(b, h, n, cf, y, y, y);
};

}  // namespace orpo
