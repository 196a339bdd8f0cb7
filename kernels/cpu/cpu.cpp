#include "kernels/cpu/cpu.h"

#include <cpuid.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
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

namespace {

bool has_bf16_products() {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx512bw") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

}  // namespace

// Linux is asked, for the tiles' state is large.
bool has_amx() {
    unsigned a, b, c, d;
    if (!has_bf16_products() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const cpu::Isa& select_isa(const std::string& name, bool bf16) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "amx" && has_amx()) return cpu::amx_isa();
    if (name == "avx512_bf16" && has_bf16_products()) return cpu::avx512_bf16_isa();
    if (name == "avx512" && avx512) return cpu::avx512_isa();
    if (name == "avx2" && avx2) return cpu::avx2_isa();
    if (name == "sse2") return cpu::sse2_isa();
    if (!name.empty())
        throw Error(Exit::kNoDevice,
                    "This processor cannot run \"" + name + "\" code; leave the choice to the program.");
    if (bf16 && !has_bf16_products())
        throw Error(Exit::kUsage, "--dtype bf16: this processor has no bf16 products; use --dtype fp32 (or auto)");
    if (bf16) return has_amx() ? cpu::amx_isa() : cpu::avx512_bf16_isa();
    return avx512 ? cpu::avx512_isa() : avx2 ? cpu::avx2_isa() : cpu::sse2_isa();
}

namespace {

constexpr bool is_bf16(float) { return false; }
constexpr bool is_bf16(bf16) { return true; }
const cpu::Ops<float>& ops_of(const cpu::Isa& isa, float) { return isa.in_fp32; }
const cpu::Ops<bf16>& ops_of(const cpu::Isa& isa, bf16) { return isa.in_bf16; }

}  // namespace

template <class T>
Cpu<T>::Cpu(const CpuOptions& options)
    : options_(options),
      threads_(options.threads > 0 ? options.threads : physical_cores()),
      isa_(options.table ? *options.table : select_isa(options.isa, is_bf16(T{}))),
      ops_(ops_of(isa_, T{})),
      planning_(options.planning) {
    if (!ops_.gemm)
        throw Error(Exit::kUsage, std::string("bf16 products need avx512_bf16 or amx code, not ") + isa_.name);
}
template <class T>
Cpu<T>::~Cpu() = default;

template <class T>
std::string Cpu<T>::description() const {
    return std::string("CPU ") + (is_bf16(T{}) ? "bf16" : "fp32") + ", " + isa_.name + ", " + std::to_string(threads_) +
           (threads_ == 1 ? " thread" : " threads");
}

template <class T>
void* Cpu<T>::allocate_bytes(Category category, const std::string& name, int64_t bytes) {
    memory_.add(category, name, bytes);
    if (planning_) return nullptr;
    // Cut from blocks of huge pages, for operations walk through many rows, and so many pages, at once. Arrays are
    // often whole pages long: the gap keeps their elements' addresses apart in the low 12 bits, by which loads wait for
    // stores.
    constexpr int64_t kHuge = int64_t{2} << 20, kBlock = 16 * kHuge, kGap = 5 * 64;
    const int64_t size = (std::max<int64_t>(bytes, 1) + 63) / 64 * 64 + kGap;
    if (size > room_) {
        const int64_t whole = (std::max(size, kBlock) + kHuge - 1) / kHuge * kHuge;
        void* block = std::aligned_alloc(kHuge, static_cast<size_t>(whole));
        if (!block)
            throw Error(Exit::kMemory, "No memory for " + name + " (" + std::to_string(bytes >> 20) +
                                           " MB); a smaller --micro-tokens or model needs less.");
        madvise(block, static_cast<size_t>(whole), MADV_HUGEPAGE);
        blocks_.emplace_back(block, std::free);
        next_ = static_cast<char*>(block), room_ = whole;
    }
    void* const array = next_;
    next_ += size, room_ -= size;
    return array;
}

template <class T>
void Cpu<T>::reserve(const Limits& limits) {
    limits_ = limits;
    const HeadShape& s = limits.shape;
    ORPO_CHECK(s.HS % 16 == 0 && s.HS <= 256 && s.H % std::max(1, s.KV) == 0);
    const int64_t stride = std::max({ops_.gemm_scratch(), ops_.head_scratch(limits.C), int64_t{limits.C},
                                     ops_.attention_scratch(limits.tokens + 1, s.HS)});
    if (stride > scratch_stride_) {
        scratch_stride_ = (stride + 63) / 64 * 64;
        scratch_ = allocate<float>(Category::kWorkspace, "scratch of the threads", threads_ * scratch_stride_);
    }
    // Packed keys: a segment is padded to whole panels; attention works through groups of pairs that fit.
    const int64_t packed = ops_.attention_packed(limits.tokens + 64 * isa_.panel, s.HS, limits.gradients) * s.KV;
    if (packed > packed_capacity_) {
        packed_capacity_ = packed;
        packed_keys_ = allocate<float>(Category::kWorkspace, "packed keys and values", packed);
    }
    const int64_t head_sums = limits.gradients ? head_floats(limits.heads, limits.C, limits.V) : 0;
    if (head_sums > head_sums_capacity_) {
        head_sums_capacity_ = head_sums;
        head_sums_ = allocate<float>(Category::kWorkspace, "sums of the head", head_sums);
    }
    const int64_t sums = limits.gradients ? int64_t{limits.tokens} * 2 * s.KV * s.HS * 2 : 0;
    if (sums > sums_capacity_) {
        sums_capacity_ = sums;
        key_sums_ = allocate<float>(Category::kWorkspace, "gradients of keys and values", sums);
    }
}

template <class T>
typename Cpu<T>::Weight Cpu<T>::prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use,
                                        const RowReader& read) {
    const int K = static_cast<int>(cols);
    const auto padded = [&](int64_t n) { return (n + 15) / 16 * 16 + (n % isa_.panel > 16 ? isa_.panel : 0); };
    const int64_t units = ops_.units(K);
    float* packed = allocate<float>(Category::kWeights, name, padded(rows) * units);
    float* back = nullptr;
    if (ops_.pack_weight_turned && (use & kBackward))
        back =
            allocate<float>(Category::kWeights, name + ", backward", padded(cols) * ops_.units(static_cast<int>(rows)));
    if (planning_) return {static_cast<int>(rows), K, nullptr, nullptr};
    // A few panels are read by one thread, then packed by all.
    const int64_t step = int64_t{isa_.panel} * 8;
    std::vector<float> some(static_cast<size_t>(std::min(step, rows) * cols));
    std::vector<float> temp(static_cast<size_t>(threads_ * 16 * units));
    for (int64_t first = 0; first < rows; first += step) {
        const int64_t count = std::min(step, rows - first);
        read(first, count, some.data());
        items((count + isa_.panel - 1) / isa_.panel, [&](int t, int64_t p) {
            const int64_t row = first + p * isa_.panel;
            const float* from = some.data() + p * isa_.panel * cols;
            ops_.pack_weight_panel(rows, K, row, from, packed, temp.data() + t * 16 * units);
            if (back)
                ops_.pack_weight_turned(rows, K, row, static_cast<int>(std::min<int64_t>(isa_.panel, rows - row)), from,
                                        back);
        });
    }
    return {static_cast<int>(rows), K, packed, back};
}

