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
    // Blocks of four warps on a multiprocessor: three, and four.
    {"attention_kernel", 168},
    {"dkv_kernel<1>", 168},
    {"dkv_kernel<2>", 255},  // one of eight
    {"dq_kernel", 128},
    {"decode_attention_kernel", 128},  // of eight warps, whose loads are to be on their way
    // Up to four rows in registers: x, dy, dx and w. Four blocks of four warps.
    {"rmsnorm_backward_kernel", 112},
    {"add_rmsnorm_kernel<1, 5", 112},
    // dB of 64 columns a warp, and their rows of B. Two blocks of eight warps; one at rank 32.
    {"low_rank_kernel<32", 255},
    {"low_rank_kernel", 128},
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
        // 32 for the scores of a tile and 32 for P v; 8 for each product of a chunk of 16 rows: three, and four.
        struct Products {
            const char* kernel;
            int mma;
        };
        for (const Products& least : {Products{"attention_kernel", 64}, Products{"dq_kernel", 24},
                                      Products{"dkv_kernel<1>", 32}, Products{"dkv_kernel<2>", 32}}) {
            if (k.kernel != least.kernel) continue;
            ++tensor_core_kernels;
            const auto count = [&](const char* what) {
                return k.instructions.count(what) ? k.instructions.at(what) : 0;
            };
            // Tiles come by cp.async, fragments by ldmatrix: one for two mma.
            CHECK(count("mma") >= least.mma);
            CHECK(count("cp.async") >= 16);
            CHECK(count("ldmatrix") >= least.mma / 2);
            CHECK(count("local load") + count("local store") == 0);
        }
    }
    CHECK(tensor_core_kernels >= 4);
}
