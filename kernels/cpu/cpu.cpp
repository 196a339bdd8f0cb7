#include "kernels/cpu/cpu.h"

#include <cpuid.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

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

namespace {

bool has_bf16_products() {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx512bw") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// The processor has AMX with bf16, and Linux lets this process use it (the tiles' state is large, so it asks).
bool has_amx() {
    unsigned a, b, c, d;
    if (!has_bf16_products() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool resolve_bf16(CpuDtype dtype, const std::string& isa) {
    if (dtype == CpuDtype::kAuto) return has_amx() && (isa.empty() || isa == "amx");
    if (dtype == CpuDtype::kBf16 && !has_bf16_products())
        throw Error(Exit::kUsage, "--dtype bf16: this processor has no bf16 products; use --dtype fp32 (or auto)");
    return dtype == CpuDtype::kBf16;
}

}  // namespace

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
    if (bf16) return has_amx() ? cpu::amx_isa() : cpu::avx512_bf16_isa();
    return avx512 ? cpu::avx512_isa() : avx2 ? cpu::avx2_isa() : cpu::sse2_isa();
}

Cpu::Cpu(const CpuOptions& options)
    : options_(options),
      threads_(options.threads > 0 ? options.threads : physical_cores()),
      bf16_(resolve_bf16(options.dtype, options.isa)),
      isa_(options.table ? *options.table : select_isa(options.isa, bf16_)),
      planning_(options.planning) {
    if (bf16_ && !isa_.gemm_bf16)
        throw Error(Exit::kUsage, std::string("bf16 products need avx512_bf16 or amx code, not ") + isa_.name);
}
Cpu::~Cpu() = default;

CpuDtype parse_dtype(const std::string& name) {
    if (name == "bf16") return CpuDtype::kBf16;
    if (name == "fp32") return CpuDtype::kFp32;
    if (name != "auto") throw Error(Exit::kUsage, "--dtype " + name + ": it is auto, fp32 or bf16");
    return CpuDtype::kAuto;
}

std::string Cpu::description() const {
    return std::string("CPU ") + (bf16_ ? "bf16" : "fp32") + ", " + isa_.name + ", " + std::to_string(threads_) +
           (threads_ == 1 ? " thread" : " threads");
}

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
    limits_ = limits;
    const HeadShape& s = limits.shape;
    ORPO_CHECK(s.HS % 16 == 0 && s.HS <= 256 && s.H % std::max(1, s.KV) == 0);
    const int64_t products = bf16_ ? std::max(isa_.gemm_scratch_bf16(), isa_.head_scratch_bf16(limits.C))
                                   : std::max(isa_.gemm_scratch(), isa_.head_scratch(limits.C));
    const int64_t stride =
        std::max(products, (bf16_ ? isa_.attention_scratch_bf16 : isa_.attention_scratch)(limits.tokens + 1, s.HS));
    if (stride > scratch_stride_) {
        scratch_stride_ = (stride + 63) / 64 * 64;
        scratch_ = allocate<float>(Category::kWorkspace, "scratch of the threads", threads_ * scratch_stride_);
    }
    // Packed keys: a segment is padded to whole panels; attention works through groups of pairs that fit.
    const int64_t packed = packed_keys_size(limits.tokens + 64 * isa_.panel, s.HS, limits.gradients) * s.KV;
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

Cpu::Weight Cpu::prepare(const std::string& name, int64_t rows, int64_t cols, unsigned use, const RowReader& read) {
    const int K = static_cast<int>(cols);
    const auto padded = [&](int64_t n) { return (n + 15) / 16 * 16 + (n % isa_.panel > 16 ? isa_.panel : 0); };
    const int64_t units = bf16_ ? isa_.pairs_of(K) : cols;
    float* packed = allocate<float>(Category::kWeights, name, padded(rows) * units);
    float* back = nullptr;
    if (bf16_ && (use & kBackward))
        back = allocate<float>(Category::kWeights, name + ", backward",
                               padded(cols) * isa_.pairs_of(static_cast<int>(rows)));
    if (planning_) return {static_cast<int>(rows), K, nullptr, nullptr};
    // A few panels are read by one thread, then packed by all.
    const int64_t step = int64_t{isa_.panel} * 8;
    std::vector<float> some(static_cast<size_t>(std::min(step, rows) * cols));
    std::vector<float> temp(bf16_ ? static_cast<size_t>(threads_ * 16 * units) : 0);
    for (int64_t first = 0; first < rows; first += step) {
        const int64_t count = std::min(step, rows - first);
        read(first, count, some.data());
        items((count + isa_.panel - 1) / isa_.panel, [&](int t, int64_t p) {
            const int64_t row = first + p * isa_.panel;
            const float* from = some.data() + p * isa_.panel * cols;
            if (!bf16_) return isa_.pack_weight_panel(rows, K, row, from, packed);
            isa_.pack_weight_panel_bf16(rows, K, row, from, packed, temp.data() + t * 16 * units);
            if (back)
                isa_.pack_weight_turned_bf16(rows, K, row, static_cast<int>(std::min<int64_t>(isa_.panel, rows - row)),
                                             from, back);
        });
    }
    return {static_cast<int>(rows), K, packed, back};
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
