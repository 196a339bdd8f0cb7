#include "kernels/cuda/cuda.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "kernels/cuda/low_rank_cut.h"
#include "kernels/sample.h"

namespace orpo::cuda {

namespace {

constexpr int kMostGraphs = 32;  // each holds some device memory; what comes after them runs plainly
constexpr int kFewRows = 4;      // up to here a product reads W once: gemv

// Pads are texts of their own at position 0, so that every kernel meets finite numbers and sane indices there (tables
// of positions may be short); they have no place in the batch, so that nothing of them goes into a sequence's cache.
void pad(HostBatch& batch, const MicroBatch& mb, int tokens, int heads, int pairs) {
    MicroBatch padded = mb;
    for (int n = static_cast<int>(mb.ids.size()); n < tokens; n += 64) {
        const int end = std::min(n + 64, tokens);
        PairSpan text;
        text.begin = n, text.chosen = text.rejected = text.end = end;
        text.slot = mb.pairs.back().slot;
        text.first_head = static_cast<int32_t>(mb.heads.size());
        text.pair_in_batch = -1;
        for (int i = n; i < end; ++i) padded.ids.push_back(0), padded.positions.push_back(0);
        padded.pairs.push_back(text);
    }
    batch.fill(padded);
    // Rows that are scored for nothing: no weight, and no row of the batch takes their gradient.
    HeadRow nothing;
    nothing.pair = static_cast<int32_t>(mb.pairs.size()) - 1;
    batch.heads.resize(static_cast<size_t>(heads), nothing);
    PairSpan none;
    none.begin = none.chosen = none.rejected = none.end = tokens;
    batch.pairs.resize(static_cast<size_t>(pairs), none);
    // The last one writes the coefficients of the rows scored for nothing: zeros.
    batch.pairs.back().first_head = static_cast<int32_t>(mb.heads.size());
    batch.pairs.back().heads = heads - static_cast<int32_t>(mb.heads.size());
    batch.heads_n = heads;
}

}  // namespace

template <class Store>
auto Cuda<Store>::prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read,
                          int border, int foot) -> Weight {
    const Weight W = CudaMemory<T>::prepare(name, rows, cols, use, read, border, foot);
    if (planning()) return W;
    // Blocks of the border that belong to no adapter stay zeros.
    if (border > 0 || foot > 0) device_->zero(W.data, (rows + foot) * W.ld() * static_cast<int64_t>(sizeof(T)));
    const int64_t at_once = std::max<int64_t>(1, kStaged / cols);
    std::vector<float> host(static_cast<size_t>(std::min(at_once, rows) * cols));
    for (int64_t first = 0; first < rows; first += at_once) {
        const int64_t count = std::min(at_once, rows - first);
        read(first, count, host.data());
        device_->copy_in(staged_, host.data(), count * cols * static_cast<int64_t>(sizeof(float)));
        cuda::cast_rows<T>(stream(), static_cast<int>(count), W.cols, staged_, W.data + first * W.ld(), W.ld());
    }
    return W;
}

template <class Store>
void Cuda<Store>::upload(const MicroBatch& mb, Batch& b) {
    ORPO_CHECK(!mb.pairs.empty() && static_cast<int>(mb.ids.size()) <= b.capacity_tokens);
    const int tokens = static_cast<int>(mb.ids.size()), heads = static_cast<int>(mb.heads.size());
    // A few rows at a time (decoding) are taken as they are.
    const bool few = tokens <= 64;
    b.N = few ? tokens : std::min(ladder(tokens, 64), b.capacity_tokens);
    b.heads_n = few ? heads : std::min(ladder(heads, 16), b.capacity_heads);
    const int with_pads = static_cast<int>(mb.pairs.size()) + (b.N - tokens + 63) / 64;
    b.pairs_n = ladder(with_pads + 1, 8);
    ORPO_CHECK(b.pairs_n <= b.capacity_pairs);
    pad(*b.host, mb, b.N, b.heads_n, b.pairs_n);
    b.runs = b.host->runs;
    query_tiles(b.host->pairs, b.host_queries);
    key_tiles(b.host->pairs, b.host_keys);
    b.query_tiles = b.key_tiles =
        few ? static_cast<int>(std::max(b.host_queries.size(), b.host_keys.size())) : most_tiles(b.N, b.pairs_n);
    b.host_queries.resize(static_cast<size_t>(b.query_tiles));
    b.host_keys.resize(static_cast<size_t>(b.key_tiles));

    const BatchScalars scalars{mb.dropout_key, mb.step};
    unsigned char* begin = b.staging.data();
    const auto base = reinterpret_cast<unsigned char*>(b.scalars);
    const auto put = [&](const auto* device, const auto* host, size_t count) {
        std::memcpy(begin + (reinterpret_cast<const unsigned char*>(device) - base), host, count * sizeof(*host));
    };
    put(b.scalars, &scalars, 1);
    const HostBatch& h = *b.host;
    put(b.ids, h.ids.data(), h.ids.size()), put(b.positions, h.positions.data(), h.positions.size());
    put(b.mask_pair, h.mask_pair.data(), h.mask_pair.size());
    put(b.head1, h.head1.data(), h.head1.size()), put(b.head2, h.head2.data(), h.head2.size());
    put(b.pairs, h.pairs.data(), h.pairs.size()), put(b.heads, h.heads.data(), h.heads.size());
    put(b.query_tile, b.host_queries.data(), b.host_queries.size());
    put(b.key_tile, b.host_keys.data(), b.host_keys.size());
    const int64_t used = reinterpret_cast<unsigned char*>(b.key_tile + b.key_tiles) - base;
    device_->copy_in(base, begin, used);
}

