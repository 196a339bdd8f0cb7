// Attention, version 1 of 5: as the formula stands, with all scores in memory.
//
//   S = q k^T / 8, masked;  P = softmax(S);  o = P v      qkv (N, (H + 2 KV) 64), S and P (H, N, N) fp32, in place
//
// Three kernels: a thread a score, a thread a row, a thread an output.
// FLOPs: 4 * 64 * H N^2, masked ones included: a causal row sees half of them at most, twice the work.
// Bytes: 4 H N^2 written, read and written, read = 16 H N^2 fp32 bytes, and as much memory as one of these: at N = 4096
// and 32 heads 2.1 GB held and 8.6 GB moved a layer, against 0.05 GB for q, k, v and o. On a card that copies
// 4 TB/s that is 2 ms a layer for what its tensor cores do in 0.2.
// Where it goes wrong besides: a thread a row walks memory alone (32 lanes touch 32 distant lines).
#include "kernels/cuda/device.cuh"
#include "kernels/progress/progress.h"

namespace orpo::cuda::progress {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ bool sees(const QueryTile& tile, int row, int key) {
    return (key >= tile.prefix0 && key < tile.prefix1) || (key >= tile.own0 && key <= row);
}

// grid (tiles, H): all scores of up to 64 rows of one head.
__global__ void scores_kernel(int N, int H, int KV, const QueryTile* tiles, const bf16* qkv, float* scores) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    for (int64_t i = threadIdx.x; i < int64_t{tile.q1 - tile.q0} * N; i += kThreads) {
        const int row = tile.q0 + static_cast<int>(i / N), key = static_cast<int>(i % N);
        const bf16 *q = qkv + int64_t{row} * width + head * 64, *k = qkv + int64_t{key} * width + (H + kv_head) * 64;
        float sum = 0;
        for (int c = 0; c < 64; ++c) sum += to_float(q[c]) * to_float(k[c]);
        scores[(int64_t{head} * N + row) * N + key] = sees(tile, row, key) ? sum * 0.125f : -INFINITY;
    }
}

__global__ void softmax_kernel(int N, int H, const QueryTile* tiles, float* scores, float* lse) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), row = tile.q0 + static_cast<int>(threadIdx.x);
    if (row >= tile.q1) return;
    float* s = scores + (int64_t{head} * N + row) * N;
    float top = -INFINITY, sum = 0;
    for (int key = 0; key < N; ++key) top = fmaxf(top, s[key]);
    for (int key = 0; key < N; ++key) sum += expf(s[key] - top);
    for (int key = 0; key < N; ++key) s[key] = expf(s[key] - top) / sum;
    lse[int64_t{row} * H + head] = top + logf(sum);
}

__global__ void outputs_kernel(int N, int H, int KV, const QueryTile* tiles, const bf16* qkv, const float* scores,
                               bf16* o) {
    const QueryTile tile = tiles[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y), kv_head = head / (H / KV), width = (H + 2 * KV) * 64;
    for (int i = static_cast<int>(threadIdx.x); i < (tile.q1 - tile.q0) * 64; i += kThreads) {
        const int row = tile.q0 + i / 64, c = i % 64;
        const float* p = scores + (int64_t{head} * N + row) * N;
        const bf16* v = qkv + (H + KV + kv_head) * 64 + c;
        float sum = 0;
        for (int key = 0; key < N; ++key) sum += p[key] * to_float(v[int64_t{key} * width]);
        o[(int64_t{row} * H + head) * 64 + c] = from_float<bf16>(sum);
    }
}

}  // namespace

void attention_1(Stream stream, int N, int tiles, Heads heads, const QueryTile* tile, const bf16* qkv, float* scores,
                 bf16* o, float* lse) {
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(heads.H));
    LAUNCH(scores_kernel, grid, dim3(kThreads), 0, stream, N, heads.H, heads.KV, tile, qkv, scores);
    LAUNCH(softmax_kernel, grid, dim3(64), 0, stream, N, heads.H, tile, scores, lse);
    LAUNCH(outputs_kernel, grid, dim3(kThreads), 0, stream, N, heads.H, heads.KV, tile, qkv, scores, o);
}

}  // namespace orpo::cuda::progress
