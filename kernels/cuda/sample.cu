// The next token of each row of logits (kernels/sample.h has the rule), so that only token ids leave the device.
// z (n, V) fp32; ids (n), -1 where a logit is NaN. Bytes: 4 V for greedy; sampling reads the row 7 times, and 4 times
// more for each of top-k and top-p, the first time from memory, then from L2. One block a row.
//
// Nothing is sorted. A weight is e^((z - max) / T) in fp32 as an integer of 2^-44, so that sums are the same in any
// order, and atomics on integers are allowed. Likeliest first is ascending order of `rank_key`; the place where a sum
// of weights (or a number of tokens) exceeds a target is found digit by digit of that key: 11, 11 and 10 bits, a
// histogram for each. Each filter only shortens the sum S of what is kept, a prefix of that order:
//   top-k  S = weights of the first k          top-p  S = weights up to where they reach top_p S
//   min-p  S = at most the weights of all tokens above min_p          draw   the token where the sum exceeds random S
#include "kernels/cuda/philox.cuh"

namespace orpo::cuda {

namespace {

using Sum = unsigned long long;

constexpr int kThreads = 512, kWarps = kThreads / 32, kBins = 2048;
constexpr float kUnit = 0x1p44f;  // the weight of the likeliest token: 2^20 such tokens fit into a Sum

struct Shared {
    Sum bin[kBins];
    Sum part[kWarps];
    Sum before;  // of the bin found, and
    int found;   // its number
};

// Ascending keys are descending logits; equal logits have one key. NaN alone has 0.
__device__ __forceinline__ unsigned rank_key(float z) {
    if (z != z) return 0;
    const unsigned bits = __float_as_uint(z + 0.0f);  // -0 is 0
    return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}
__device__ __forceinline__ float logit_of(unsigned key) { return __uint_as_float(key >> 31 ? key : key ^ 0x7fffffffu); }

struct Scale {
    float best, inverse_temperature;
    __device__ __forceinline__ float weight(float z) const { return expf((z - best) * inverse_temperature); }
    __device__ __forceinline__ Sum units(float z) const { return static_cast<Sum>(weight(z) * kUnit); }
};

// The sum of x over the threads before this one; total: over all.
__device__ __forceinline__ Sum block_scan(Sum x, Sum* part, Sum& total) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    Sum upto = x;
    for (int offset = 1; offset < 32; offset *= 2) {
        const Sum other = __shfl_up_sync(0xffffffffu, upto, offset);
        if (lane >= offset) upto += other;
    }
    __syncthreads();  // everybody has read the parts of the scan before
    if (lane == 31) part[warp] = upto;
    __syncthreads();
    Sum before = upto - x;
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) before += part[w];
        total += part[w];
    }
    return before;
}

// Weights of all tokens that `keep` takes.
template <class Keep>
__device__ __forceinline__ Sum weights(Shared& s, const float* z, int V, Scale scale, Keep keep) {
    Sum mine = 0, total;
    for (int v = static_cast<int>(threadIdx.x); v < V; v += kThreads)
        if (keep(z[v])) mine += scale.units(z[v]);
    block_scan(mine, s.part, total);
    return total;
}

// A token of the order: all with a smaller key stand before it and amount to `before`; it is the rank-th of its key.
struct Place {
    unsigned key;
    Sum before, rank;
};

// Where the sum of amount(z), likeliest first, exceeds target; it must.
template <class Amount>
__device__ __forceinline__ Place find(Shared& s, const float* z, int V, Sum target, Amount amount) {
    constexpr int kOwn = kBins / kThreads;  // bins a thread
    const int t = static_cast<int>(threadIdx.x);
    Place place = {0, 0, 0};
    int known = 0;  // bits of the key
    while (known < 32) {
        const int bits = known < 22 ? 11 : 10, shift = 32 - known - bits;
        for (int i = 0; i < kOwn; ++i) s.bin[t + i * kThreads] = 0;
        __syncthreads();
        for (int v = t; v < V; v += kThreads) {
            const unsigned key = rank_key(z[v]);
            if (known == 0 || key >> (32 - known) == place.key)
                atomicAdd(&s.bin[key >> shift & ((1u << bits) - 1)], amount(z[v]));
        }
        __syncthreads();
        Sum mine = 0, total;
        for (int i = 0; i < kOwn; ++i) mine += s.bin[t * kOwn + i];
        Sum before = place.before + block_scan(mine, s.part, total);
        if (before <= target && target < before + mine) {  // one thread
            int i = t * kOwn;
            while (target >= before + s.bin[i]) before += s.bin[i++];
            s.found = i, s.before = before;
        }
        __syncthreads();
        place.key = place.key << bits | static_cast<unsigned>(s.found);
        place.before = s.before;
        known += bits;
    }
    place.rank = (target - place.before) / amount(logit_of(place.key));
    return place;
}

