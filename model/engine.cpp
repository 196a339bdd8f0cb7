#include "model/engine.h"

#include "base/error.h"
#include "kernels/reference/reference.h"
#include "model/engine_of.h"

namespace orpo {

std::unique_ptr<Engine> make_engine(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                                    const EngineOptions& options) {
    if (device.device != "cpu")
        throw Error(Exit::kNoDevice, "--device " + device.device + ": this build has no such device; use --device cpu");
    return std::make_unique<EngineOf<Reference<float>>>(std::make_unique<Reference<float>>(options.planning),
                                                        "CPU fp32, reference kernels", config, weights, options);
}

}  // namespace orpo
