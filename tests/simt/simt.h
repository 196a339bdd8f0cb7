// Runs a CUDA kernel on the CPU: one fiber per CUDA thread, one block after the other.
//
// It checks arithmetic, indexing, barriers, shuffles and fragment layouts, under ASan and UBSan where wanted; it says
// nothing about speed. No CUDA toolkit is needed. A kernel is written against kernels/cuda/device.cuh, which takes the
// names below from here when nvcc is not the compiler.
//
// What makes a missing barrier visible:
//   - greedy warps: a warp runs as far as it can before the next one starts, in forward, reverse or shuffled order of
//     warps and lanes, so that warps are as far apart as the barriers allow;
//   - shared memory is filled with NaN before every block, and lies in a heap block of exactly its size;
//   - cp.async runs as late as the waits allow, or as early, or at a random moment between;
//   - a block whose threads wait at different barriers is reported with every thread's state and line.
// What it cannot do: wgmma, TMA, mbarrier, cooperative groups, blocks that wait for each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- CUDA's words ---------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct uint3 {
    unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float f) {
    unsigned u;
    std::memcpy(&u, &f, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace simt {

// ---- how to run -----------------------------------------------------------------------------------------------------

enum class Order { kForward, kReverse, kShuffled };
enum class Copies { kLate, kEarly, kRandom };  // when cp.async is performed, within what the waits allow

struct Schedule {
    Order order = Order::kForward;
    Copies copies = Copies::kLate;
    uint32_t seed = 1;
};
// The schedules that every kernel test runs through.
inline const std::vector<Schedule>& schedules() {
    static const std::vector<Schedule> all = {{Order::kForward, Copies::kLate, 1},
                                              {Order::kReverse, Copies::kEarly, 1},
                                              {Order::kShuffled, Copies::kLate, 2},
                                              {Order::kReverse, Copies::kLate, 1},
                                              {Order::kShuffled, Copies::kRandom, 3}};
    return all;
}

// A kernel did something that a GPU would not forgive.
class Fault : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// ---- the machine ----------------------------------------------------------------------------------------------------

enum class State : uint8_t { kReady, kBlockBarrier, kWarpBarrier, kDone };

struct AsyncCopy {
    void* to;
    const void* from;
    int bytes, group;
    bool zero;  // fill with zeros instead (a source size of 0)
};

struct Thread {
    void* sp = nullptr;
    std::unique_ptr<char[]> stack;
    uint3 id;
    State state = State::kReady;
    uint32_t mask = 0;
    int line = 0;
    uint32_t exchanges = 0;
    uint32_t waits = 0;  // barriers passed, of the block and of the warp
    int commits = 0;
    bool awaited = false;  // the kernels before
    std::vector<AsyncCopy> copies;
};

struct Slot {
    alignas(16) unsigned char bytes[64];
    uint32_t exchange;
};

// Watches a launch from outside (tests/simt/counts.h). Loads and stores of single values do not come this way: a build
// that counts them has the compiler call __tsan_read4() and its like before each.
class Observer {
  public:
    virtual ~Observer() = default;
    enum class Access : uint8_t { kLoad, kStore, kCopyFrom, kCopyTo, kMatrix };  // kMatrix: a lane's row of ldmatrix
    virtual void begin_launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes) = 0;
    // Whether this block is to run at all. A launch that is only counted may leave out blocks like those it has seen.
    virtual bool begin_block(uint3 block) = 0;
    virtual void end_block() = 0;
    // pc: where in the kernel, for naming the source line.
    virtual void access(Access access, const void* at, int bytes, const void* pc) = 0;
    virtual void mma() = 0;  // once a lane
};

// One live block a process: a test process is single-threaded, ctest runs several.
struct Machine {
    std::vector<Thread> threads;
    std::vector<Slot> slots;  // (2, threads): what the lanes of a warp hand to each other, double-buffered
    std::unique_ptr<unsigned char[]> shared_storage;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    void* scheduler_sp = nullptr;
    Thread* self = nullptr;
    const std::function<void()>* body = nullptr;
    const char* kernel = "";
    Observer* observer = nullptr;
    Schedule schedule;
    uint32_t random = 1;
    long switches = 0;
    std::string fault;  // set inside a fiber, thrown by the scheduler
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;

    uint32_t next_random() { return (random = random * 1664525u + 1013904223u) >> 8; }
};
Machine& machine();  // simt.cpp

inline constexpr size_t kStackBytes = 128 * 1024;

int linear(const Thread& t);
inline int lane() { return linear(*machine().self) % 32; }
// Parks the running thread until its barrier opens.
void wait(State state, uint32_t mask, int line);
// Stops the block and makes launch() throw a Fault. Does not return.
[[noreturn]] void fail(const std::string& what);

// What LAUNCH does: runs the kernel now, or hands it to whoever records launches (set_recorder).
void submit(const char* name, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel);
using Recorder =
    std::function<void(const char* name, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()>)>;
void set_recorder(Recorder recorder);  // null: run at once

// Runs the kernel over the grid under machine().schedule. Throws Fault.
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

// Every lane of mask deposits v; returns the warp's row of slots.
template <class T>
Slot* publish(const T& v, uint32_t mask, int line) {
    static_assert(sizeof(T) <= sizeof(Slot::bytes) && std::is_trivially_copyable_v<T>);
    Machine& m = machine();
    const int me = linear(*m.self);
    if (!(mask >> (me % 32) & 1))
        fail("a lane takes part in a warp operation whose mask leaves it out, line " + std::to_string(line));
    const uint32_t exchange = m.self->exchanges++;
    Slot* row = &m.slots[(exchange & 1) * m.threads.size() + me / 32 * 32];
    std::memcpy(row[me % 32].bytes, &v, sizeof v);
    row[me % 32].exchange = exchange;
    wait(State::kWarpBarrier, mask, line);
    return row;
}

template <class T>
T peek(const Slot* row, int source) {
    Machine& m = machine();
    const int me = linear(*m.self);
    const size_t at = static_cast<size_t>(me / 32 * 32 + source);
    if (at >= m.threads.size() || row[source].exchange != m.self->exchanges - 1)
        fail("lane " + std::to_string(me % 32) + " reads lane " + std::to_string(source) + ", which did not take part");
    T v;
    std::memcpy(&v, row[source].bytes, sizeof v);
    return v;
}

template <class T>
T shuffle(uint32_t mask, T v, int source, int line) {
    return peek<T>(publish(v, mask, line), source & 31);
}

// ---- cp.async -------------------------------------------------------------------------------------------------------

void cp_async(void* to, const void* from, int bytes, bool zero = false);
void cp_commit(const char* file, int line);
void cp_wait(int keep, const char* file, int line);  // all but the last `keep` groups have arrived

// ---- barriers -------------------------------------------------------------------------------------------------------

// Each of these and of the two above can be spoilt in one place at run time, to see that a test notices: the
// environment holds SIMT_MUTATION=<end of the file's name>:<line>:<name>:delete, or :weaken, with the names
//   barrier     __syncthreads: not there, or one of the warp only
//   warp        __syncwarp: not there
//   wait        cp_async_wait<N>: not there, or N + 1
//   commit      cp_async_commit: not there
void block_barrier(const char* file, int line);
void warp_barrier(uint32_t mask, const char* file, int line);

// ---- kernels that overlap -------------------------------------------------------------------------------------------

// Launches run one after the other here, so that only this can be seen: a kernel that is launched early and has a
// thread that ends without waiting for the kernels before.
void await_kernels_before();
void kernels_before_awaited();  // at the end of such a thread

// ---- ldmatrix and mma -----------------------------------------------------------------------------------------------

// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: lane l gives the address of row l % 8 of matrix l / 8.
uint4 ldmatrix_x4(const void* row, bool transposed, int line);

// bfloat16, rounded to nearest even as the hardware does.
inline uint16_t bf16_bits(float f) {
    const uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
inline float bf16_half(uint32_t pair, int half) { return __uint_as_float(half ? pair & 0xffff0000u : pair << 16); }

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: c (16, 8) += a (16, 16) b (16, 8). Layouts: PTX ISA, "Matrix
// fragments for mma.m16n8k16". The sum's order on hardware is unspecified: compare by norms.
void mma_m16n8k16(float (&c)[4], uint4 a, uint2 b, int line);

// ---- vector accesses ------------------------------------------------------------------------------------------------

// One instruction that moves 4, 8 or 16 bytes between memory and a lane's registers; the address must be a multiple of
// that.
void load_vector(void* registers, const void* from, int bytes);
void store_vector(void* to, const void* registers, int bytes);

// Memory that a kernel test lends to a kernel. Without values: NaN inside until it is written, sentinels on both sides.
// With values: NaN on both sides, so that what is read out of range spoils the result.
template <class T>
class Guarded {
  public:
    explicit Guarded(size_t n) : n_(n), guard_(0xA5), bytes_(n * sizeof(T) + 2 * kGuard, 0xFF) {
        std::memset(bytes_.data(), guard_, kGuard);
        std::memset(bytes_.data() + kGuard + n * sizeof(T), guard_, kGuard);
    }
    explicit Guarded(const std::vector<T>& values)
        : n_(values.size()), guard_(0xFF), bytes_(n_ * sizeof(T) + 2 * kGuard, 0xFF) {
        if (n_) std::memcpy(static_cast<void*>(data()), values.data(), n_ * sizeof(T));
    }
    T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
    const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kGuard); }
    size_t size() const { return n_; }
    T& operator[](size_t i) { return data()[i]; }
    std::vector<T> values() const { return {data(), data() + n_}; }
    // Nothing was written before or behind.
    bool intact() const {
        for (size_t i = 0; i < kGuard; ++i)
            if (bytes_[i] != guard_ || bytes_[kGuard + n_ * sizeof(T) + i] != guard_) return false;
        return true;
    }

  private:
    static constexpr size_t kGuard = 256;
    size_t n_;
    unsigned char guard_;
    std::vector<unsigned char> bytes_;
};

}  // namespace simt