// grid (n): few blocks, so that none has to save registers for others on its multiprocessor.
__global__ void __launch_bounds__(kThreads, 1)
    sample_kernel(int V, const HeadRow* rows, const float* logits, Draw draw, int32_t* ids) {
    follow_kernels_before();
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
    const float* z = logits + int64_t{row} * V;

    // The likeliest token, the lowest id among equals: the least (key, id).
    Sum least = ~Sum{0};
#pragma unroll 16
    for (int v = t; v < V; v += kThreads) {
        const Sum token = Sum{rank_key(z[v])} << 32 | static_cast<unsigned>(v);
        if (token < least) least = token;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        const Sum other = __shfl_xor_sync(0xffffffffu, least, offset);
        if (other < least) least = other;
    }
    if (t % 32 == 0) s.part[t / 32] = least;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w)
        if (s.part[w] < least) least = s.part[w];
    const unsigned best_key = static_cast<unsigned>(least >> 32);
    const bool greedy = draw.rule.temperature <= 0 || draw.rule.top_k == 1;
    if (best_key == 0 || greedy) {  // the whole block leaves
        if (t == 0) ids[row] = best_key == 0 ? -1 : static_cast<int32_t>(least & 0xffffffffu);
        return;
    }

    // A temperature next to 0 must not make infinity: 0 times it is the likeliest token.
    const Scale scale = {logit_of(best_key), static_cast<float>(fmin(1 / draw.rule.temperature, 3e38))};
    const auto units = [&](float x) { return scale.units(x); };
    // S of everything up to and with the token of a place.
    const auto sum_upto = [&](const Place& p) { return p.before + (p.rank + 1) * units(logit_of(p.key)); };
    Sum S;
    if (draw.rule.top_k > 0 && draw.rule.top_k < V) {
        Place last = find(s, z, V, static_cast<Sum>(draw.rule.top_k - 1), [](float) { return Sum{1}; });
        last.before = weights(s, z, V, scale, [&](float x) { return rank_key(x) < last.key; });
        S = sum_upto(last);
    } else {
        S = weights(s, z, V, scale, [](float) { return true; });
    }
    if (draw.rule.top_p < 1) {
        const Sum share = static_cast<Sum>(ceil(draw.rule.top_p * static_cast<double>(S)));
        S = sum_upto(find(s, z, V, (share < S ? share : S) - 1, units));
    }
    if (draw.rule.min_p > 0) {
        const Sum likely = weights(s, z, V, scale, [&](float x) { return scale.weight(x) >= draw.rule.min_p; });
        S = likely < S ? likely : S;
    }
    const uint4 words = philox4(draw.key, make_uint4(draw.place, static_cast<unsigned>(rows[row].text), 0, 0));
    const Place drawn = find(s, z, V, static_cast<Sum>(uniform24(words.x) * static_cast<double>(S)), units);

    // Its id: the rank-th of its key, counted in stretches of ids.
    const int stretch = (V + kThreads - 1) / kThreads, first = t * stretch;
    const int end = first + stretch < V ? first + stretch : V;
    Sum mine = 0, total;
    for (int v = first; v < end; ++v) mine += rank_key(z[v]) == drawn.key;
    Sum before = block_scan(mine, s.part, total);
    if (drawn.rank < before || drawn.rank >= before + mine) return;
    for (int v = first; v < end; ++v)
        if (rank_key(z[v]) == drawn.key && before++ == drawn.rank) ids[row] = v;
}

}  // namespace

void sample(Stream stream, int n, int V, const HeadRow* rows, const float* z, const Draw& draw, int32_t* ids) {
    LAUNCH_EARLY(sample_kernel, dim3(static_cast<unsigned>(n)), dim3(kThreads), sizeof(Shared), stream, V, rows, z,
                 draw, ids);
}

}  // namespace orpo::cuda
