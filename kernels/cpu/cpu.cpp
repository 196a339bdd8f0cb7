#include "kernels/cpu/cpu.h"

#include <omp.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>

#include "base/error.h"

namespace orpo {

int physical_cores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return std::max(1, omp_get_num_procs());
    std::set<std::string> cores;  // the list of siblings names a core
    int processors = 0;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
        if (!CPU_ISSET(i, &allowed)) continue;
        ++processors;
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/thread_siblings_list");
        std::string siblings;
        if (!std::getline(file, siblings)) siblings = std::to_string(i);
        cores.insert(siblings);
    }
    return std::max(1, std::min(processors, static_cast<int>(cores.size())));
}

const cpu::Isa& select_isa(const std::string& name) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx512" && avx512) return cpu::avx512_isa();
    if (name == "avx2" && avx2) return cpu::avx2_isa();
    if (name == "sse2") return cpu::sse2_isa();
    if (!name.empty())
        throw Error(Exit::kNoDevice,
                    "This processor cannot run \"" + name + "\" code; leave the choice to the program.");
    return avx512 ? cpu::avx512_isa() : avx2 ? cpu::avx2_isa() : cpu::sse2_isa();
}

Cpu::Cpu(const CpuOptions& options)
    : threads_(options.threads > 0 ? options.threads : physical_cores()),
      isa_(select_isa(options.isa)),
      planning_(options.planning) {}
Cpu::~Cpu() = default;

void* Cpu::allocate_bytes(Category category, const std::string& name, int64_t bytes) {
    memory_.add(category, name, bytes);
    if (planning_) return nullptr;
    // Whole cache lines; from 4 MB on whole huge pages, for products walk through many pages at once.
    constexpr int64_t kHuge = int64_t{2} << 20;
    const int64_t alignment = bytes >= 2 * kHuge ? kHuge : 64;
    const int64_t size = (std::max<int64_t>(bytes, 1) + alignment - 1) / alignment * alignment;
    void* block = std::aligned_alloc(alignment, size);
    if (!block)
        throw Error(Exit::kMemory, "No memory for " + name + " (" + std::to_string(bytes >> 20) +
                                       " MB); a smaller --micro-tokens or model needs less.");
    if (alignment == kHuge) madvise(block, size, MADV_HUGEPAGE);
    blocks_.emplace_back(block, std::free);
    return block;
}

void Cpu::reserve(const Limits& limits) {
    const HeadShape& s = limits.shape;
    ORPO_CHECK(s.HS % 16 == 0 && s.HS <= 256 && s.H % std::max(1, s.KV) == 0);
    // The largest left side of a product over tokens is one of the wide outputs, the smallest side at most 64 ranks
    // of three linears; what is wider is cut (gemm_tn).
    const int64_t stride =
        std::max({isa_.gemm_scratch(), isa_.head_scratch(limits.C), isa_.attention_scratch(limits.tokens + 1, s.HS)});
    if (stride > scratch_stride_) {
        scratch_stride_ = (stride + 63) / 64 * 64;
        scratch_ = allocate<float>(Category::kWorkspace, "scratch of the threads", threads_ * scratch_stride_);
    }
    // Packed keys: a segment is padded to whole panels; attention works through groups of pairs that fit.
    const int64_t packed = isa_.attention_packed(limits.tokens + 64 * isa_.panel, s.HS, limits.gradients) * s.KV;
    if (packed > packed_capacity_) {
        packed_capacity_ = packed;
        packed_keys_ = allocate<float>(Category::kWorkspace, "packed keys and values", packed);
    }
    const int64_t sums = limits.gradients ? int64_t{limits.tokens} * 2 * s.H * s.HS * 2 : 0;
    if (sums > sums_capacity_) {
        sums_capacity_ = sums;
        key_sums_ = allocate<float>(Category::kWorkspace, "gradients of keys by query head", sums);
    }
}

Cpu::Weight Cpu::prepare(const std::string& name, int64_t rows, int64_t cols, unsigned, const RowReader& read) {
    const int64_t padded = (rows + 15) / 16 * 16 + (rows % isa_.panel > 16 ? isa_.panel : 0);
    float* packed = allocate<float>(Category::kWeights, name, padded * cols);
    if (packed) {
        // A few panels are read by one thread, then packed by all.
        const int64_t step = int64_t{isa_.panel} * 8;
        std::vector<float> some(static_cast<size_t>(std::min(step, rows) * cols));
        for (int64_t first = 0; first < rows; first += step) {
            const int64_t count = std::min(step, rows - first);
            read(first, count, some.data());
            items((count + isa_.panel - 1) / isa_.panel, [&](int, int64_t p) {
                isa_.pack_weight_panel(rows, static_cast<int>(cols), first + p * isa_.panel,
                                       some.data() + p * isa_.panel * cols, packed);
            });
        }
    }
    return {static_cast<int>(rows), static_cast<int>(cols), packed};
}

Cpu::Batch Cpu::make_batch(int tokens, int pairs, int heads) {
    memory_.add(Category::kBatch, "micro-batch", HostBatch::bytes(tokens, pairs, heads));
    return HostBatch(tokens, pairs, heads);
}

void Cpu::write(int64_t n, const float* host, float* to) {
    if (!planning_) std::copy_n(host, n, to);
}
void Cpu::read(int64_t n, const float* from, float* host) { std::copy_n(from, n, host); }
void Cpu::read(int64_t n, const double* from, double* host) { std::copy_n(from, n, host); }
void Cpu::zero(int64_t n, float* x) {
    if (planning_) return;
    shares(n, 65536, [&](int, int64_t first, int64_t count) { std::memset(x + first, 0, count * sizeof(float)); });
}
void Cpu::cast(int64_t n, const float* x, float* y) {
    if (x != y) std::copy_n(x, n, y);
}

void Cpu::shares(int64_t n, int64_t least, const std::function<void(int, int64_t, int64_t)>& f) {
    const int64_t threads = std::clamp<int64_t>(n / std::max<int64_t>(least, 1), 1, threads_);
    if (threads == 1) return n > 0 ? f(0, 0, n) : void();
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
        const int64_t t = omp_get_thread_num(), of = omp_get_num_threads();
        const int64_t first = n * t / of, last = n * (t + 1) / of;
        if (last > first) f(static_cast<int>(t), first, last - first);
    }
}

void Cpu::items(int64_t n, const std::function<void(int, int64_t)>& f) {
    if (threads_ == 1 || n <= 1) {
        for (int64_t i = 0; i < n; ++i) f(0, i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (int64_t i = 0; i < n; ++i) f(omp_get_thread_num(), i);
}

}  // namespace orpo
