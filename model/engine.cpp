#include "model/engine.h"

#include <string>

#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "model/devices.h"
#include "model/engine_of.h"

namespace orpo {

std::unique_ptr<Engine> make_engine(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                                    const EngineOptions& options) {
    if (device.device != "cpu") return make_cuda_engine(device, config, weights, options);
    CpuOptions cpu;
    cpu.threads = device.threads;
    cpu.planning = options.planning;
    return with_dtype(resolve_dtype(device.dtype, "cpu"), [&](auto t) -> std::unique_ptr<Engine> {
        using K = Cpu<decltype(t)>;
        auto k = std::make_unique<K>(cpu);
        const std::string description = k->description();
        return std::make_unique<EngineOf<K>>(std::move(k), description, config, weights, options);
    });
}

}  // namespace orpo