template <class Store>
void Cuda<Store>::read(int64_t n, const float* from, float* host) {
    device_->copy_out(from, host, n * static_cast<int64_t>(sizeof(float)));
}
template <class Store>
void Cuda<Store>::read(int64_t n, const double* from, double* host) {
    device_->copy_out(from, host, n * static_cast<int64_t>(sizeof(double)));
}
template <class Store>
std::string Cuda<Store>::key_of(const std::string& name, const Batch& b) {
    std::string key = name;
    for (const int size : {b.N, b.heads_n, b.pairs_n, b.query_tiles}) key += " " + std::to_string(size);
    for (const SlotRun& run : b.runs)
        key += " " + std::to_string(run.slot) + ":" + std::to_string(run.first) + "+" + std::to_string(run.rows);
    return key;
}

template <class Store>
void Cuda<Store>::tune(const std::string& name, const Batch& b, const std::function<void()>& f) {
    tuning_ = true;
    f();
    tuning_ = false;
    tuned_.insert(key_of(name, b));
    tuner_->save();
}

template <class Store>
void Cuda<Store>::once(const std::string& name, const Batch& b, const std::function<void()>& f) {
    const Range range(*this, name.c_str());
    if (!graphs_on_ || tuning_) return f();
    const std::string key = key_of(name, b);
    const auto found = graphs_.find(key);
    if (found != graphs_.end() && found->second >= 0) return device_->replay(found->second);
    if (found == graphs_.end()) {
        // The first time runs plainly: libraries load and choose their kernels outside a capture.
        graphs_[key] = -1;
        return f();
    }
    if (captured_ == kMostGraphs) return f();
    ++captured_;
    device_->begin_capture();
    f();
    found->second = device_->end_capture();
    device_->replay(found->second);
}

template <class Store>
void Cuda<Store>::push_range(const char* name, int number) {
    if (number < 0) return device_->push_range(name);
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%s %d", name, number);
    device_->push_range(text.data());
}

// --- products. Row-major throughout.
template <class Store>
void Cuda<Store>::linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added) {
    const Range range(*this, "linear");
    const int in = W.ld();
    if (N <= kFewRows)
        gemv<T, T>(stream(), N, W.rows, in, x, W.data, y);
    else
        gemm_nt(N, W.rows, in, 1, x, in, W.data, in, y, W.rows, false);
    for (const LowRank<T>& t : added)
        gemm_nt(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, y + int64_t{t.row} * W.rows + t.column, W.rows,
                true);
}
template <class Store>
void Cuda<Store>::linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added) {
    const Range range(*this, "linear_backward");
    const int out = W.rows + W.foot;
    gemm_nn(N, W.cols, out, 1, dy, out, W.data, W.ld(), dx, W.cols, false);
    for (const LowRank<T>& t : added)
        gemm_nn(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, dx + int64_t{t.row} * W.cols + t.column, W.cols,
                true);
}
template <class Store>
void Cuda<Store>::gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                          bool accumulate) {
    multiply("gemm_nt", {false, true, M, N, K, lda, ldb, ldc, a, accumulate, kStore, kStore}, A, B, C);
}
template <class Store>
void Cuda<Store>::gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                          bool accumulate) {
    multiply("gemm_nn", {false, false, M, N, K, lda, ldb, ldc, a, accumulate, kStore, kStore}, A, B, C);
}
template <class Store>
void Cuda<Store>::gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, float* C, int ldc) {
    multiply("gemm_tn", {true, false, M, N, K, lda, ldb, ldc, 1, true, kStore, Number::kFloat}, A, B, C);
}
template <class Store>
void Cuda<Store>::low_rank_backward(int N, double scale, const T* dy, int ldy,
                                    std::span<const LowRankGradient<T, float>> gradients) {
    const Range range(*this, "low_rank_backward");
    if constexpr (sizeof(T) == 2) {
        const int n = static_cast<int>(gradients.size());
        const int64_t floats = low_rank_scratch(N, n, gradients.data());
        if (floats > 0 && floats <= low_rank_floats_ && low_rank_fits(dy, ldy, n, gradients.data()))
            return cuda::low_rank_backward(stream(), N, scale, dy, ldy, n, gradients.data(), low_rank_);
    }
    low_rank_products(*this, N, scale, dy, ldy, gradients);
}

