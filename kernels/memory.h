// Who holds how many bytes of a backend's memory: a table that is complete before step 0, printed, and never grows.
// A backend made with planning = true allocates nothing and only fills the table: the same constructors run, so the
// plan of --dry-run is what a real run allocates, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orpo {

enum class Category { kWeights, kAdapters, kGradients, kOptimizer, kActivations, kWorkspace, kBatch, kCache, kCount };

inline const char* category_name(Category category) {
    constexpr const char* kNames[] = {"weights",     "adapters",  "gradients", "optimizer",
                                      "activations", "workspace", "batch",     "cache"};
    return kNames[static_cast<int>(category)];
}

class MemoryTable {
  public:
    struct Entry {
        Category category;
        std::string name;
        int64_t bytes;
    };

    void add(Category category, const std::string& name, int64_t bytes) {
        entries_.push_back({category, name, bytes});
        totals_[static_cast<int>(category)] += bytes;
    }
    const std::vector<Entry>& entries() const { return entries_; }
    int64_t bytes(Category category) const { return totals_[static_cast<int>(category)]; }
    int64_t bytes() const {
        int64_t sum = 0;
        for (const int64_t part : totals_) sum += part;
        return sum;
    }

  private:
    std::vector<Entry> entries_;
    int64_t totals_[static_cast<int>(Category::kCount)] = {};
};

}  // namespace orpo
