// The backend on one GPU: operations of kernels/kernels.h, activations in T (bf16, or float for checking), statistics,
// adapters and gradients in fp32. Matrix products are cuBLASLt's, everything else the kernels of this folder.
//
// A micro-batch goes to the device in one copy. Its sizes are rounded up to a short ladder (at most 1/16 more) with
// rows that belong to no pair's loss, so that the launches of a training step depend on few sizes: `once` captures them
// as a graph and replays it from then on.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/tuner.h"
#include "kernels/kernels.h"
#include "kernels/range.h"

namespace orpo::cuda {

template <class Store>
class Cuda : public CudaMemory<Store> {
  public:
    using T = Store;
    using F = float;
    using Batch = DeviceBatch;
    using Weight = typename CudaMemory<T>::Weight;
    using CudaMemory<T>::CudaMemory;
    using CudaMemory<T>::planning;

    // --- memory
    Weight prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read,
                   int border = 0, int foot = 0);
    void upload(const MicroBatch& mb, Batch& batch);
    void read(int64_t n, const float* from, float* host);
    void read(int64_t n, const double* from, double* host);
    void cast(int64_t n, const float* x, T* y) { cuda::cast<T>(stream(), n, x, y); }
    // Borders (kernels.h): the adapters go beside their weights, x A^T behind x. Of a weight gemv reads before the
    // kernel before it has ended; what writes the border has: x A^T, a plain launch, lies between.
    void refresh_borders(const T* adapters) {
        if (borders_n_ > 0) cuda::copy_borders<T>(stream(), borders_n_, borders_, adapters);
    }
    void copy_rows(int rows, int cols, const T* from, int ld_from, T* to, int ld_to) {
        const Range range(*this, "copy_rows");
        cuda::copy_rows<T>(stream(), rows, cols, from, ld_from, to, ld_to);
    }
    void finish() { device_->wait(); }
    // --tune: products are timed when sizes are met for the first time, and `file` keeps the choices (tuner.h).
    void tune_into(const std::string& file) { tuner_ = std::make_unique<Tuner>(device_, file); }
    // The batch's sizes were not tuned for `name` yet.
    bool untuned(const std::string& name, const Batch& batch) const {
        return tuner_ && !tuned_.count(key_of(name, batch));
    }
    // Runs f and times its products on the way. What it writes holds no sense.
    void tune(const std::string& name, const Batch& batch, const std::function<void()>& f);
    // Runs f, whose launches depend on the batch's sizes and on `name` alone; from the second time on as a graph.
    void once(const std::string& name, const Batch& batch, const std::function<void()>& f);
    // Off: `once` always runs plainly. For profilers.
    void use_graphs(bool on) { graphs_on_ = on; }
    // Named ranges (kernels/range.h). A replayed graph has one; what runs plainly has one a phase, layer and operation.
    void push_range(const char* name, int number = -1);
    void pop_range() { device_->pop_range(); }

    // --- products
    void linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added = {});
    void linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added = {});
    void gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, float* C, int ldc);
    void low_rank_backward(int N, double scale, const T* dy, int ldy,
                           std::span<const LowRankGradient<T, float>> gradients);

    // --- layers
    void embed(const Batch& b, const Weight& E, T* x) {
        const Range range(*this, "embed");
        cuda::embed<T>(stream(), b.N, E.cols, b.ids, E.data, x);
    }
    void rmsnorm(int N, int C, double eps, const T* x, const float* w, T* y, int ldy, float* r) {
        const Range range(*this, "rmsnorm");
        cuda::rmsnorm<T>(stream(), N, C, eps, x, w, y, ldy, r);
    }
    void add_rmsnorm(int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy, float* r,
                     const T* x_low = nullptr, T* x2_low = nullptr) {
        const Range range(*this, "add_rmsnorm");
        cuda::add_rmsnorm<T>(stream(), N, C, eps, x, d, w, x2, y, ldy, r, x_low, x2_low);
    }
    void normalize(int N, int C, const T* x, const float* w, const float* r, T* y, int ldy) {
        const Range range(*this, "normalize");
        cuda::normalize<T>(stream(), N, C, x, w, r, y, ldy);
    }
    void rmsnorm_backward(int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                          bool accumulate) {
        const Range range(*this, "rmsnorm_backward");
        cuda::rmsnorm_backward<T>(stream(), N, C, dy, x, w, r, dx, lddx, accumulate);
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
    void swiglu_backward(int N, int I, const T* dh, T* gu, T* h) {
        const Range range(*this, "swiglu_backward");
        cuda::swiglu_backward<T>(stream(), N, I, dh, gu, h);
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
    void decode_attention(const Batch& b, const HeadShape& s, int capacity, const float* table, T* qkv, T* cache,
                          T* o) {
        const Range range(*this, "decode_attention");
        ORPO_CHECK(b.N <= sequences_);
        cuda::decode_attention<T>(stream(), b.N, {s.H, s.KV}, capacity, b.mask_pair, b.positions, table, qkv, cache,
                                  parts_, arrived_, o);
    }

  private:
    Stream stream() { return device_->stream(); }
    void multiply(const char* name, const Product& product, const void* A, const void* B, void* C) {
        const Range range(*this, name);
        if (tuning_) return tuner_->multiply(product, A, B, C);
        device_->multiply(product, A, B, C);
    }
    static std::string key_of(const std::string& name, const Batch& batch);
    static constexpr Number kStore = sizeof(T) == 2 ? Number::kBf16 : Number::kFloat;

    using CudaMemory<T>::kStaged;
    using CudaMemory<T>::device_;
    using CudaMemory<T>::chunk_;
    using CudaMemory<T>::logits_;
    using CudaMemory<T>::gathered_;
    using CudaMemory<T>::stats_;
    using CudaMemory<T>::low_rank_;
    using CudaMemory<T>::low_rank_floats_;
    using CudaMemory<T>::ids_;
    using CudaMemory<T>::sequences_;
    using CudaMemory<T>::parts_;
    using CudaMemory<T>::arrived_;
    using CudaMemory<T>::norms_;
    using CudaMemory<T>::steps_;
    using CudaMemory<T>::borders_;
    using CudaMemory<T>::borders_n_;
    using CudaMemory<T>::staged_;
    using CudaMemory<T>::most_slots_;

    std::map<std::string, int> graphs_;  // by name and sizes; -1: seen once, not captured
    int captured_ = 0;
    std::unique_ptr<Tuner> tuner_;
    std::set<std::string> tuned_;  // names and sizes
    bool tuning_ = false;
    bool graphs_on_ = true;
};

}  // namespace orpo::cuda
