// The backend on one GPU: operations of kernels/kernels.h, activations in T (bf16, or float for checking), statistics,
// adapters and gradients in fp32. Matrix products are cuBLASLt's, everything else the kernels of this folder.
//
// A micro-batch goes to the device in one copy. Its sizes are rounded up to a short ladder (at most 1/16 more) with rows
// that belong to no pair's loss, so that the launches of a training step depend on few sizes: `once` captures them as
// a graph and replays it from then on.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/tiles.h"
#include "kernels/kernels.h"
#include "kernels/range.h"

namespace orpo::cuda {

// A micro-batch on the device. Host members are what launches depend on.
struct DeviceBatch {
    int N = 0, heads_n = 0, pairs_n = 0, query_tiles = 0, key_tiles = 0;  // rounded up
    std::vector<SlotRun> runs;
    int capacity_tokens = 0, capacity_pairs = 0, capacity_heads = 0;

    int32_t *ids = nullptr, *positions = nullptr, *mask_pair = nullptr, *head1 = nullptr, *head2 = nullptr;  // (N)
    PairSpan* pairs = nullptr;
    HeadRow* heads = nullptr;
    QueryTile* query_tile = nullptr;
    KeyTile* key_tile = nullptr;
    BatchScalars* scalars = nullptr;

    std::shared_ptr<HostBatch> host;      // the padded batch, before the copy
    std::vector<unsigned char> staging;   // all arrays, as they lie on the device
    std::vector<QueryTile> host_queries;
    std::vector<KeyTile> host_keys;
};

// The next size of the ladder: 16 steps from one power of two to the next, at least `least` apart.
int ladder(int n, int least);

template <class Store>
class Cuda {
  public:
    using T = Store;
    using F = float;
    using Batch = DeviceBatch;
    struct Weight {
        int rows = 0, cols = 0;
        const T* data = nullptr;  // (rows, cols)
    };

    // device: null while planning. plan: the table of a planning run, whose categories become one allocation each.
    Cuda(std::shared_ptr<Device> device, const MemoryTable* plan);

    // --- memory
    bool planning() const { return !device_; }
    const MemoryTable& memory() const { return memory_; }
    template <class U>
    U* allocate(Category category, const std::string& name, int64_t count) {
        return static_cast<U*>(take(category, name, count * static_cast<int64_t>(sizeof(U))));
    }
    void reserve(const Limits& limits);
    Weight prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read);
    Batch make_batch(int tokens, int pairs, int heads);
    void upload(const MicroBatch& mb, Batch& batch);
    void write(int64_t n, const float* host, float* to);
    void read(int64_t n, const float* from, float* host);
    void read(int64_t n, const double* from, double* host);
    void zero(int64_t n, float* x);
    void cast(int64_t n, const float* x, T* y) { cuda::cast<T>(stream(), n, x, y); }
    void finish() { device_->wait(); }
    // Runs f, whose launches depend on the batch's sizes and on `name` alone; from the second time on as a graph.
    void once(const std::string& name, const Batch& batch, const std::function<void()>& f);
    // Off: `once` always runs plainly. For profilers.
    void use_graphs(bool on) { graphs_on_ = on; }
    // Named ranges (kernels/range.h). A replayed graph has one; what runs plainly has one a phase, layer and operation.
    void push_range(const char* name, int number = -1);
    void pop_range() { device_->pop_range(); }

