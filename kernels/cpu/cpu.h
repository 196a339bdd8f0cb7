// The backend on processors: operations of kernels/kernels.h, vectorised for what the processor has (SSE2, AVX2,
// AVX-512, AMX: isa.h), threaded over rows, panels of columns or heads. No element's sum is ever split between threads:
// the same bits come out of any number of threads. One file per operation: gemm.isa.h, attention.isa.h, head.isa.h, ...
//
// Cpu<float> computes in fp32. Cpu<bf16> stores activations and weights in bf16 and multiplies them with fp32 sums,
// which needs AVX512-BF16 and pays where there is AMX: elsewhere vector units are no faster with bf16, or slower.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace orpo {

struct CpuOptions {
    int threads = 0;        // 0: one per physical core that this process may run on
    std::string isa = "";   // "": the best that the processor has; fp32: "sse2", "avx2", "avx512"; bf16: "avx512_bf16",
                            // "amx"
    bool planning = false;  // allocate nothing, only fill the memory table
    const cpu::Isa* table = nullptr;  // for tests: takes the place of `isa`
};

int physical_cores();  // that this process may run on
bool has_amx();        // with bf16, and Linux lets this process use it
// Error(kNoDevice): not on this processor; Error(kUsage): it has no bf16 products at all.
const cpu::Isa& select_isa(const std::string& name, bool bf16 = false);

template <class Store>
class Cpu {
  public:
    using T = Store;
    using F = float;
    using Batch = HostBatch;
    struct Weight {
        int rows = 0, cols = 0;
        const float* packed = nullptr;       // gemm.isa.h: the one copy, for every use
        const float* packed_back = nullptr;  // bf16.isa.h: there each direction has its own, in pairs
    };

    explicit Cpu(const CpuOptions& options = {});
    ~Cpu();
    Cpu(const Cpu&) = delete;

    int threads() const { return threads_; }
    const char* isa() const { return isa_.name; }
    std::string description() const;  // "CPU fp32, avx512, 2 threads"
    const CpuOptions& options() const { return options_; }
    const Limits& limits() const { return limits_; }  // of the last reserve()

