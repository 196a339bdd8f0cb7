// The AMX code of kernels/cpu over tiles emulated in plain C++, so that its loops and layouts are tested on processors
// that have none.
#include <immintrin.h>

#include "kernels/cpu/isa.h"

namespace {

struct Tile {
    alignas(64) float row[16][16];
};
thread_local Tile tiles[8];

void tile_load(int t, const float* base, int64_t step) {
    for (int r = 0; r < 16; ++r) __builtin_memcpy(tiles[t].row[r], reinterpret_cast<const char*>(base) + r * step, 64);
}
void tile_store(int t, float* base, int64_t step) {
    for (int r = 0; r < 16; ++r) __builtin_memcpy(reinterpret_cast<char*>(base) + r * step, tiles[t].row[r], 64);
}
float half_of(float pair, int which) {
    uint32_t bits;
    __builtin_memcpy(&bits, &pair, 4);
    bits = which ? bits & 0xFFFF0000u : bits << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
void tile_product(int c, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n)
                for (int h = 0; h < 2; ++h)
                    tiles[c].row[m][n] += half_of(tiles[a].row[m][k], h) * half_of(tiles[b].row[k][n], h);
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(t) tiles[t] = Tile{}
#define _tile_loadd(t, base, step) tile_load(t, base, step)
#define _tile_stream_loadd(t, base, step) tile_load(t, base, step)
#define _tile_stored(t, base, step) tile_store(t, base, step)
#define _tile_dpbf16ps(c, a, b) tile_product(c, a, b)
#define ORPO_AMX

// clang-format off
namespace orpo::cpu {
namespace {
#include "kernels/cpu/all.isa.h"
}  // namespace

const Isa& emulated_amx_isa() {
    static const Isa table = make_table("emulated amx");
    return table;
}

}  // namespace orpo::cpu