template <class T>
typename Cpu<T>::Batch Cpu<T>::make_batch(int tokens, int pairs, int heads) {
    memory_.add(Category::kBatch, "micro-batch", HostBatch::bytes(tokens, pairs, heads));
    return HostBatch(tokens, pairs, heads);
}

template <class T>
void Cpu<T>::write(int64_t n, const float* host, float* to) {
    if (!planning_) std::copy_n(host, n, to);
}
template <class T>
void Cpu<T>::read(int64_t n, const float* from, float* host) {
    std::copy_n(from, n, host);
}
template <class T>
void Cpu<T>::read(int64_t n, const double* from, double* host) {
    std::copy_n(from, n, host);
}
template <class T>
void Cpu<T>::zero(int64_t n, float* x) {
    if (planning_) return;
    shares(n, 65536, [&](int, int64_t first, int64_t count) { std::memset(x + first, 0, count * sizeof(float)); });
}
template <class T>
void Cpu<T>::cast(int64_t n, const float* x, T* y) {
    const float one = 1;
    shares(n, 65536, [&](int, int64_t first, int64_t count) {
        const float* from = x + first;
        ops_.combine_full(count, 1, &one, &from, y + first);
    });
}

template <class T>
void Cpu<T>::shares(int64_t n, int64_t least, const std::function<void(int, int64_t, int64_t)>& f) {
    if (n <= 0) return;
    const int64_t most = threads_ == 1 ? 1 : kSharesOfThread * threads_;
    const int64_t of = std::clamp<int64_t>(n / std::max<int64_t>(least, 1), 1, most);
    items(of, [&](int t, int64_t i) {
        const int64_t first = n * i / of, last = n * (i + 1) / of;
        if (last > first) f(t, first, last - first);
    });
}

template <class T>
void Cpu<T>::items(int64_t n, const std::function<void(int, int64_t)>& f) {
    if (threads_ == 1 || n <= 1) {
        for (int64_t i = 0; i < n; ++i) f(0, i);
        return;
    }
    // A stretch of items for each thread, the same in every operation over the same rows, so that they are still in its
    // cache; whoever is done helps the next ones.
    struct alignas(64) Stretch {
        std::atomic<int64_t> next;
        int64_t end;
    };
    std::vector<Stretch> stretches(static_cast<size_t>(threads_));
    for (int t = 0; t < threads_; ++t) stretches[t].next = n * t / threads_, stretches[t].end = n * (t + 1) / threads_;
#pragma omp parallel num_threads(threads_)
    {
        const int t = omp_get_thread_num();
        for (int k = 0; k < threads_; ++k) {
            Stretch& s = stretches[(t + k) % threads_];
            for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.end;) f(t, i);
        }
    }
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
