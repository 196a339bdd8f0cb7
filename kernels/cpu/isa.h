// What is compiled once per instruction set (isa_sse2.cpp, isa_avx2.cpp, isa_avx512.cpp from the *.isa.h files) and
// chosen at run time: one thread's share of every operation, over plain pointers. Threads are cpu.h's business.
#pragma once

#include <cstdint>

#include "kernels/batch.h"

namespace orpo::cpu {

// How the right-hand matrix of a product lies in memory.
enum class BForm {
    kRows,          // (K, N) at distance ldb
    kColumns,       // (N, K) at distance ldb
    kPacked,        // packed weights (weight_rows, K)
    kPackedTurned,  // fp32: packed weights (weight_rows = K, ldb = columns), used as (K, N);
                    // bf16: packed weights of the turned matrix (weight_rows = columns)
};

// C (M, N) = scale A B (+ C). A (M, K). Columns of B: [first, first + N); first is a multiple of 32.
struct GemmShare {
    int M, N, K;
    float scale;
    const float* A;
    int64_t lda;
    const float* B;
    int64_t ldb;
    BForm form;
    int64_t first, weight_rows;
    float* C;
    int64_t ldc;
    bool accumulate;
};

// Some head rows of one thread; see head.isa.h.
struct HeadShare {
    int rows, C;
    int64_t V;
    const float* n;        // (N, C) normed hidden states
    const HeadRow* heads;  // (rows)
    const float* W;        // packed (V, C)
    const float* W_back;   // bf16: packed for U = p W
    double* logp;          // (rows)
    float* U;              // (rows, C) or null
};

// A block of query rows of one head of one segment (prompt and chosen, or rejected); see attention.isa.h.
struct AttentionShare {
    int HS;
    int first, rows;  // query rows, counted from the segment's begin; rows <= attention_block()
    const float* q;   // query `first` of this head; rows at distance `width`
    int64_t width;
    const float* packed0;  // packed K and V of the prompt's segment and how many of its keys are seen by all rows
    int keys0, total0;     // (0 for the prompt's own segment); total0: keys packed there
    const float* packed1;  // of the own segment: row i sees keys 0..i
    int total1;
    float* o;  // forward: written; backward: read. Rows at distance `o_width`
    int64_t o_width;
    float* lse;  // at distance H
    int64_t H;
    const float* d_o;  // backward: as o
    float* dq;         // backward: as q, overwritten
    float *dk0, *dv0;  // backward: (keys0, HS), added to
    float *dk1, *dv1;  // backward: (total1, HS), added to
};

struct Isa {
    const char* name;
    int panel;  // rows of a packed weight panel
    int64_t (*gemm_scratch)();
    void (*gemm)(const GemmShare&, float* scratch);
    int64_t (*tokens_scratch)(int M, int N);
    void (*gemm_tokens)(int M, int N, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                        int64_t ldc, bool turned, float* scratch);
    void (*pack_weight_panel)(int64_t N, int K, int64_t first, const float* rows, float* packed);
    void (*unpack_weight_row)(int64_t N, int K, const float* packed, int64_t r, float scale, float* row);

    // The same with bf16 operands; null where the processor has no bf16 products.
    int64_t (*gemm_scratch_bf16)();
    void (*gemm_bf16)(const GemmShare&, float* scratch);
    int64_t (*tokens_scratch_bf16)(int M, int N);
    void (*gemm_tokens_bf16)(int M, int N, int K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                             int64_t ldc, bool turned, float* scratch);
    int (*pairs_of)(int K);  // packed elements of K numbers
    void (*pack_weight_panel_bf16)(int64_t N, int K, int64_t first, const float* rows, float* packed, float* temp);
    void (*pack_weight_turned_bf16)(int64_t N, int K, int64_t first, int count, const float* rows, float* packed);
    void (*unpack_weight_row_bf16)(int64_t N, int K, const float* packed, int64_t r, float scale, float* row);
    int64_t (*head_scratch_bf16)(int C);
    void (*head_bf16)(const HeadShare&, float* scratch);

    // rows of (rows, C); see kernels.h for the formulas
    void (*rmsnorm)(int rows, int C, float eps, const float* x, const float* w, float* y, float* r);
    void (*add_rmsnorm)(int rows, int C, float eps, const float* x, const float* d, const float* w, float* x2, float* y,
                        float* r);
    void (*normalize)(int rows, int C, const float* x, const float* w, const float* r, float* y);
    void (*rmsnorm_backward)(int rows, int C, const float* dy, const float* x, const float* w, const float* r,
                             float* dx, bool accumulate);
    void (*rope)(int rows, int heads, int HS, int width, const int32_t* positions, const float* table, float sign,
                 float* qkv);
    void (*swiglu)(int rows, int I, const float* gu, float* h);
    void (*swiglu_backward)(int rows, int I, const float* dh, float* gu);
    // y = mask x / (1 - p), added to y when `add`; mask_pair, positions: (rows)
    void (*dropout)(int rows, int C, double p, uint64_t key, uint32_t step, uint32_t tensor, const int32_t* mask_pair,
                    const int32_t* positions, const float* x, float* y, bool add);
    void (*scale_add)(int64_t n, float s, const float* x, float* y);  // y += s x

    int64_t (*head_scratch)(int C);
    int (*head_rows)();  // most rows of one call
    void (*head)(const HeadShare&, float* scratch);

    int (*attention_block)();                                      // most query rows of one call
    int64_t (*attention_packed)(int keys, int HS, bool backward);  // floats of one K/V head of a segment
    int64_t (*attention_scratch)(int keys, int HS);                // floats a thread; keys: most that a row sees
    void (*attention_pack)(int keys, int HS, const float* k, const float* v, int64_t width, bool backward,
                           float* packed);
    void (*attention)(const AttentionShare&, float* scratch);
    void (*attention_backward)(const AttentionShare&, float* scratch);

    // With bf16 operands. attention_backward_bf16 takes a whole segment and writes dk, dv (attention_bf16.isa.h).
    int (*attention_block_bf16)();
    int64_t (*attention_packed_bf16)(int keys, int HS, bool backward);
    int64_t (*attention_scratch_bf16)(int keys, int HS);
    void (*attention_pack_bf16)(int keys, int HS, const float* k, const float* v, int64_t width, bool backward,
                                float* packed);
    void (*attention_bf16)(const AttentionShare&, float* scratch);
    void (*attention_backward_bf16)(const AttentionShare&, float* scratch);

    void (*adamw)(int64_t n, const float constants[8], float* p, const float* g, float* m, float* v);
    double (*squared_norm)(int64_t n, const float* g);
    void (*decode_attention)(int H, int KV, int HS, int count, const float* q, const float* cache, float* scores,
                             float* o);
};

const Isa& sse2_isa();
const Isa& avx2_isa();
const Isa& avx512_isa();
const Isa& avx512_bf16_isa();  // AVX-512 with AVX512-BF16
const Isa& amx_isa();          // the same with AMX tiles

}  // namespace orpo::cpu
