// A test double of kernels/cuda/device.h on a CPU: kernels run in the SIMT runner, products through oneDNN, a captured
// graph is a list of launches with copied arguments. Work waits in a queue until somebody waits for it, as on a stream.
//
// Its device memory is no host memory: every array has pages of its own that nobody may touch except queued work,
// between guard pages, with a pattern on the bytes that the pages have too many, and is NaN until it is written. The
// operands of every product must lie inside one array. A device that is only `counted` reserves addresses, checks and
// counts, but runs nothing and touches nothing: for models that are too large to compute here.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/device.h"

namespace orpo::cuda {

// What the host asked for since the device was made.
struct StandinStatistics {
    int64_t bytes = 0;     // allocated
    int64_t in_arrays = 0; // of them, in arrays, each rounded up to 256 bytes
    int launches = 0;      // kernels, outside of graphs
    int products = 0;      // outside of graphs
    int copies_in = 0, copies_out = 0, fills = 0, waits = 0;
    int64_t bytes_out = 0;     // copied to the host
    int timed = 0;             // runs by seconds()
    int by_best = 0;           // products run by the candidate that the stand-in calls the fastest
    int captures = 0, replays = 0;
    int graph_launches = 0, graph_products = 0, graph_fills = 0;  // of the graph captured last
};

struct StandinOptions {
    int64_t bytes = int64_t{24} << 30;  // of the card
    int64_t taken = 0;                  // of them, by other programs: allocating more than the rest fails
    bool counted = false;
};

class StandinDevice : public Device {
  public:
    static std::unique_ptr<StandinDevice> make(const StandinOptions& options = {});
    virtual const StandinStatistics& statistics() const = 0;
};

}  // namespace orpo::cuda
