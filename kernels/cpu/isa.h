// What is compiled once per instruction set (isa_sse2.cpp, isa_avx2.cpp, isa_avx512.cpp ... from the *.isa.h files) and
// chosen at run time: one thread's share of every operation, over plain pointers. Threads are cpu.h's business.
// T is how activations are stored: float, or bf16 where the processor multiplies it. Sums and statistics are floats.
#pragma once

#include <cstdint>

#include "kernels/batch.h"
#include "kernels/bf16.h"
#include "kernels/low_rank.h"

namespace orpo::cpu {

// How the right-hand matrix of a product lies in memory.
enum class BForm {
    kRows,     // (K, N) at distance ldb
    kColumns,  // (N, K) at distance ldb
    kPacked,   // packed weights (weight_rows, K)
    kTurned,   // fp32: packed weights (K, ldb)
};

// C (M, N) = scale A B (+ C). A (M, K). Columns of B: [first, first + N); first is a multiple of 32.
template <class T, class Out = T>
struct GemmShare {
    int M, N, K;
    float scale;
    const T* A;
    int64_t lda;
    const T* B;      // kRows, kColumns
    const float* W;  // kPacked, kTurned
    int64_t ldb;     // also: columns of W, kTurned
    BForm form;
    int64_t first, weight_rows;
    Out* C;
    int64_t ldc;
    bool accumulate;
    // Linears, scale 1: low-rank terms that every row of the whole product has; this share begins at row added_row.
    const LowRank<T>* added = nullptr;
    int added_n = 0;
    bool added_turned = false;  // their B is (R, columns)
    int64_t added_row = 0;
    // A share of some columns: others of the same rows follow with the same scratch; and whether one was before it.
    bool some_columns = false, again = false;
};

// Most terms of one product; most_units bounds the units of their ranks together.
constexpr int kMostAdded = 4;

// Words of a part of the vocabulary, and most parts.
constexpr int64_t kHeadPart = 8192;
constexpr int kMostHeadParts = 32;

// Of a head row over some words: the sum of e^(z - m) without the target's, and the target's z, if it is among them.
struct HeadSums {
    double others;
    float m;
    float z_target;
};

// Some head rows over some words, by one thread; see head.isa.h.
template <class T>
struct HeadShare {
    int rows, C;
    int64_t V;  // the whole vocabulary, of which words [first, last)
    int64_t first, last;
    const T* n;            // (N, C) normed hidden states
    const HeadRow* heads;  // (rows)
    const float* W;        // packed (V, C)
    const float* W_back;   // bf16: packed for U = p W
    HeadSums* sums;        // (rows)
    float* U;              // panels of `panel` columns, (rows padded to 32, panel) each; or null
};

// What `parts` shares of the same rows have summed.
template <class T>
struct HeadEnd {
    int rows, C, parts;
    int64_t V;
    const HeadRow* heads;
    const float* W;
    const HeadSums* sums;  // of the first part; the next ones at distance `sums_step`
    int64_t sums_step;
    const float* U;  // likewise
    int64_t U_step;
    double* logp;  // (rows)
    T* to;         // (rows, C) or null
};

// A block of query rows of one head of one segment (prompt and chosen, or rejected); see attention.isa.h.
template <class T>
struct AttentionShare {
    int HS;
    int first, rows;  // query rows, counted from the segment's begin; rows <= attention_block()
    const T* q;       // query `first` of this head; rows at distance `width`
    int64_t width;
    const float* packed0;  // packed K and V of the prompt's segment and how many of its keys are seen by all rows
    int keys0, total0;     // (0 for the prompt's own segment); total0: keys packed there
    const float* packed1;  // of the own segment: row i sees keys 0..i
    int total1;
    T* o;  // forward: written; backward: read. Rows at distance `o_width`
    int64_t o_width;
    float* lse;  // at distance H
    int64_t H;
    int heads;         // backward: query heads of the K/V head, side by side in q, o, d_o, dq and lse; q.. at the first
    const T* d_o;      // backward: as o
    T* dq;             // backward: as q, overwritten
    float *dk0, *dv0;  // backward: (keys0, HS), added to
    float *dk1, *dv1;  // backward: (total1, HS), likewise
};

// The operations on activations stored in T.
template <class T>
struct Ops {
    int (*units)(int K);  // floats that K packed numbers take
    int64_t (*gemm_scratch)();
    void (*gemm)(const GemmShare<T>&, float* scratch);
    void (*gemm_full)(const GemmShare<T, float>&, float* scratch);  // C in fp32
    int64_t (*tokens_scratch)(int M, int N);
    void (*gemm_tokens)(int M, int N, int K, const T* A, int64_t lda, const T* B, int64_t ldb, float* C, int64_t ldc,
                        bool turned, float* scratch);
    // temp: 16 units(K) floats
    void (*pack_weight_panel)(int64_t N, int K, int64_t first, const float* rows, float* packed, float* temp);
    // W^T packed, from rows of W; null: fp32, which turns what it needs (kTurned)
    void (*pack_weight_turned)(int64_t N, int K, int64_t first, int count, const float* rows, float* packed);
    void (*unpack_weight_row)(int64_t N, int K, const float* packed, int64_t r, T* row);

