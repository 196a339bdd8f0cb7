// The backend on processors: operations of kernels/kernels.h in fp32, vectorised for what the processor has (SSE2,
// AVX2, AVX-512: isa.h), threaded over rows, panels of columns or heads. No element's sum is ever split between
// threads: the same bits come out of any number of threads. One file per operation: gemm.isa.h, attention.isa.h,
// head.isa.h, ...
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace orpo {

// bf16: operands of products are rounded to bf16, sums and storage stay fp32. Auto: bf16 where the processor has AMX,
// fp32 elsewhere, whose vector units are no faster, or slower, with bf16.
enum class CpuDtype { kAuto, kFp32, kBf16 };
CpuDtype parse_dtype(const std::string& name);  // "auto", "fp32", "bf16"

struct CpuOptions {
    int threads = 0;        // 0: one per physical core that this process may run on
    std::string isa = "";   // "": the best that the processor has; "sse2", "avx2", "avx512"
    bool planning = false;  // allocate nothing, only fill the memory table
    CpuDtype dtype = CpuDtype::kFp32;
    const cpu::Isa* table = nullptr;  // for tests: takes the place of `isa`
};

int physical_cores();                                                    // that this process may run on
const cpu::Isa& select_isa(const std::string& name, bool bf16 = false);  // Error(kNoDevice): not on this processor

class Cpu {
  public:
    using T = float;
    using F = float;
    using Batch = HostBatch;
    struct Weight {
        int rows = 0, cols = 0;
        const float* packed = nullptr;       // gemm.isa.h: the one copy, for every use
        const float* packed_back = nullptr;  // bf16.isa.h: there each direction has its own
    };

    explicit Cpu(const CpuOptions& options = {});
    ~Cpu();
    Cpu(const Cpu&) = delete;

    int threads() const { return threads_; }
    const char* isa() const { return isa_.name; }
    bool bf16() const { return bf16_; }
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
    void cast(int64_t n, const float* x, float* y);
    void finish() {}
    void once(const std::string&, const Batch&, const std::function<void()>& f) { f(); }

    // --- products (gemm.cpp)
    void linear(int N, const float* x, const Weight& W, float* y);
    void linear_backward(int N, const float* dy, const Weight& W, float* dx);
    void gemm_nt(int M, int N, int K, double a, const float* A, int lda, const float* B, int ldb, float* C, int ldc,
                 bool accumulate);
    void gemm_nn(int M, int N, int K, double a, const float* A, int lda, const float* B, int ldb, float* C, int ldc,
                 bool accumulate);
    void gemm_tn(int M, int N, int K, const float* A, int lda, const float* B, int ldb, float* C, int ldc);

    // --- layers (layers.cpp)
    void embed(const Batch& b, const Weight& E, float* x);
    void rmsnorm(int N, int C, double eps, const float* x, const float* w, float* y, float* r);
    void add_rmsnorm(int N, int C, double eps, const float* x, const float* d, const float* w, float* x2, float* y,
                     float* r);
    void normalize(int N, int C, const float* x, const float* w, const float* r, float* y);
    void rmsnorm_backward(int N, int C, const float* dy, const float* x, const float* w, const float* r, float* dx,
                          bool accumulate);
    void rope(const Batch& b, const HeadShape& shape, const float* table, int sign, float* qkv);
    void swiglu(int N, int I, const float* gu, float* h);
    void swiglu_backward(int N, int I, const float* dh, float* gu);
    void dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const float* x, float* y);
    void dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const float* d, float* dx);

    // --- attention (attention.cpp)
    void attention(const Batch& b, const HeadShape& shape, const float* qkv, float* o, float* lse);
    void attention_backward(const Batch& b, const HeadShape& shape, const float* qkv, const float* o, const float* lse,
                            const float* d_o, float* dqkv);
    void cache_append(const Batch& b, const HeadShape& shape, int capacity, const float* qkv, float* cache);
    void decode_attention(const Batch& b, const HeadShape& shape, int capacity, const float* qkv, const float* cache,
                          float* o);

    // --- the head and the loss (head.cpp)
    void head(const Batch& b, int C, const float* n, const Weight& W, double* logp, float* U);
    void orpo(const Batch& b, const double* logp, double* coefficients);
    void scatter_scaled(const Batch& b, int C, const float* U, const double* coefficients, float* dn);
    void logits(const Batch& b, int C, const float* n, const Weight& W, float* z);
    void sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids);

    // --- the optimizer (adamw.cpp)
    void squared_norms(int slots, int64_t n, const float* g, double* out);
    void adamw(int slots, int64_t n, const AdamwSlot* slot, float* p, const float* g, float* m, float* v);

  private:
    void* allocate_bytes(Category category, const std::string& name, int64_t bytes);
    void product(const cpu::GemmShare& whole);
    // f(thread, first, count) on every thread over contiguous shares of n items, at least `least` to a thread.
    void shares(int64_t n, int64_t least, const std::function<void(int, int64_t, int64_t)>& f);
    // f(thread, item), items handed out one by one.
    void items(int64_t n, const std::function<void(int, int64_t)>& f);
    int64_t packed_keys_size(int keys, int HS, bool backward) const {
        return (bf16_ ? isa_.attention_packed_bf16 : isa_.attention_packed)(keys, HS, backward);
    }
    float* scratch(int thread) { return scratch_ + thread * scratch_stride_; }
    void attention_groups(const Batch& b, const HeadShape& shape, bool backward, const float* qkv,
                          const std::function<void(int first, int last)>& run);

    CpuOptions options_;
    int threads_;
    bool bf16_ = false;
    const cpu::Isa& isa_;
    bool planning_;
    Limits limits_;
    MemoryTable memory_;
    std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;

    float* scratch_ = nullptr;  // a stretch for each thread
    int64_t scratch_stride_ = 0;
    float* packed_keys_ = nullptr;  // attention: packed K and V
    int64_t packed_capacity_ = 0;
    float* key_sums_ = nullptr;  // attention backward: dk and dv of every query head, before they are added up
    int64_t sums_capacity_ = 0;
    std::vector<int64_t> segment_at_;  // attention: where segment 2 * pair + side begins in packed_keys_
};

static_assert(Kernels<Cpu>);

}  // namespace orpo
