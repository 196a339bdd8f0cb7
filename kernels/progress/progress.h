// From naive to ours: three operations of kernels/cuda/, each in the versions on the way there, kept for readers. The
// last version of every list is the kernel that training uses. Every file's head says what changed and what that was
// expected to buy; `orpo bench progress` checks them against the reference, then times them;
// tests/simt/progress_test.cpp checks them on a CPU.
#pragma once

#include <vector>

#include "kernels/cuda/ops.h"

namespace orpo::cuda::progress {

// o, lse as kernels/cuda/attention.cu. scores (H, N, N): scratch, used by version 1 only.
using Attention = void (*)(Stream stream, int N, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv,
                           float* scores, bf16* o, float* lse);
// x2 = x + d, y = rmsnorm(x2), r as kernels/cuda/rmsnorm.cu without the low parts that bf16 training carries.
using AddRmsnorm = void (*)(Stream stream, int N, int C, float eps, const bf16* x, const bf16* d, const float* w,
                            bf16* x2, bf16* y, float* r);
// logp and z <- softmax(z) - onehot as kernels/cuda/head.cu.
using SoftmaxXent = void (*)(Stream stream, int n, int V, const HeadRow* rows, bf16* z, double* logp);

template <class Launch>
struct Version {
    const char* name;  // "2 online softmax"
    Launch launch;
};

void attention_1(Stream, int, int, Heads, const QueryTile*, const bf16*, float*, bf16*, float*);
void attention_2(Stream, int, int, Heads, const QueryTile*, const bf16*, float*, bf16*, float*);
void attention_3(Stream, int, int, Heads, const QueryTile*, const bf16*, float*, bf16*, float*);
void attention_4(Stream, int, int, Heads, const QueryTile*, const bf16*, float*, bf16*, float*);

void add_rmsnorm_1(Stream, int, int, float, const bf16*, const bf16*, const float*, bf16*, bf16*, float*);
void add_rmsnorm_2(Stream, int, int, float, const bf16*, const bf16*, const float*, bf16*, bf16*, float*);
void add_rmsnorm_3(Stream, int, int, float, const bf16*, const bf16*, const float*, bf16*, bf16*, float*);

void softmax_xent_1(Stream, int, int, const HeadRow*, bf16*, double*);
void softmax_xent_2(Stream, int, int, const HeadRow*, bf16*, double*);
void softmax_xent_3(Stream, int, int, const HeadRow*, bf16*, double*);

inline std::vector<Version<Attention>> attention_versions() {
    return {{"1 scores in memory", attention_1},
            {"2 online softmax", attention_2},
            {"3 tiles in shared memory", attention_3},
            {"4 tensor cores", attention_4},
            {"5 ours", [](Stream stream, int, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, float*,
                          bf16* o, float* lse) { cuda::attention<bf16>(stream, tiles, heads, tile, qkv, o, lse); }}};
}
inline std::vector<Version<AddRmsnorm>> add_rmsnorm_versions() {
    return {{"1 a thread a row", add_rmsnorm_1},
            {"2 a block a row", add_rmsnorm_2},
            {"3 a warp a row, add fused", add_rmsnorm_3},
            {"4 ours",
             [](Stream stream, int N, int C, float eps, const bf16* x, const bf16* d, const float* w, bf16* x2, bf16* y,
                float* r) { cuda::add_rmsnorm<bf16>(stream, N, C, static_cast<double>(eps), x, d, w, x2, y, C, r); }}};
}
inline std::vector<Version<SoftmaxXent>> softmax_xent_versions() {
    return {{"1 a thread a row", softmax_xent_1},
            {"2 a block a row", softmax_xent_2},
            {"3 online, one pass less", softmax_xent_3},
            {"4 ours", [](Stream stream, int n, int V, const HeadRow* rows, bf16* z, double* logp) {
                 cuda::softmax_xent<bf16>(stream, n, V, rows, z, logp, true);
             }}};
}

}  // namespace orpo::cuda::progress
