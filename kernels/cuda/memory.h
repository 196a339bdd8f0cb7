// The memory of the CUDA backend: who holds how much, in what order. One allocation a category, cut into the arrays of
// the table. Without a device it only fills the table, so that a plan needs neither a GPU nor the CUDA library.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/tiles.h"
#include "kernels/kernels.h"

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

    std::shared_ptr<HostBatch> host;     // the padded batch, before the copy
    std::vector<unsigned char> staging;  // all arrays, as they lie on the device
    std::vector<QueryTile> host_queries;
    std::vector<KeyTile> host_keys;
};

// The next size of the ladder: 16 steps from one power of two to the next, at least `least` apart.
int ladder(int n, int least);

template <class Store>
class CudaMemory {
  public:
    using T = Store;
    using F = float;
    using Batch = DeviceBatch;
    struct Weight {
        int rows = 0, cols = 0;
        T* data = nullptr;  // [[W, B], [A, .]]: (rows + foot, cols + border)
        int border = 0, foot = 0;
        int ld() const { return cols + border; }
    };

    // device: null while planning. plan: the table of a planning run, whose categories become one allocation each.
    CudaMemory(std::shared_ptr<Device> device, const MemoryTable* plan);

    bool planning() const { return !device_; }
    const MemoryTable& memory() const { return memory_; }
    template <class U>
    U* allocate(Category category, const std::string& name, int64_t count) {
        return static_cast<U*>(take(category, name, count * static_cast<int64_t>(sizeof(U))));
    }
    void reserve(const Limits& limits);
    // Room for the weight, and for its rows in fp32 on their way to the device. They are not read here.
    Weight prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read,
                   int border = 0, int foot = 0);
    // The parts of the adapters that refresh_borders will copy beside their weights.
    void place_borders(const std::vector<Border<T>>& borders);
    Batch make_batch(int tokens, int pairs, int heads);
    void write(int64_t n, const float* host, float* to);
    void zero(int64_t n, float* x);

  protected:
    static constexpr int64_t kStaged = int64_t{256} * 8192;  // fp32 numbers of a weight on their way to the device

    std::shared_ptr<Device> device_;
    int chunk_ = 0;              // head rows whose logits are held at once
    T* logits_ = nullptr;        // (chunk, V)
    T* gathered_ = nullptr;      // (chunk, C)
    float* stats_ = nullptr;     // (H, tokens, 2)
    float* low_rank_ = nullptr;  // (low_rank_floats)
    int64_t low_rank_floats_ = 0;
    int32_t* ids_ = nullptr;  // (heads) drawn tokens
    int sequences_ = 0;
    float* parts_ = nullptr;      // (sequences, H, kDecodeStretches, kDecodePart) of decode_attention
    int32_t* arrived_ = nullptr;  // (sequences, H) zeros between launches
    double* norms_ = nullptr;     // partial sums, then totals
    AdamwStep* steps_ = nullptr;
    float* staged_ = nullptr;  // (kStaged)
    bool staging_ = false;     // staged_ is in the table
    Border<T>* borders_ = nullptr;
    int borders_n_ = 0;
    int most_slots_ = 0;

  private:
    void* take(Category category, const std::string& name, int64_t bytes);

    MemoryTable memory_;
    // One stretch of device memory a category.
    struct Stretch {
        void* base = nullptr;
        int64_t bytes = 0, used = 0;
    };
    std::map<Category, Stretch> stretches_;
};

}  // namespace orpo::cuda
