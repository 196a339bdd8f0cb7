#include "kernels/cuda/memory.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/error.h"
#include "kernels/cuda/low_rank_cut.h"

namespace orpo::cuda {

namespace {

constexpr int64_t kAlign = 256;
constexpr int kHeadChunk = 1024;  // rows whose logits are held: 100 MB in bf16 at SmolLM2's vocabulary
constexpr int kMostSlots = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// What low_rank_backward needs for any choice of the linears of a layer.
int64_t low_rank_floats(const Limits& l) {
    const int q = l.shape.H * l.shape.HS, kv = l.shape.KV * l.shape.HS;
    int64_t most = 0;
    for (const std::vector<int>& group : {std::vector{q, kv, kv}, std::vector{l.I, l.I}, std::vector{l.C}})
        for (unsigned chosen = 1; chosen < 1u << group.size(); ++chosen) {
            std::vector<LowRankTerm> terms;
            for (size_t i = 0; i < group.size(); ++i)
                if (chosen >> i & 1) terms.push_back({0, group[i], l.R, nullptr, 0, nullptr, nullptr, nullptr, 0});
            most = std::max(most, low_rank_scratch(l.tokens, static_cast<int>(terms.size()), terms.data()));
        }
    return most;
}

}  // namespace

int ladder(int n, int least) {
    const int step = std::max(least, static_cast<int>(std::bit_floor(static_cast<unsigned>(std::max(n, 1)))) / 16);
    return (n + step - 1) / step * step;
}

template <class Store>
CudaMemory<Store>::CudaMemory(std::shared_ptr<Device> device, const MemoryTable* plan) : device_(std::move(device)) {
    if (!device_) return;
    ORPO_CHECK(plan);
    for (const MemoryTable::Entry& entry : plan->entries()) stretches_[entry.category].bytes += aligned(entry.bytes);
    for (auto& [category, stretch] : stretches_) stretch.base = device_->allocate(stretch.bytes);
}

template <class Store>
void* CudaMemory<Store>::take(Category category, const std::string& name, int64_t bytes) {
    memory_.add(category, name, aligned(bytes));
    if (planning()) return nullptr;
    Stretch& stretch = stretches_[category];
    ORPO_CHECK(stretch.used + aligned(bytes) <= stretch.bytes);  // the plan is what is allocated
    void* at = bytes > 0 ? device_->part(stretch.base, stretch.used, bytes) : nullptr;
    stretch.used += aligned(bytes);
    return at;
}

template <class Store>
void CudaMemory<Store>::reserve(const Limits& limits) {
    if (limits.V % 8 || limits.C % 8 || limits.I % 8 || limits.C > 2048 || limits.shape.HS != 64)
        throw Error(Exit::kBadModel,
                    "the CUDA kernels need a head size of 64, widths that are multiples of 8 and at most 2048 "
                    "channels; use --device cpu");
    chunk_ = std::min(kHeadChunk, ladder(std::max(limits.heads, 1), 16));
    logits_ = allocate<T>(Category::kWorkspace, "logits of a chunk", int64_t{chunk_} * limits.V);
    gathered_ = allocate<T>(Category::kWorkspace, "head rows of a chunk", int64_t{chunk_} * limits.C);
    if (limits.gradients)
        stats_ =
            allocate<float>(Category::kWorkspace, "attention row sums", int64_t{2} * limits.tokens * limits.shape.H);
    if (limits.gradients && sizeof(T) == 2 && limits.R > 0) {
        low_rank_floats_ = low_rank_floats(limits);
        low_rank_ = allocate<float>(Category::kWorkspace, "lora gradients of blocks", low_rank_floats_);
    }
    ids_ = allocate<int32_t>(Category::kWorkspace, "drawn tokens", limits.heads);
    sequences_ = limits.sequences;
    if (sequences_ > 0) {
        const int64_t heads = int64_t{sequences_} * limits.shape.H;
        parts_ =
            allocate<float>(Category::kWorkspace, "attention over the cache", heads * kDecodeStretches * kDecodePart);
        arrived_ = allocate<int32_t>(Category::kWorkspace, "blocks that have ended", heads);
        if (!planning()) device_->zero(arrived_, heads * static_cast<int64_t>(sizeof(int32_t)));
    }
    most_slots_ = kMostSlots;
    norms_ = allocate<double>(Category::kWorkspace, "norm sums", int64_t{kMostSlots} * (kNormBlocks + 1));
    steps_ = allocate<AdamwStep>(Category::kWorkspace, "AdamW steps", kMostSlots);
}

template <class Store>
auto CudaMemory<Store>::prepare(const std::string& name, int64_t rows, int64_t cols, unsigned, const RowReader&,
                                int border, int foot) -> Weight {
    if (!std::exchange(staging_, true))
        staged_ = allocate<float>(Category::kWorkspace, "weights on their way", kStaged);
    T* data = allocate<T>(Category::kWeights, name, (rows + foot) * (cols + border));
    return {static_cast<int>(rows), static_cast<int>(cols), data, border, foot};
}

template <class Store>
void CudaMemory<Store>::place_borders(const std::vector<Border<T>>& borders) {
    borders_n_ = static_cast<int>(borders.size());
    borders_ = allocate<Border<T>>(Category::kWorkspace, "where adapters stand", borders_n_);
    if (!planning() && borders_n_ > 0)
        device_->copy_in(borders_, borders.data(), borders_n_ * static_cast<int64_t>(sizeof(Border<T>)));
}

template <class Store>
auto CudaMemory<Store>::make_batch(int tokens, int pairs, int heads) -> Batch {
    Batch b;
    b.capacity_tokens = tokens;
    b.capacity_heads = heads;
    b.capacity_pairs = ladder(pairs + tokens / 64 / 16 + 2, 8);
    const int64_t N = tokens, P = b.capacity_pairs, tiles = most_tiles(tokens, b.capacity_pairs);
    const int64_t bytes = 5 * aligned(N * 4) + aligned(P * static_cast<int64_t>(sizeof(PairSpan))) +
                          aligned(int64_t{b.capacity_heads} * static_cast<int64_t>(sizeof(HeadRow))) +
                          aligned(tiles * static_cast<int64_t>(sizeof(QueryTile))) +
                          aligned(tiles * static_cast<int64_t>(sizeof(KeyTile))) + kAlign;
    auto* at = allocate<unsigned char>(Category::kBatch, "micro-batch", bytes);
    if (planning()) return b;
    const auto place = [&](auto*& pointer, int64_t count) {
        using U = std::remove_reference_t<decltype(*pointer)>;
        pointer = reinterpret_cast<U*>(at);
        at += aligned(count * static_cast<int64_t>(sizeof(U)));
    };
    place(b.scalars, 1);
    for (int32_t** list : {&b.ids, &b.positions, &b.mask_pair, &b.head1, &b.head2}) place(*list, N);
    place(b.pairs, P), place(b.heads, b.capacity_heads), place(b.query_tile, tiles), place(b.key_tile, tiles);
    b.host = std::make_shared<HostBatch>(tokens, b.capacity_pairs, b.capacity_heads);
    b.staging.assign(static_cast<size_t>(bytes), 0);
    return b;
}

template <class Store>
void CudaMemory<Store>::write(int64_t n, const float* host, float* to) {
    if (!planning()) device_->copy_in(to, host, n * static_cast<int64_t>(sizeof(float)));
}
template <class Store>
void CudaMemory<Store>::zero(int64_t n, float* x) {
    if (!planning()) device_->zero(x, n * static_cast<int64_t>(sizeof(float)));
}

template class CudaMemory<float>;
template class CudaMemory<bf16>;

}  // namespace orpo::cuda