    // rows of (rows, C); see kernels.h for the formulas
    void (*rmsnorm)(int rows, int C, float eps, const T* x, const float* w, T* y, int ldy, float* r);
    void (*add_rmsnorm)(int rows, int C, float eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy,
                        float* r, const T* x_low, T* x2_low);
    void (*normalize)(int rows, int C, const T* x, const float* w, const float* r, T* y, int ldy);
    void (*rmsnorm_backward)(int rows, int C, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                             bool accumulate);
    void (*rope)(int rows, int heads, int HS, int width, const int32_t* positions, const float* table, float sign,
                 T* qkv);
    void (*swiglu)(int rows, int I, const T* gu, T* h);
    void (*swiglu_backward)(int rows, int I, const T* dh, T* gu, T* h);
    // y = mask x / (1 - p), added to y when `add`; mask_pair, positions: (rows)
    void (*dropout)(int rows, int C, double p, uint64_t key, uint32_t step, uint32_t tensor, const int32_t* mask_pair,
                    const int32_t* positions, const T* x, T* y, bool add);

    int64_t (*head_scratch)(int C);
    int (*head_rows)();  // most rows of one call
    void (*head)(const HeadShare<T>&, float* scratch);
    void (*head_end)(const HeadEnd<T>&, float* scratch);

    int (*attention_block)();                                      // most query rows of one call of attention
    int (*attention_backward_block)();                             // and of attention_backward
    int64_t (*attention_packed)(int keys, int HS, bool backward);  // floats of one K/V head of a segment
    int64_t (*attention_scratch)(int keys, int HS);                // floats a thread; keys: most that a row sees
    void (*attention_pack)(int keys, int HS, const T* k, const T* v, int64_t width, bool backward, float* packed);
    void (*attention)(const AttentionShare<T>&, float* scratch);
    void (*attention_backward)(const AttentionShare<T>&, float* scratch);
    void (*decode_attention)(int H, int KV, int HS, int count, const T* q, const T* cache, float* scores, T* o);

    // y (n) = the sum over terms of weights[i] x[i] (n), in that order
    void (*combine)(int64_t n, int terms, const float* weights, const T* const* x, T* y);
    void (*combine_full)(int64_t n, int terms, const float* weights, const float* const* x, T* y);
};

struct Isa {
    const char* name;
    int panel;                  // rows of a packed weight panel
    int most_rows, most_units;  // of A packed at once; the low-rank terms of a product together may take as many units
    Ops<float> in_fp32;
    Ops<bf16> in_bf16;  // null functions where the processor has no bf16 products
    void (*adamw)(int64_t n, const float constants[8], float* p, const float* g, float* m, float* v);
    double (*squared_norm)(int64_t n, const float* g);
};

const Isa& sse2_isa();
const Isa& avx2_isa();
const Isa& avx512_isa();
const Isa& avx512_bf16_isa();  // AVX-512 with AVX512-BF16
const Isa& amx_isa();          // the same with AMX tiles

}  // namespace orpo::cpu
