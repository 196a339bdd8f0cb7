// A test double of kernels/cuda/device.h on a CPU: kernels run in the SIMT runner, products through oneDNN, a captured
// graph is a list of launches with copied arguments.
//
// Its device memory is no host memory: pages that nobody may touch except kernels, copies and products, between two
// guard pages, and NaN until they are written. Past `most_touched` bytes memory is only counted (for the plan of large
// models), and must not be used.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"

namespace orpo::cuda {

struct StandinStatistics {
    int64_t bytes = 0;     // allocated, all in all
    int launches = 0;      // kernels started by the host, outside replays
    int captures = 0;
    int replays = 0;
    int64_t bytes_out = 0;  // copied to the host
};

class StandinDevice : public Device {
  public:
    static std::unique_ptr<StandinDevice> make(int64_t device_bytes = int64_t{24} << 30);
    virtual const StandinStatistics& statistics() const = 0;
};

}  // namespace orpo::cuda