    // --- products
    void linear(int N, const T* x, const Weight& W, T* y);
    void linear_backward(int N, const T* dy, const Weight& W, T* dx);
    void gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, float* C, int ldc);

    // --- layers
    void embed(const Batch& b, const Weight& E, T* x) {
        const Range range(*this, "embed");
        cuda::embed<T>(stream(), b.N, E.cols, b.ids, E.data, x);
    }
    void rmsnorm(int N, int C, double eps, const T* x, const float* w, T* y, float* r) {
        const Range range(*this, "rmsnorm");
        cuda::rmsnorm<T>(stream(), N, C, eps, x, w, y, r);
    }
    void add_rmsnorm(int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, float* r) {
        const Range range(*this, "add_rmsnorm");
        cuda::add_rmsnorm<T>(stream(), N, C, eps, x, d, w, x2, y, r);
    }
    void normalize(int N, int C, const T* x, const float* w, const float* r, T* y) {
        const Range range(*this, "normalize");
        cuda::normalize<T>(stream(), N, C, x, w, r, y);
    }
    void rmsnorm_backward(int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx,
                          bool accumulate) {
        const Range range(*this, "rmsnorm_backward");
        cuda::rmsnorm_backward<T>(stream(), N, C, dy, x, w, r, dx, accumulate);
    }
    void rope(const Batch& b, const HeadShape& s, const float* table, int sign, T* qkv) {
        const Range range(*this, "rope");
        cuda::rope<T>(stream(), b.N, {s.H, s.KV}, b.positions, table, sign, qkv);
    }
    void attention(const Batch& b, const HeadShape& s, const T* qkv, T* o, float* lse) {
        const Range range(*this, "attention");
        cuda::attention<T>(stream(), b.query_tiles, {s.H, s.KV}, b.query_tile, qkv, o, lse);
    }
    void attention_backward(const Batch& b, const HeadShape& s, const T* qkv, const T* o, const float* lse,
                            const T* d_o, T* dqkv) {
        const Range range(*this, "attention_backward");
        cuda::attention_backward<T>(stream(), b.N, b.query_tiles, b.key_tiles, {s.H, s.KV}, b.query_tile, b.key_tile,
                                    qkv, o, lse, d_o, stats_, dqkv);
    }
    void swiglu(int N, int I, const T* gu, T* h) {
        const Range range(*this, "swiglu");
        cuda::swiglu<T>(stream(), N, I, gu, h);
    }
    void swiglu_backward(int N, int I, const T* dh, T* gu) {
        const Range range(*this, "swiglu_backward");
        cuda::swiglu_backward<T>(stream(), N, I, dh, gu);
    }
    void dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* x, T* y) {
        const Range range(*this, "dropout");
        cuda::dropout<T>(stream(), first, rows, C, p, tensor, b.scalars, b.mask_pair, b.positions, x, y);
    }
    void dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* d, T* dx) {
        const Range range(*this, "dropout_add");
        cuda::dropout_add<T>(stream(), first, rows, C, p, tensor, b.scalars, b.mask_pair, b.positions, d, dx);
    }

    // --- the head and the loss
    void head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U);
    void orpo(const Batch& b, const double* logp, double* coefficients) {
        const Range range(*this, "orpo");
        cuda::orpo(stream(), b.pairs_n, b.pairs, b.heads, logp, coefficients);
    }
    void scatter_scaled(const Batch& b, int C, const T* U, const double* coefficients, T* dn) {
        const Range range(*this, "scatter_scaled");
        cuda::scatter_scaled<T>(stream(), b.N, C, b.head1, b.head2, U, coefficients, dn);
    }
    void logits(const Batch& b, int C, const T* n, const Weight& W, float* z);
    void sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids);

    // --- the optimizer
    void squared_norms(int slots, int64_t n, const float* g, double* out);
    void adamw(int slots, int64_t n, const AdamwSlot* slot, float* p, const float* g, float* m, float* v);

    // --- generation
    void cache_append(const Batch& b, const HeadShape& s, int capacity, const T* qkv, T* cache) {
        const Range range(*this, "cache_append");
        cuda::cache_append<T>(stream(), b.N, {s.H, s.KV}, capacity, b.mask_pair, b.positions, qkv, cache);
    }
    void decode_attention(const Batch& b, const HeadShape& s, int capacity, const T* qkv, const T* cache, T* o) {
        const Range range(*this, "decode_attention");
        cuda::decode_attention<T>(stream(), b.N, {s.H, s.KV}, capacity, b.mask_pair, b.positions, qkv, cache, o);
    }

  private:
    void* take(Category category, const std::string& name, int64_t bytes);
    Stream stream() { return device_->stream(); }
    void multiply(const char* name, const Product& product, const void* A, const void* B, void* C) {
        const Range range(*this, name);
        device_->multiply(product, A, B, C);
    }
    static constexpr Number kStore = sizeof(T) == 2 ? Number::kBf16 : Number::kFloat;

    std::shared_ptr<Device> device_;
    MemoryTable memory_;
    // One stretch of device memory a category.
    struct Stretch {
        void* base = nullptr;
        int64_t bytes = 0, used = 0;
    };
    std::map<Category, Stretch> stretches_;

    int chunk_ = 0;         // head rows whose logits are held at once
    T* logits_ = nullptr;   // (chunk, V)
    T* gathered_ = nullptr; // (chunk, C)
    float* stats_ = nullptr;   // (H, tokens, 2)
    int32_t* ids_ = nullptr;   // (heads) drawn tokens
    double* norms_ = nullptr;  // partial sums, then totals
    AdamwStep* steps_ = nullptr;
    float* staged_ = nullptr;  // prepare: rows as fp32 on their way to T
    int most_slots_ = 0;
    std::map<std::string, int> graphs_;
    bool graphs_on_ = true;
};

}  // namespace orpo::cuda
