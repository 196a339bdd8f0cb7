#include "model/devices.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "base/error.h"
#include "base/io.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/memory.h"
#include "model/cuda/entry.h"
#include "model/engine_arrays.h"

namespace orpo {

namespace {

struct CudaLibrary {
    void* handle = nullptr;
    cuda::MakeEngine make_engine = nullptr;
    cuda::Look look = nullptr;
    cuda::Bench bench = nullptr;
    cuda::Profile profile = nullptr;
    std::string problem;  // why handle is null
};

std::string beside_the_program() {
    std::array<char, 4096> path{};
    const ssize_t n = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
    return n > 0 ? io::join(io::parent_dir(std::string(path.data(), static_cast<size_t>(n))), cuda::kLibrary)
                 : std::string(cuda::kLibrary);
}

// Loaded at the first call and never unloaded: engines made by it may outlive any owner.
const CudaLibrary& cuda_library() {
    static const CudaLibrary library = [] {
        CudaLibrary l;
        const char* named = std::getenv("ORPO_CUDA_LIBRARY");
        const std::string path = named && *named ? named : beside_the_program();
        l.handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!l.handle) {
            l.problem = io::exists(path) ? std::string(::dlerror()) : "this build has no CUDA library (" + path + ")";
            return l;
        }
        l.make_engine = reinterpret_cast<cuda::MakeEngine>(::dlsym(l.handle, cuda::kMakeEngine));
        l.look = reinterpret_cast<cuda::Look>(::dlsym(l.handle, cuda::kLook));
        l.bench = reinterpret_cast<cuda::Bench>(::dlsym(l.handle, cuda::kBench));
        l.profile = reinterpret_cast<cuda::Profile>(::dlsym(l.handle, cuda::kProfile));
        if (!l.make_engine || !l.look || !l.bench || !l.profile) {
            l.problem = path + " is not the CUDA library of this build of orpo";
            l.handle = nullptr;
        }
        return l;
    }();
    return library;
}

int index_of(const std::string& device) {
    return device.size() > 5 ? std::atoi(device.c_str() + 5) : 0;  // "cuda" or "cuda:i", checked by the flag's parser
}

cuda::DeviceInfo look(int index) {
    const CudaLibrary& library = cuda_library();
    if (!library.handle) throw Error(Exit::kNoDevice, library.problem);
    return library.look(index);
}

// K only counts.
template <class K>
MemoryTable plan_of(const ModelConfig& config, const EngineOptions& options) {
    K k(nullptr, nullptr);
    const LoraLayout lora(config, options.lora);
    std::vector<LoraSlot> slots = options.slots;
    if (slots.empty()) slots = {{options.lora.scale(), options.lora.dropout}};
    const EngineArrays<K> arrays(k, config, nullptr, lora, slots, options.sizes);
    return k.memory();
}

}  // namespace

std::string resolve_device(const std::string& wanted) {
    if (wanted == "cpu") return "cpu";
    if (wanted == "auto") {
        try {
            look(0);
            return "cuda:0";
        } catch (const Error&) {
            return "cpu";
        }
    }
    try {
        look(index_of(wanted));
    } catch (const Error& error) {
        throw Error(error.exit(), "--device " + wanted + ": " + error.what() + "; use --device cpu");
    }
    return "cuda:" + std::to_string(index_of(wanted));
}

std::string resolve_dtype(const std::string& wanted, const std::string& device) {
    if (wanted == "fp32" || wanted == "bf16") return wanted;
    if (wanted != "auto") throw Error(Exit::kUsage, "--dtype " + wanted + ": it is auto, fp32 or bf16");
    if (device != "cpu") return "bf16";
    return has_amx() ? "bf16" : "fp32";
}

std::string describe_cuda() {
    try {
        const cuda::DeviceInfo card = look(0);
        return card.name + ", " + std::to_string(card.bytes >> 20) + " MiB";
    } catch (const Error& error) {
        return std::string("no GPU: ") + error.what();
    }
}

int64_t device_bytes(const std::string& device) { return look(index_of(device)).bytes; }

MemoryTable plan_memory(const DeviceOptions& device, const ModelConfig& config, EngineOptions options) {
    options.planning = true;
    if (device.device == "cpu") return make_engine(device, config, nullptr, options)->memory();
    return with_dtype(resolve_dtype(device.dtype, device.device),
                      [&](auto t) { return plan_of<cuda::CudaMemory<decltype(t)>>(config, options); });
}

namespace {

// device: "cuda:i".
const CudaLibrary& library_for(const std::string& device) {
    const CudaLibrary& library = cuda_library();
    if (!library.handle) throw Error(Exit::kNoDevice, "--device " + device + ": " + library.problem);
    return library;
}

}  // namespace

BenchReport bench_cuda(const std::string& device, const cuda::BenchRequest& request) {
    return library_for(device).bench(index_of(device), request);
}

double profile_cuda(const DeviceOptions& device, const ModelConfig& config, const HostWeights* weights,
                    const EngineOptions& options, const MicroBatch& batch) {
    return library_for(device.device).profile(index_of(device.device), device.dtype, config, weights, options, batch);
}

std::unique_ptr<Engine> make_cuda_engine(const DeviceOptions& device, const ModelConfig& config,
                                         const HostWeights* weights, const EngineOptions& options) {
    return library_for(device.device).make_engine(index_of(device.device), device.dtype, config, weights, options);
}

}  // namespace orpo
