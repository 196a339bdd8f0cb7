// Philox4x32-10: a counter-based random generator. The same key and counter give the same four words, whoever asks and
// in whatever order, so that no random state has to be kept, saved or shared between threads.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace orpo {

using PhiloxCounter = std::array<uint32_t, 4>;

inline PhiloxCounter philox(uint64_t key, PhiloxCounter c) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
             static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// [0, 1), 24 bits.
inline double uniform(uint32_t word) { return (word >> 8) * 0x1p-24; }

// What the one seed of a run is used for; each use has its own key, so that no two read the same numbers.
enum class Stream : uint64_t { kInit = 1, kDropout = 2, kOrder = 3, kSample = 4, kSplit = 5 };

// SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
inline uint64_t stream_key(uint64_t seed, Stream stream) {
    uint64_t z = seed + static_cast<uint64_t>(stream) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

}  // namespace orpo
