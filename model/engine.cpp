#include "model/engine.h"

#include <string>

#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "model/engine_of.h"

namespace orpo {

std::unique_ptr<Engine> make_engine(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                                    const EngineOptions& options) {
    if (device.device != "cpu")
        throw Error(Exit::kNoDevice, "--device " + device.device + ": this build has no such device; use --device cpu");
    CpuOptions cpu;
    cpu.threads = device.threads;
    cpu.planning = options.planning;
    cpu.dtype = parse_dtype(device.dtype);
    auto k = std::make_unique<Cpu>(cpu);
    const std::string description = k->description();
    return std::make_unique<EngineOf<Cpu>>(std::move(k), description, config, weights, options);
}

}  // namespace orpo
