// With model/cuda/library.cpp: the CUDA library that the program loads through ORPO_CUDA_LIBRARY in tests, with one
// stand-in as its only device. Settings: ORPO_STANDIN_BYTES (of the card), ORPO_STANDIN_TAKEN (by other programs).
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "tests/simt/standin.h"

namespace orpo::cuda {

namespace {

int64_t setting(const char* name, int64_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoll(text) : otherwise;
}

}  // namespace

std::unique_ptr<Device> Device::open(int index) {
    if (index != 0)
        throw Error(Exit::kNoDevice, "--device cuda:" + std::to_string(index) + ": there is one stand-in, number 0");
    StandinOptions options;
    options.bytes = setting("ORPO_STANDIN_BYTES", options.bytes);
    options.taken = setting("ORPO_STANDIN_TAKEN", options.taken);
    return StandinDevice::make(options);
}

}  // namespace orpo::cuda
