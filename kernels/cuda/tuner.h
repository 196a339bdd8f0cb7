// --tune: which of a device's algorithms is the fastest for each product of a run, timed once a shape and kept in a file
// of the run, so that a run that goes on takes the same ones and gives the same bits.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/cuda/device.h"

namespace orpo::cuda {

class Tuner {
  public:
    // file: read when it is there. Choices of another device or library are left aside, and made again.
    Tuner(std::shared_ptr<Device> device, std::string file);

    // Times the candidates on these operands, unless the shape is known, and takes the best. C holds no sense afterwards.
    void multiply(const Product& product, const void* A, const void* B, void* C);
    // Writes the file when something was added. Called before a choice is used, so that no bits depend on one that is
    // nowhere kept.
    void save();

  private:
    std::shared_ptr<Device> device_;
    std::string file_;
    std::map<std::string, std::string> choices_;  // by shape_key
    std::map<std::string, std::string> offered_;  // read from the file, not yet met
    bool added_ = false;
};

// "bf16 bf16 nt 4096 6144 2048 ld 2048 2048 6144 added": everything that a choice depends on.
std::string shape_key(const Product& product);

}  // namespace orpo::cuda
