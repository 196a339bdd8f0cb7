// The gate on compiled code: no spill, and registers that leave room for as many warps as are stated here, for every
// target. Where nvcc compiled the kernels (KERNEL_CODE names the folder); the reader itself is tested everywhere.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "tests/simt/compiled.h"

using namespace simt;

namespace {

// Most registers a thread, any target.
struct Bound {
    const char* kernel;
    int registers;
};
constexpr Bound kBounds[] = {
    // Two blocks of four warps on a multiprocessor.
    {"dq_kernel", 255},
    {"dkv_kernel", 255},
    {"attention_kernel", 168},  // three
    // dB of 64 columns a warp, and their rows of B. Two blocks of eight warps; one at rank 32.
    {"low_rank_kernel<32", 255},
    {"low_rank_kernel", 128},
    // A row of 2048 channels in registers.
    {"rmsnorm_backward_kernel<16", 192},
    {"rmsnorm_backward_kernel<8", 128},
    {"add_rmsnorm_kernel<16", 128},
    {"rmsnorm_kernel<16", 128},
    // 16 warps a block.
    {"softmax_xent_kernel", 128},
};
int most_registers(const std::string& kernel) {
    for (const Bound& b : kBounds)
        if (kernel.rfind(b.kernel, 0) == 0) return b.registers;
    return 80;  // 24 warps of a multiprocessor
}

// What is wrong with a kernel; empty when nothing is.
std::string complaint(const CompiledKernel& k) {
    const std::string who = k.kernel + " for sm_" + std::to_string(k.target) + ": ";
    if (k.spill_stores > 0 || k.spill_loads > 0)
        return who + std::to_string(k.spill_stores) + " bytes of spilled registers";
    if (k.registers > most_registers(k.kernel))
        return who + std::to_string(k.registers) + " registers, " + std::to_string(most_registers(k.kernel)) +
               " allowed";
    return "";
}

const char* kLog = R"(ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4orpo4cuda9dq_kernelEi' for 'sm_86'
ptxas info    : Function properties for _ZN4orpo4cuda9dq_kernelEi
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 240 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN4orpo4cuda11rope_kernelINS0_4bf16EEEvi' for 'sm_86'
ptxas info    : Function properties for _ZN4orpo4cuda11rope_kernelINS0_4bf16EEEvi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 0 barriers, 400 bytes cmem[0]
)";

}  // namespace

TEST_CASE("the compiler's log is read, and spills and registers are seen") {
    auto kernels = ptxas_kernels(kLog, "log");
    REQUIRE(kernels.size() == 2);
    const CompiledKernel dq = kernels["_ZN4orpo4cuda9dq_kernelEi"],
                         rope = kernels["_ZN4orpo4cuda11rope_kernelINS0_4bf16EEEvi"];
    CHECK((dq.kernel == "dq_kernel" && dq.target == 86 && dq.registers == 240 && dq.stack == 16));
    CHECK((dq.spill_stores == 24 && dq.spill_loads == 32));
    CHECK((rope.kernel == "rope_kernel<bf16>" && rope.registers == 96 && rope.spill_stores == 0));
    CHECK(complaint(dq) == "dq_kernel for sm_86: 24 bytes of spilled registers");
    CHECK(complaint(rope) == "rope_kernel<bf16> for sm_86: 96 registers, 80 allowed");
    CHECK_THROWS_AS(cubin_instructions("\177ELF", "x"), orpo::Error);
    CHECK_THROWS_AS(cubin_instructions("no", "x"), orpo::Error);
}

TEST_CASE("occupancy") {
    // By hand: 240 registers are 7680 a warp, two warps in each of the four parts, so two blocks of four warps.
    CHECK(occupancy(90, 240, 128, 0).blocks == 2);
    CHECK(occupancy(90, 240, 128, 0).warps == 8.0 / 64);
    CHECK(occupancy(86, 32, 256, 0).blocks == 6);  // 48 warps
    CHECK(occupancy(86, 32, 32, 0).blocks == 16);
    CHECK(occupancy(86, 32, 128, 55296).blocks == 1);  // 100 KiB of shared memory
    CHECK(std::string(occupancy(86, 32, 128, 55296).limit) == "shared memory");
    CHECK_THROWS_AS(occupancy(75, 32, 128, 0), orpo::Error);
}

TEST_CASE("every kernel for every target: no spill, registers within bounds") {
    const char* folder = std::getenv("KERNEL_CODE");
    if (!folder || !*folder) {
        std::puts("skipped: no nvcc");
        return;
    }
    const std::vector<CompiledKernel> kernels = read_compiled(folder);
    CHECK(kernels.size() > 100);
    int tensor_core_kernels = 0;
    for (const CompiledKernel& k : kernels) {
        CHECK(complaint(k) == "");
        for (const char* name : {"attention_kernel", "dq_kernel", "dkv_kernel"}) {
            if (k.kernel != name) continue;
            ++tensor_core_kernels;
            const auto count = [&](const char* what) {
                return k.instructions.count(what) ? k.instructions.at(what) : 0;
            };
            // 32 for scores and 32 for each product with P or dS; tiles come by cp.async, fragments by ldmatrix.
            CHECK(count("mma") >= 64);
            CHECK(count("cp.async") >= 16);
            CHECK(count("ldmatrix") >= 32);
            CHECK(count("local load") + count("local store") == 0);
        }
    }
    CHECK(tensor_core_kernels >= 3);
}
