// The kernels' launchers, one per operation of kernels/kernels.h, in the file of the same name. They take pointers into
// device memory, integers and a stream; they return at once. T is float or bf16, statistics and adapters are float.
// C++17: nvcc compiles the .cu files, the host's compiler the callers.
#pragma once

#include <cstdint>

#include "kernels/batch.h"
#include "kernels/bf16.h"
#include "kernels/border.h"
#include "kernels/low_rank.h"

struct CUstream_st;

namespace orpo::cuda {

using Stream = CUstream_st*;

struct Heads {
    int H, KV;  // head size is 64
};

// What changes from micro-batch to micro-batch and is not an array; in device memory, so that a captured graph sees it.
struct BatchScalars {
    uint64_t dropout_key = 0;
    uint32_t step = 0;
};

// Up to 64 query rows [q0, q1) of one branch. Row i sees [prefix0, prefix1) and [own0, i].
struct QueryTile {
    int32_t q0 = 0, q1 = 0, prefix0 = 0, prefix1 = 0, own0 = 0, unused = 0;
};
// Up to 64 key rows [k0, k1). They are seen by rows i of [k0, own1) with i >= the key, and by all of [extra0, extra1).
struct KeyTile {
    int32_t k0 = 0, k1 = 0, own1 = 0, extra0 = 0, extra1 = 0, unused = 0;
};

// --- low_rank.cu. dy (N, *) at distance ldy; n terms of one R
using LowRankTerm = LowRankGradient<bf16, float>;
// The arrays begin, and their rows follow each other, where the kernels can read them.
bool low_rank_fits(const bf16* dy, int ldy, int n, const LowRankTerm* terms);
// scratch: low_rank_cut.h
void low_rank_backward(Stream stream, int N, double scale, const bf16* dy, int ldy, int n, const LowRankTerm* terms,
                       float* scratch);

// --- embed.cu
// E (V, C), ids (N), x (N, C)
template <class T>
void embed(Stream stream, int N, int C, const int32_t* ids, const T* E, T* x);
// rows (n), from (*, C), to (n, C)
template <class T>
void gather(Stream stream, int n, int C, const HeadRow* rows, const T* from, T* to);
// y = (T) x
template <class T>
void cast(Stream stream, int64_t n, const float* x, T* y);

// --- border.cu. cols and the distances between rows are multiples of 8
template <class T>
void copy_rows(Stream stream, int rows, int cols, const T* from, int ld_from, T* to, int ld_to);
template <class T>
void copy_borders(Stream stream, int n, const Border<T>* borders, const T* from);
// from (rows, cols) without gaps
template <class T>
void cast_rows(Stream stream, int rows, int cols, const float* from, T* to, int ld);

// --- rmsnorm.cu
// x (N, C), w (C), y (N, C), r (N). C is a multiple of 8 and at most 2048.
template <class T>
void rmsnorm(Stream stream, int N, int C, double eps, const T* x, const float* w, T* y, int ldy, float* r);
// x2 = x + d; x2 may be x, y may be d. bf16: with x_low (null: zeros) added, and what rounding to x2 cut off in x2_low
// (may be x_low), unless it is null
template <class T>
void add_rmsnorm(Stream stream, int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy,
                 float* r, const T* x_low = nullptr, T* x2_low = nullptr);
template <class T>
void normalize(Stream stream, int N, int C, const T* x, const float* w, const float* r, T* y, int ldy);
template <class T>
void rmsnorm_backward(Stream stream, int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx,
                      int lddx, bool accumulate);

// --- rope.cu. table (positions, 32, {cos, sin}), qkv (N, (H + 2 KV) 64)
template <class T>
void rope(Stream stream, int N, Heads heads, const int32_t* positions, const float* table, int sign, T* qkv);

// --- swiglu.cu. gu (N, 2I), h (N, I)
template <class T>
void swiglu(Stream stream, int N, int I, const T* gu, T* h);
template <class T>
void swiglu_backward(Stream stream, int N, int I, const T* dh, T* gu, T* h);

// --- dropout.cu. Rows [first, first + rows) of x (N, C); y = mask x / (1 - p), dx += mask d / (1 - p)
template <class T>
void dropout(Stream stream, int first, int rows, int C, double p, uint32_t tensor, const BatchScalars* scalars,
             const int32_t* mask_pair, const int32_t* positions, const T* x, T* y);
template <class T>
void dropout_add(Stream stream, int first, int rows, int C, double p, uint32_t tensor, const BatchScalars* scalars,
                 const int32_t* mask_pair, const int32_t* positions, const T* d, T* dx);

// --- attention.cu, attention_backward.cu. qkv (N, (H + 2 KV) 64), o (N, H 64), lse (N, H)
template <class T>
void attention(Stream stream, int tiles, Heads heads, const QueryTile* tile, const T* qkv, T* o, float* lse);
// scratch (H, N, 2): lse and rowsum(d_o o). dqkv (N, width) is overwritten.
template <class T>
void attention_backward(Stream stream, int N, int query_tiles, int key_tiles, Heads heads, const QueryTile* query_tile,
                        const KeyTile* key_tile, const T* qkv, const T* o, const float* lse, const T* d_o,
                        float* scratch, T* dqkv);

// --- head.cu. z (n, V) logits: overwritten by softmax - onehot when keep, logp (n)
template <class T>
void softmax_xent(Stream stream, int n, int V, const HeadRow* rows, T* z, double* logp, bool keep);
// pairs (n), heads, logp -> coefficients, all of the batch's head rows
void orpo(Stream stream, int n, const PairSpan* pairs, const HeadRow* heads, const double* logp, double* coefficients);
// dn[n] = sum over head1[n], head2[n] of coefficient * U
template <class T>
void scatter_scaled(Stream stream, int N, int C, const int32_t* head1, const int32_t* head2, const T* U,
                    const double* coefficients, T* dn);

// --- sample.cu. z (n, V), ids (n): the drawn tokens, -1 where a logit is NaN
void sample(Stream stream, int n, int V, const HeadRow* rows, const float* z, const Draw& draw, int32_t* ids);

// --- adamw.cu. Arenas (slots, n)
struct AdamwStep {  // kernels.h's AdamwSlot, prepared on the host
    float lr_over_bias1, decay, beta1, beta2, inverse_sqrt_bias2, eps, grad_scale;
    int32_t active;
};
inline constexpr int kNormBlocks = 256;
// partial (slots, kNormBlocks), out (slots): sums of squares in double, in a fixed order
void squared_norms(Stream stream, int slots, int64_t n, const float* g, double* partial, double* out);
void adamw(Stream stream, int slots, int64_t n, const AdamwStep* steps, float* p, const float* g, float* m, float* v);

// --- decode.cu. cache (sequences, capacity, 2, KV, 64); mask_pair[n] / 2 is row n's sequence
template <class T>
void cache_append(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair, const int32_t* positions,
                  const T* qkv, T* cache);
// qkv before rope; appends its K and V. What was in the cache before the batch was uploaded is read before the kernel
// before has ended, as are positions, mask_pair and table. The keys of a (row, head) are cut into stretches, joined
// through parts (N, H, kDecodeStretches, kDecodePart) and arrived (N, H), which is zeros before and after.
inline constexpr int kDecodeStretches = 16, kDecodePart = 72;  // 64 sums, the largest score, the sum of weights
template <class T>
void decode_attention(Stream stream, int N, Heads heads, int capacity, const int32_t* mask_pair,
                      const int32_t* positions, const float* table, const T* qkv, T* cache, float* parts,
                      int32_t* arrived, T* o);
// y (N, out) = x (N, in) W^T for a few rows: reads W once, and begins to before the kernel before has ended. in is a
// multiple of 8. Y: T or float.
template <class T, class Y>
void gemv(Stream stream, int N, int out, int in, const T* x, const T* W, Y* y);

}  // namespace orpo::cuda
