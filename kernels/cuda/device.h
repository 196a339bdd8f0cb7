// The few calls by which the CUDA backend reaches a device: memory, copies, matrix products, capture and replay.
// device_cuda.cpp makes them with the CUDA runtime and cuBLASLt; tests/simt/standin.cpp on a CPU, so that the whole
// backend (offsets, launches, memory plan, graphs) runs in tests on machines without a GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/ops.h"

namespace orpo::cuda {

struct DeviceInfo {
    std::string name;  // "NVIDIA H200, sm_90"
    int64_t bytes = 0;  // of device memory in all
    int multiprocessors = 0;
};

// What a GPU's memory holds besides the program's arrays: the driver's context with the kernels' code, graphs, and the
// products' workspace. The context is an estimate.
inline constexpr int64_t kContextBytes = int64_t{480} << 20;
inline constexpr int64_t kProductWorkspace = int64_t{32} << 20;
// What arrays may take of a card of so many bytes: 1/32 stays free, for the desktop and the allocator's rounding.
inline int64_t usable_bytes(int64_t card) { return card - card / 32 - kContextBytes - kProductWorkspace; }

enum class Number : int32_t { kFloat, kBf16 };

// Row-major C (M, N) = a op(A) op(B) + (accumulate ? C : 0), sums in fp32.
struct Product {
    bool transpose_a = false, transpose_b = false;  // A is (M, K), or (K, M) when transposed; B (K, N) or (N, K)
    int M = 0, N = 0, K = 0;
    int lda = 0, ldb = 0, ldc = 0;
    double a = 1;
    bool accumulate = false;
    Number in = Number::kBf16, out = Number::kBf16;
};

// An allocation that failed, in bytes.
[[noreturn]] inline void refuse_memory(int64_t asked, int64_t free, int64_t all) {
    const auto mib = [](int64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
    throw Error(Exit::kMemory, "not enough GPU memory: " + mib(asked) + " asked for, " + mib(free) + " of " + mib(all) +
                                   " are free; close other programs, or lower --memory-limit or --micro-batch-tokens");
}

class Device {
  public:
    // Error(kNoDevice) when there is no such device or no driver.
    static std::unique_ptr<Device> open(int index);
    // The same without taking anything of it.
    static DeviceInfo look(int index);
    virtual ~Device() = default;

    virtual const DeviceInfo& info() const = 0;
    virtual Stream stream() = 0;

    // Lives as long as the device object; aligned to 256 bytes. Error(kMemory) that says how much was asked for.
    virtual void* allocate(int64_t bytes) = 0;
    // The array of `bytes` that begins `offset` (a multiple of 256) into an allocation. The stand-in gives it pages of
    // its own.
    virtual void* part(void* allocation, int64_t offset, int64_t bytes) {
        (void)bytes;
        return static_cast<unsigned char*>(allocation) + offset;
    }
    // An allocation that is one array.
    void* array(int64_t bytes) { return part(allocate((bytes + 255) / 256 * 256), 0, bytes); }
    // In stream order. `host` may be used again when copy_in returns; copy_out waits for the bytes.
    virtual void copy_in(void* to, const void* host, int64_t bytes) = 0;
    virtual void copy_out(const void* from, void* host, int64_t bytes) = 0;
    virtual void zero(void* to, int64_t bytes) = 0;
    virtual void copy(void* to, const void* from, int64_t bytes) = 0;  // within the device's memory
    virtual void wait() = 0;

    // Bit-equal from run to run: one algorithm and workspace a shape.
    virtual void multiply(const Product& product, const void* A, const void* B, void* C) = 0;
    // Algorithms for products of this shape, as text that can be kept in a file; the one that is taken by itself first.
    virtual std::vector<std::string> candidates(const Product& product) = 0;
    // Takes one for this shape from now on. false: not one of this device and library; nothing changes.
    virtual bool choose(const Product& product, const std::string& candidate) = 0;
    // Whose candidates they are: "NVIDIA H200, sm_90, cuBLASLt 12.8.4".
    virtual std::string products_by() const = 0;

    // What is launched between the two becomes a graph (it does not run). No copies and waits inside.
    virtual void begin_capture() = 0;
    virtual int end_capture() = 0;  // its number
    virtual void replay(int graph) = 0;

    // Seconds that the device takes for what `work` sends to it. Waits.
    virtual double seconds(const std::function<void()>& work) = 0;

    // Named ranges for profilers, and the stretch that a profiler is told to look at.
    virtual void push_range(const char* name) = 0;
    virtual void pop_range() = 0;
    virtual void profile(bool on) = 0;
};

}  // namespace orpo::cuda
