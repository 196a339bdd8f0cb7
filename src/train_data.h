// The order in which a run visits its pairs: optimizer batches as functions of (seed, epoch), nothing kept between
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "data/dataset.h"

namespace orpo {

class BatchOrder {
  public:
    BatchOrder(std::span<const PreferencePair> pairs, int64_t batch_size, uint64_t seed, bool shuffle)
        : pairs_(pairs), batch_size_(batch_size), seed_(seed), shuffle_(shuffle) {}

    int64_t pairs() const { return static_cast<int64_t>(pairs_.size()); }

    // The batch that starts at `position` of `epoch`: batch_size pairs, fewer at the end of the epoch.
    std::vector<const PreferencePair*> batch(int64_t epoch, int64_t position) {
        load(epoch);
        std::vector<const PreferencePair*> batch;
        for (int64_t i = position; i < std::min(position + batch_size_, pairs()); ++i)
            batch.push_back(&pairs_[order_[i]]);
        return batch;
    }

    // Moves (epoch, position) behind that batch.
    void advance(int64_t& epoch, int64_t& position) const {
        position += batch_size_;
        if (position >= pairs()) ++epoch, position = 0;
    }

  private:
    void load(int64_t epoch) {
        if (epoch == loaded_) return;
        if (shuffle_) {
            order_ = epoch_order(pairs(), seed_, epoch);
        } else {
            order_.resize(pairs_.size());
            std::iota(order_.begin(), order_.end(), 0);
        }
        loaded_ = epoch;
    }

    std::span<const PreferencePair> pairs_;
    int64_t batch_size_ = 1;
    uint64_t seed_ = 0;
    bool shuffle_ = true;
    int64_t loaded_ = -1;
    std::vector<int32_t> order_;
};

}  // namespace orpo
