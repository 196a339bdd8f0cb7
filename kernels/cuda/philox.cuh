// Philox4x32-10 as base/philox.h has it.
#pragma once

#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

__device__ __forceinline__ uint4 philox4(uint64_t key, uint4 c) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        const uint32_t h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}
// [0, 1), 24 bits.
__device__ __forceinline__ double uniform24(uint32_t word) { return (word >> 8) * 0x1p-24; }

}  // namespace orpo::cuda
