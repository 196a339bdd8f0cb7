// Names places of the running program: address -> functions and source lines, inlined calls included.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace simt {

struct Frame {
    std::string function, file;  // demangled; the file without its folders
    int line = 0;
};

// Innermost frame first. Asks addr2line (binutils: wherever a compiler is); empty lists where it cannot be run.
std::map<uintptr_t, std::vector<Frame>> name_addresses(const std::set<uintptr_t>& addresses);

// "void orpo::cuda::(anonymous namespace)::rmsnorm_kernel<3, orpo::bf16>(int, ...)" -> "rmsnorm_kernel<3, bf16>";
// empty when it is no kernel. Device compilers write the namespace as _GLOBAL__N__..., which goes as well.
std::string kernel_name(const std::string& demangled);

}  // namespace simt
