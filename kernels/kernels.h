// The contract of every operation: one concept, implemented by
//   kernels/reference/  scalar text-book code, T = float or double: the oracle, and the target of finite differences
//   kernels/cpu/        vectorised, threaded fp32
// A backend is a class K with a storage type K::T and the static functions below. Pointers are row-major; "(N, C)"
// behind a pointer is its shape; ld* is the distance between rows in elements. Nothing here knows of models or data.
//
// Determinism: every output element is the sum of its terms in one fixed order that depends neither on the number of
// threads nor on the number of rows in the call. `accumulate` products add term by term onto what is there, so that
// summing over tokens in two calls gives the bits of one call.
//
//   operation            formula                                           FLOPs            bytes moved (elements)
//   gemm_nt              C = A B^T + (accumulate ? C : 0)                  2 M N K          MK + NK + MN
//   gemm_nn              C = A B   + (accumulate ? C : 0)                  2 M N K          MK + KN + MN
//   gemm_tn              C = A^T B + (accumulate ? C : 0)                  2 M N K          KM + KN + 2MN
//   embed                x[n] = E[ids[n]]                                  0                2 N C
//   add                  x += y                                            n                3 n
//   scale                x *= s                                            n                2 n
//   rmsnorm              y = x r w,  r = 1 / sqrt(mean(x^2) + eps)         4 N C            2 N C
//   rmsnorm_backward     dx += r (w dy - x r^2 mean(x w dy))               8 N C            4 N C
//   rope                 pairs (j, j + HS/2) turned by sign * pos * theta^(-2j/HS)   6 N H HS/2   2 N H HS
//   attention            o = softmax(q k^T / sqrt(HS)) v by ranges         4 HS H ctx       2 N (Hq + Hkv)
//   attention_backward   dq, dk, dv                                        10 HS H ctx      4 N (Hq + Hkv)
//   swiglu               h = silu(g) u                                     5 N I            3 N I
//   swiglu_backward      dg = dh u silu'(g), du = dh silu(g)               9 N I            5 N I
//   dropout              y = x mask / (1 - p)                              n                2 n
//   softmax_xent         logp = z[t] - lse(z);  z <- softmax(z) - onehot   4 V              2 V
#pragma once

#include <concepts>
#include <cstdint>

namespace orpo {

// Rows of one sequence that branches: [prompt | chosen | rejected] = [begin, chosen) [chosen, rejected) [rejected, end).
// A prompt or chosen row sees rows begin..itself; a rejected row sees the prompt and rejected..itself.
struct Branches {
    int begin = 0, chosen = 0, rejected = 0, end = 0;
};

// Widths of the fused attention input: a row of qkv is [H heads of q | KV heads of k | KV heads of v], each HS wide.
struct HeadShape {
    int H = 0, KV = 0, HS = 0;
    int width() const { return (H + 2 * KV) * HS; }
};

// Coordinates of a dropout mask: with the place of an element (position in its sequence, channel) they are the whole
// counter, so a mask does not depend on where a pair lies in a micro-batch.
struct DropoutKey {
    uint64_t seed = 0;
    uint32_t step = 0;    // optimizer step
    uint32_t tensor = 0;  // which input: layer * 4 + group
    uint32_t pair = 0;    // pair in the optimizer batch
    uint32_t branch = 0;  // 0 prompt and chosen, 1 rejected: both may stand at one position
};

template <class K>
concept Kernels = requires(typename K::T* y, const typename K::T* x, const int32_t* ids, int n, double s, bool flag,
                           Branches b, HeadShape h, DropoutKey key) {
    // A (M, K) lda, B (N, K) ldb, C (M, N) ldc
    K::gemm_nt(n, n, n, x, n, x, n, y, n, flag);
    // A (M, K) lda, B (K, N) ldb, C (M, N) ldc
    K::gemm_nn(n, n, n, x, n, x, n, y, n, flag);
    // A (K, M) lda, B (K, N) ldb, C (M, N) ldc
    K::gemm_tn(n, n, n, x, n, x, n, y, n, flag);
    // N, C, ids (N), E (V, C), x (N, C)
    K::embed(n, n, ids, x, y);
    K::add(int64_t{}, x, y);      // y += x
    K::scale(int64_t{}, s, y);    // y *= s
    // N, C, eps, x (N, C), w (C), y (N, C), r (N)
    K::rmsnorm(n, n, s, x, x, y, y);
    // N, C, dy (N, C), x (N, C), w (C), r (N), dx (N, C) +=
    K::rmsnorm_backward(n, n, x, x, x, x, y);
    // N, first head, heads, HS, theta, sign, positions (N), x (N, ld) in place, ld
    K::rope(n, n, n, n, s, n, ids, y, n);
    // one pair: shape, branches, qkv (rows, width), o (rows, H*HS), lse (rows, H)
    K::attention(h, b, x, y, y);
    // shape, branches, qkv, o, lse, d_o (rows, H*HS), dqkv (rows, width): rows of this pair are overwritten
    K::attention_backward(h, b, x, x, x, x, y);
    // N, I, gu (N, 2I) = [g | u], out (N, I)
    K::swiglu(n, n, x, y);
    // N, I, dh (N, I), gu (N, 2I) overwritten by [dg | du]
    K::swiglu_backward(n, n, x, y);
    // rows, C, p, key, positions (rows), x (rows, C), y (rows, C)
    K::dropout(n, n, s, key, ids, x, y);
    // rows, V, targets (rows), z (rows, V) overwritten, logp (rows, double)
    K::softmax_xent(n, n, ids, y, static_cast<double*>(nullptr));
};

}  // namespace orpo
