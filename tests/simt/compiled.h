// What the device compiler made of the kernels: registers and spills from its log (-Xptxas -v), instructions from the
// cubin files. No CUDA toolkit is needed to read them, and none to read what was recorded (docs/kernel-code.json).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace simt {

struct CompiledKernel {
    std::string kernel;                                // "rmsnorm_kernel<5, bf16>"
    int target = 0;                                    // 80: sm_80
    int registers = 0;                                 // a thread
    int stack = 0, spill_stores = 0, spill_loads = 0;  // bytes a thread
    std::map<std::string, int> instructions;           // as they stand in the code: "mma", "cp.async", "ldmatrix", ...
};

// Reads FILE.TARGET.log and FILE.TARGET.cubin of a folder. Error(kIo) when one is missing or makes no sense.
std::vector<CompiledKernel> read_compiled(const std::string& folder);

// Instructions of each kernel of a cubin file (ELF): mangled name -> counts.
std::map<std::string, std::map<std::string, int>> cubin_instructions(const std::string& bytes, const std::string& name);
// Kernels of a compiler's log, without instructions: mangled name -> kernel.
std::map<std::string, CompiledKernel> ptxas_kernels(const std::string& log, const std::string& name);

// The recorded form.
struct Recorded {
    std::string compiler, sources;  // "nvcc 13.0.88", source_hash() of what was compiled
    std::vector<CompiledKernel> kernels;
};
Recorded read_record(const std::string& path);
void write_record(const std::string& path, const Recorded& record);

// SHA-256 over everything that the kernels of kernels/cuda are compiled from. root: the repository.
std::string source_hash(const std::string& root);

// How many blocks of a kernel fit on one multiprocessor, and the share of its warps that they are.
struct Occupancy {
    int blocks = 0;
    double warps = 0;        // of all that a multiprocessor holds
    const char* limit = "";  // what it ends at: "registers", "shared memory", "threads", "blocks"
};
Occupancy occupancy(int target, int registers, int threads, int64_t shared_bytes);

}  // namespace simt
