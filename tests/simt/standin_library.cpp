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

StandinOptions options() {
    StandinOptions o;
    o.bytes = setting("ORPO_STANDIN_BYTES", o.bytes);
    o.taken = setting("ORPO_STANDIN_TAKEN", o.taken);
    return o;
}

}  // namespace

DeviceInfo Device::look(int index) {
    if (index != 0)
        throw Error(Exit::kNoDevice, "--device cuda:" + std::to_string(index) + ": there is one stand-in, number 0");
    return {"stand-in for a GPU", options().bytes, 1};
}

std::unique_ptr<Device> Device::open(int index) {
    look(index);
    return StandinDevice::make(options());
}

}  // namespace orpo::cuda
