#include <dnnl.h>
#include <fmt/format.h>
#include <omp.h>

#include "model/devices.h"
#include "model/tokenizer.h"
#include "src/command.h"

namespace orpo {
namespace {

std::string instruction_set() {
    __builtin_cpu_init();
    std::string name = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? "AVX-512"
                       : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")       ? "AVX2"
                                                                                               : "SSE2";
    if (dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core_amx) name += ", AMX";
    return name;
}

}  // namespace

std::string version() { return ORPO_VERSION; }

std::string version_text() {
    const dnnl_version_t* dnnl = dnnl_version();
    return fmt::format(
        "orpo {}\n"
        "build     {} {}\n"
        "cpu       {}, {} threads\n"
        "oneDNN    {}.{}.{}\n"
        "Unicode   {}\n"
        "cuda      {}\n",
        version(),
#ifdef __clang__
        "clang", __clang_major__,
#else
        "gcc", __GNUC__,
#endif
        instruction_set(), omp_get_max_threads(), dnnl->major, dnnl->minor, dnnl->patch, Tokenizer::unicode_version(),
        describe_cuda());
}

}  // namespace orpo
