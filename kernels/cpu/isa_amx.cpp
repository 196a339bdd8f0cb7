#include <immintrin.h>

#include "kernels/cpu/isa.h"

#define ORPO_AMX

// clang-format off
namespace orpo::cpu {
namespace {
#include "kernels/cpu/all.isa.h"
}  // namespace

const Isa& amx_isa() {
    static const Isa table = make_table("amx");
    return table;
}

}  // namespace orpo::cpu