// --- the head: logits of a chunk of rows, then softmax - onehot in their place, then U.
template <class Store>
void Cuda<Store>::head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U) {
    const Range range(*this, "head");
    const int V = W.rows;
    for (int first = 0; first < b.heads_n; first += chunk_) {
        const int rows = std::min(chunk_, b.heads_n - first);
        gather<T>(stream(), rows, C, b.heads + first, n, gathered_);
        gemm_nt(rows, V, C, 1, gathered_, C, W.data, C, logits_, V, false);
        softmax_xent<T>(stream(), rows, V, b.heads + first, logits_, logp + first, U != nullptr);
        if (U) gemm_nn(rows, C, V, 1, logits_, V, W.data, C, U + int64_t{first} * C, C, false);
    }
}
template <class Store>
void Cuda<Store>::logits(const Batch& b, int C, const T* n, const Weight& W, float* z) {
    const Range range(*this, "logits");
    for (int first = 0; first < b.heads_n; first += chunk_) {
        const int rows = std::min(chunk_, b.heads_n - first);
        gather<T>(stream(), rows, C, b.heads + first, n, gathered_);
        float* to = z + int64_t{first} * W.rows;
        if (rows <= kFewRows)
            gemv<T, float>(stream(), rows, W.rows, C, gathered_, W.data, to);
        else
            multiply("logits", {false, true, rows, W.rows, C, C, C, W.rows, 1, false, kStore, Number::kFloat},
                     gathered_, W.data, to);
    }
}

template <class Store>
void Cuda<Store>::sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids) {
    cuda::sample(stream(), b.heads_n, V, b.heads, z, draw, ids_);
    device_->copy_out(ids_, ids, b.heads_n * static_cast<int64_t>(sizeof(int32_t)));
    if (std::any_of(ids, ids + b.heads_n, [](int32_t id) { return id < 0; })) refuse_nan_logits();
}

// --- the optimizer
template <class Store>
void Cuda<Store>::squared_norms(int slots, int64_t n, const float* g, double* out) {
    const Range range(*this, "squared_norms");
    ORPO_CHECK(slots <= most_slots_);
    double* totals = norms_ + int64_t{most_slots_} * kNormBlocks;
    cuda::squared_norms(stream(), slots, n, g, norms_, totals);
    read(slots, totals, out);
}
template <class Store>
void Cuda<Store>::adamw(int slots, int64_t n, const AdamwSlot* slot, float* p, const float* g, float* m, float* v) {
    const Range range(*this, "adamw");
    ORPO_CHECK(slots <= most_slots_);
    std::vector<AdamwStep> steps;
    for (int s = 0; s < slots; ++s) {
        const AdamwSlot& a = slot[s];
        steps.push_back({static_cast<float>(a.lr / a.bias1), static_cast<float>(1 - a.lr * a.weight_decay),
                         static_cast<float>(a.beta1), static_cast<float>(a.beta2),
                         static_cast<float>(1 / std::sqrt(a.bias2)), static_cast<float>(a.eps),
                         static_cast<float>(a.grad_scale), a.active ? 1 : 0});
    }
    device_->copy_in(steps_, steps.data(), slots * static_cast<int64_t>(sizeof(AdamwStep)));
    cuda::adamw(stream(), slots, n, steps_, p, g, m, v);
}

template class Cuda<float>;
template class Cuda<bf16>;
static_assert(Kernels<Cuda<float>> && Kernels<Cuda<bf16>>);

}  // namespace orpo::cuda
