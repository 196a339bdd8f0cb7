#include <immintrin.h>

#include "kernels/cpu/isa.h"

// clang-format off
namespace orpo::cpu {
namespace {
#include "kernels/cpu/all.isa.h"
}  // namespace

const Isa& avx512_bf16_isa() {
    static const Isa table = make_table("avx512_bf16");
    return table;
}

}  // namespace orpo::cpu