    // --- memory
    bool planning() const { return planning_; }
    const MemoryTable& memory() const { return memory_; }
    template <class U>
    U* allocate(Category category, const std::string& name, int64_t count) {
        return static_cast<U*>(allocate_bytes(category, name, count * static_cast<int64_t>(sizeof(U))));
    }
    void reserve(const Limits& limits);
    Weight prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read);
    Batch make_batch(int tokens, int pairs, int heads);
    void upload(const MicroBatch& mb, Batch& batch) { batch.fill(mb); }
    void write(int64_t n, const float* host, float* to);
    void read(int64_t n, const float* from, float* host);
    void read(int64_t n, const double* from, double* host);
    void zero(int64_t n, float* x);
    void cast(int64_t n, const float* x, T* y);
    void finish() {}
    void once(const std::string&, const Batch&, const std::function<void()>& f) { f(); }

    // --- products (gemm.cpp)
    void linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added = {});
    void linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added = {});
    void gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                 bool accumulate);
    void gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, float* C, int ldc);
    void low_rank_backward(int N, double scale, const T* dy, int ldy,
                           std::span<const LowRankGradient<T, float>> gradients) {
        low_rank_products(*this, N, scale, dy, ldy, gradients);
    }

    // --- layers (layers.cpp)
    void embed(const Batch& b, const Weight& E, T* x);
    void rmsnorm(int N, int C, double eps, const T* x, const float* w, T* y, int ldy, float* r);
    void add_rmsnorm(int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy, float* r,
                     const T* x_low = nullptr, T* x2_low = nullptr);
    void normalize(int N, int C, const T* x, const float* w, const float* r, T* y, int ldy);
    void rmsnorm_backward(int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                          bool accumulate);
    void rope(const Batch& b, const HeadShape& shape, const float* table, int sign, T* qkv);
    void swiglu(int N, int I, const T* gu, T* h);
    void swiglu_backward(int N, int I, const T* dh, T* gu, T* h);
    void dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* x, T* y);
    void dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* d, T* dx);

    // --- attention (attention.cpp)
    void attention(const Batch& b, const HeadShape& shape, const T* qkv, T* o, float* lse);
    void attention_backward(const Batch& b, const HeadShape& shape, const T* qkv, const T* o, const float* lse,
                            const T* d_o, T* dqkv);
    void cache_append(const Batch& b, const HeadShape& shape, int capacity, const T* qkv, T* cache);
    void decode_attention(const Batch& b, const HeadShape& shape, int capacity, const float* table, T* qkv, T* cache,
                          T* o);

    // --- the head and the loss (head.cpp)
    void head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U);
    void orpo(const Batch& b, const double* logp, double* coefficients);
    void scatter_scaled(const Batch& b, int C, const T* U, const double* coefficients, T* dn);
    void logits(const Batch& b, int C, const T* n, const Weight& W, float* z);
    void sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids);

    // --- the optimizer (adamw.cpp)
    void squared_norms(int slots, int64_t n, const float* g, double* out);
    void adamw(int slots, int64_t n, const AdamwSlot* slot, float* p, const float* g, float* m, float* v);

  private:
    void* allocate_bytes(Category category, const std::string& name, int64_t bytes);
    // The terms can be added inside the product.
    bool fits(std::span<const LowRank<T>> terms) const {
        int units = 0;
        for (const LowRank<T>& t : terms) units += ops_.units(t.R);
        return terms.size() <= cpu::kMostAdded && units <= isa_.most_units;
    }
    // f(row, rows, terms) for all N rows: those that have the same terms. added: ordered by row, each row in one run.
    template <class Function>
    void runs(int N, std::span<const LowRank<T>> added, const Function& f);
    template <class Out>
    void product(const cpu::GemmShare<T, Out>& whole);
    void packed_product(cpu::BForm form, int N, int in, int out, const T* x, const float* W, T* y,
                        std::span<const LowRank<T>> added, bool backward);
    // Work is cut into this many shares a thread, taken one by one: threads may run at different speeds.
    static constexpr int kSharesOfThread = 4;
    // f(thread, first, count) over contiguous shares of n items, at least `least` to a share.
    void shares(int64_t n, int64_t least, const std::function<void(int, int64_t, int64_t)>& f);
    // f(thread, item), items handed out one by one.
    void items(int64_t n, const std::function<void(int, int64_t)>& f);
    float* scratch(int thread) { return scratch_ + thread * scratch_stride_; }
    // Head rows whose sums over the parts of the vocabulary are in memory at once, and floats that these sums take.
    static constexpr int kHeadChunk = 1024;
    int64_t head_floats(int rows, int C, int V) const;
    void attention_groups(const Batch& b, const HeadShape& shape, bool backward, const T* qkv,
                          const std::function<void(int first, int last)>& run);

    CpuOptions options_;
    int threads_;
    const cpu::Isa& isa_;
    const cpu::Ops<T>& ops_;
    bool planning_;
    Limits limits_;
    MemoryTable memory_;
    std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
    char* next_ = nullptr;  // of the last block: what is free
    int64_t room_ = 0;

    float* scratch_ = nullptr;  // a stretch for each thread
    int64_t scratch_stride_ = 0;
    float* packed_keys_ = nullptr;  // attention: packed K and V
    int64_t packed_capacity_ = 0;
    float* key_sums_ = nullptr;  // attention backward: dk and dv of every segment, before they are added up
    int64_t sums_capacity_ = 0;
    float* head_sums_ = nullptr;  // the head's U, of each part of the vocabulary
    int64_t head_sums_capacity_ = 0;
    std::vector<int64_t> segment_at_;  // attention: where segment 2 * pair + side begins in packed_keys_
};

static_assert(Kernels<Cpu<float>> && Kernels<Cpu<bf16>>);

}  // namespace orpo
