// The CUDA library's doors for `orpo bench` and `orpo profile`.
#include "kernels/progress/bench.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "base/error.h"
#include "kernels/cuda/cuda.h"
#include "model/bench_operations.h"
#include "model/cuda/entry.h"
#include "model/engine_of.h"

namespace orpo::cuda {

namespace {

// Written before every timed run, so that nothing is found in a cache that a training step would not leave there.
constexpr int64_t kFlushBytes = int64_t{256} << 20;

using Work = std::function<void()>;

// The best of `repeats` runs, after one that is not counted.
class Timer {
  public:
    Timer(Device& device, const BenchRequest& request)
        : device_(device),
          repeats_(request.repeats),
          bytes_(std::min(kFlushBytes, request.copy_bytes)),
          flushed_(device.array(bytes_)) {}
    double operator()(const Work& work) {
        double best = 1e30;
        for (int i = 0; i <= repeats_; ++i) {
            device_.zero(flushed_, bytes_);
            const double seconds = device_.seconds(work);
            if (i > 0) best = std::min(best, seconds);
        }
        return best;
    }

  private:
    Device& device_;
    int repeats_;
    int64_t bytes_;
    void* flushed_;
};

Ceilings measure(Device& device, const BenchRequest& request) {
    Ceilings c;
    Timer timer(device, request);
    void *from = device.array(request.copy_bytes), *to = device.array(request.copy_bytes);
    device.zero(from, request.copy_bytes);
    const double copy = timer([&] { device.copy(to, from, request.copy_bytes); });
    c.copy_bytes_per_second = 2.0 * static_cast<double>(request.copy_bytes) / copy;

    const int n = request.gemm_size;
    const Number number = request.dtype == "fp32" ? Number::kFloat : Number::kBf16;
    const int64_t bytes = int64_t{n} * n * (number == Number::kFloat ? 4 : 2);
    void *A = device.array(bytes), *B = device.array(bytes), *C = device.array(bytes);
    // Random numbers, never zeros: what a product of zeros draws in power lets a GPU clock higher.
    std::vector<unsigned char> host(static_cast<size_t>(bytes));
    uint32_t state = 1;
    for (unsigned char* p = host.data(); p < host.data() + bytes; p += 2) {
        state = state * 1664525u + 1013904223u;
        // bf16, or the high half of a float: a sign, an exponent of 125 or 126, and a mantissa.
        const auto bits =
            static_cast<uint16_t>((state >> 31) << 15 | (125u + (state >> 30 & 1)) << 7 | (state >> 20 & 127));
        __builtin_memcpy(p, &bits, 2);
    }
    for (void* to_fill : {A, B}) device.copy_in(to_fill, host.data(), bytes);
    const Product product{false, true, n, n, n, n, n, n, 1, false, number, number};
    c.gemm_flops_per_second = 2.0 * n * n * n / timer([&] { device.multiply(product, A, B, C); });
    return c;
}

template <class T>
std::vector<BenchRow> operations(const std::shared_ptr<Device>& device, const BenchRequest& request) {
    Cuda<T> plan(nullptr, nullptr);
    BenchOperations<Cuda<T>> planned(plan, request.shapes);
    Cuda<T> k(device, &plan.memory());
    BenchOperations<Cuda<T>> operations(k, request.shapes);
    return operations.run(Timer(*device, request));
}

template <class T>
double profile(int index, const std::string& dtype, const ModelConfig& config, const HostWeights* weights,
               EngineOptions options, const MicroBatch& mb) {
    options.planning = true;
    EngineOf<Cuda<T>> plan(std::make_unique<Cuda<T>>(nullptr, nullptr), "", config, nullptr, options);
    options.planning = false;
    std::shared_ptr<Device> device = Device::open(index);
    EngineOf<Cuda<T>> engine(std::make_unique<Cuda<T>>(device, &plan.memory()), dtype, config, weights, options);
    engine.kernels().use_graphs(false);
    std::vector<double> logp(mb.heads.size());
    AdamwSlot slot;
    slot.lr = 1e-5, slot.bias1 = slot.bias2 = 0.5;
    const auto step = [&] {
        engine.zero_gradients();
        engine.train(mb, logp);
        engine.gradient_norms();
        engine.adamw({&slot, 1});
        device->wait();
    };
    step();
    device->profile(true);
    const double seconds = device->seconds(step);
    device->profile(false);
    return seconds;
}

}  // namespace

extern "C" BenchReport orpo_cuda_bench(int index, const BenchRequest& request) {
    std::shared_ptr<Device> device = Device::open(index);
    BenchReport report;
    report.device = device->info().name;
    report.ceilings = measure(*device, request);
    if (request.what == BenchRequest::What::kKernels)
        report.rows = request.dtype == "fp32" ? operations<float>(device, request) : operations<bf16>(device, request);
    if (request.what == BenchRequest::What::kProgress) {
        const ModelConfig& c = request.shapes.config;
        Timer timer(*device, request);
        const progress::Shapes shapes{request.shapes.batch,
                                      {c.H, c.KV},
                                      c.C,
                                      c.V,
                                      std::min(1024, static_cast<int>(request.shapes.batch.heads.size()))};
        report.rows = progress::rows(*device, shapes, [&](const Work& work) { return timer(work); });
    }
    return report;
}

extern "C" double orpo_cuda_profile(int index, const std::string& dtype, const ModelConfig& config,
                                    const HostWeights* weights, const EngineOptions& options, const MicroBatch& mb) {
    return dtype == "fp32" ? profile<float>(index, dtype, config, weights, options, mb)
                           : profile<bf16>(index, dtype, config, weights, options, mb);
}

}  // namespace orpo::cuda