// ---- CUDA's functions -----------------------------------------------------------------------------------------------

#define __syncthreads() ::simt::block_barrier(__FILE__, __LINE__)
#define SIMT_FIRST(first, ...) first
#define __syncwarp(...) ::simt::warp_barrier(SIMT_FIRST(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu), __FILE__, __LINE__)

template <class T>
T __shfl_sync(uint32_t mask, T v, int source, int width = 32) {
    const int l = simt::lane();
    return simt::shuffle(mask, v, l / width * width + source % width, 0);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32) {
    const int l = simt::lane();
    return simt::shuffle(mask, v, l / width * width + (l % width ^ bits), 0);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, int delta, int width = 32) {
    const int l = simt::lane();
    return simt::shuffle(mask, v, l % width + delta < width ? l + delta : l, 0);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, int delta, int width = 32) {
    const int l = simt::lane();
    return simt::shuffle(mask, v, l % width - delta >= 0 ? l - delta : l, 0);
}
inline uint32_t __ballot_sync(uint32_t mask, bool v) {
    const simt::Slot* row = simt::publish(v, mask, 0);
    uint32_t bits = 0;
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) bits |= static_cast<uint32_t>(simt::peek<bool>(row, l)) << l;
    return bits;
}
// Only one fiber runs at a time. Integers alone: their sums do not depend on the order.
template <class T>
T atomicAdd(T* p, T v) {
    static_assert(std::is_integral_v<T>);
    const T old = *p;
    *p = old + v;
    return old;
}
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T v) {
    *p = v;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float exp2f_approx(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
