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
    if (device.dtype != "fp32")
        throw Error(Exit::kUsage,
                    "--dtype " + device.dtype + ": the CPU of this build computes in fp32; use --dtype fp32");
    CpuOptions cpu;
    cpu.threads = device.threads;
    cpu.planning = options.planning;
    auto k = std::make_unique<Cpu>(cpu);
    const std::string description =
        "CPU fp32, " + std::string(k->isa()) + ", " + std::to_string(k->threads()) + " threads";
    return std::make_unique<EngineOf<Cpu>>(std::move(k), description, config, weights, options);
}

}  // namespace orpo
