// What every kernel file includes: CUDA's names from nvcc, or from the CPU runner (tests/simt/simt.h), and the few
// things that have one form on both: shared memory, launches, PTX.
//
// Rules that keep the kernels testable without a GPU:
//   - shared memory is one struct a kernel: `Shared& s = shared_memory<Shared>();`, launched with sizeof(Shared);
//   - a kernel is launched by LAUNCH or LAUNCH_EARLY only;
//   - PTX stands in this file only; no cooperative groups, no wgmma, no atomics on floats.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define ORPO_DEVICE __host__ __device__
#else
#include "tests/simt/simt.h"
#endif

#include "kernels/cuda/ops.h"

namespace orpo::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
// Rounds to nearest even.
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
#ifdef __CUDACC__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    return {simt::bf16_bits(x)};
#endif
}

// N neighbouring elements of T, which a lane moves by one access of 8 or 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
    static constexpr int n = N;
    T v[N];
};
template <class T>
using Pack = Vector<T, 16 / static_cast<int>(sizeof(T))>;  // 16 bytes: the widest access
template <class T>
using Quad = Vector<T, 4>;  // as many elements of any T: where float and bf16 arrays are walked side by side

template <class V, class T>
__device__ __forceinline__ V load_vector(const T* p) {
#ifdef __CUDACC__
    return *reinterpret_cast<const V*>(p);
#else
    V vector;
    simt::load_vector(&vector, p, sizeof(V));
    return vector;
#endif
}
template <class T, int N>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, N>& vector) {
#ifdef __CUDACC__
    *reinterpret_cast<Vector<T, N>*>(p) = vector;
#else
    simt::store_vector(p, &vector, sizeof(vector));
#endif
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
    return load_vector<Pack<T>>(p);
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
    store_vector(p, pack);
}
template <class T>
__device__ __forceinline__ Quad<T> load_quad(const T* p) {
    return load_vector<Quad<T>>(p);
}
template <class T>
__device__ __forceinline__ void store_quad(T* p, const Quad<T>& quad) {
    store_vector(p, quad);
}

// A pack in four registers, as it lies in memory: the elements of a Pack<bf16> that is kept take eight.
using Words = Vector<unsigned, 4>;
template <class T>
__device__ __forceinline__ Words load_words(const T* p) {
    return load_vector<Words>(p);
}
template <class T>
__device__ __forceinline__ void store_words(T* p, const Words& words) {
#ifdef __CUDACC__
    *reinterpret_cast<Words*>(p) = words;
#else
    simt::store_vector(p, &words, sizeof(words));
#endif
}
// The same for what no other warp will read: it leaves L1 to others. Not ".nc", which the compiler moves behind
// await_kernels_before().
template <class T>
__device__ __forceinline__ Words load_words_once(const T* p) {
#ifdef __CUDACC__
    Words words;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(words.v[0]), "=r"(words.v[1]), "=r"(words.v[2]), "=r"(words.v[3])
                 : "l"(p));
    return words;
#else
    return load_words(p);
#endif
}
// Element e of a pack of T; e is known to the compiler.
template <class T>
__device__ __forceinline__ float element(const Words& words, int e) {
    if constexpr (sizeof(T) == sizeof(float)) return __uint_as_float(words.v[e]);
    return __uint_as_float(e % 2 == 0 ? words.v[e / 2] << 16 : words.v[e / 2] & 0xffff0000u);
}

// The block's dynamic shared memory as one struct.
template <class Shared>
__device__ __forceinline__ Shared& shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(128) unsigned char orpo_shared_bytes[];
    return *reinterpret_cast<Shared*>(orpo_shared_bytes);
#else
    if (sizeof(Shared) > simt::machine().shared_bytes)
        simt::fail("the kernel was launched with too little shared memory");
    return *reinterpret_cast<Shared*>(simt::machine().shared);
#endif
}

// ---- PTX ------------------------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory, asynchronously; zeros instead when !valid (from is not read then).
__device__ __forceinline__ void cp_async_16(void* to, const void* from, bool valid = true) {
#ifdef __CUDACC__
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
#else
    simt::cp_async(to, from, 16, !valid);
#endif
}

// The same for 8 bytes, through L1.
__device__ __forceinline__ void cp_async_8(void* to, const void* from, bool valid = true) {
#ifdef __CUDACC__
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(target), "l"(from), "r"(valid ? 8 : 0)
                 : "memory");
#else
    simt::cp_async(to, from, 8, !valid);
#endif
}

// Waits until at most `Keep` of this thread's groups are still on their way. Other threads' copies need a barrier too.
#ifdef __CUDACC__
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int Keep>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Keep) : "memory");
}
#else
inline void cp_async_commit(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    simt::cp_commit(file, line);
}
template <int Keep>
void cp_async_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    simt::cp_wait(Keep, file, line);
}
#endif

// Four 8x8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ uint4 ldmatrix_x4(const void* row) {
#ifdef __CUDACC__
    uint4 r;
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(address)
                 : "memory");
    return r;
#else
    return simt::ldmatrix_x4(row, false, __LINE__);
#endif
}

__device__ __forceinline__ uint4 ldmatrix_x4_trans(const void* row) {
#ifdef __CUDACC__
    uint4 r;
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(address)
                 : "memory");
    return r;
#else
    return simt::ldmatrix_x4(row, true, __LINE__);
#endif
}

// c (16, 8) += a (16, 16) b (16, 8), bf16 in, fp32 sums. A row-major, B column-major fragments.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint4& a, unsigned b0, unsigned b1) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
    simt::mma_m16n8k16(c, a, make_uint2(b0, b1), __LINE__);
#endif
}

// Adds 1 and returns what was there. Who adds later sees what this lane wrote before, and this lane what earlier ones
// did.
__device__ __forceinline__ int32_t arrive(int32_t* counter) {
#ifdef __CUDACC__
    int32_t before;
    asm volatile(
        "fence.acq_rel.gpu;\n"
        "atom.add.relaxed.gpu.global.s32 %0, [%1], 1;\n"
        "fence.acq_rel.gpu;\n"
        : "=r"(before)
        : "l"(counter)
        : "memory");
    return before;
#else
    return atomicAdd(counter, 1);
#endif
}

// Two floats as a pair of bf16 in one register, `low` in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef __CUDACC__
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
#else
    return static_cast<unsigned>(simt::bf16_bits(low)) | static_cast<unsigned>(simt::bf16_bits(high)) << 16;
#endif
}

// Writes such a pair; `to` is a multiple of 4 bytes.
__device__ __forceinline__ void store_pair(bf16* to, unsigned pair) {
#ifdef __CUDACC__
    *reinterpret_cast<unsigned*>(to) = pair;
#else
    simt::store_vector(to, &pair, 4);
#endif
}

// The pack of values that T holds exactly.
template <class T>
__device__ __forceinline__ Words words_of(const float (&x)[Pack<T>::n]) {
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == sizeof(float))
            words.v[i] = __float_as_uint(x[i]);
        else
            words.v[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    return words;
}

// 2^x
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

// ---- kernels that overlap -------------------------------------------------------------------------------------------
// A kernel launched by LAUNCH_EARLY may begin while the one before it in the stream is still at work, once each of that
// one's blocks has called let_next_kernel_begin() or ended. So every thread of it calls await_kernels_before(): until
// then it writes nothing and reads nothing that a kernel may still be writing. As all of them wait, the end of one
// kernel is the end of all before it. Before sm_90 the launch is a plain one and both calls are nothing.
__device__ __forceinline__ void let_next_kernel_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void await_kernels_before() {
#ifndef __CUDACC__
    simt::await_kernels_before();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// Both, for a kernel with nothing to do before.
__device__ __forceinline__ void follow_kernels_before() {
    let_next_kernel_begin();
    await_kernels_before();
}

inline unsigned blocks_for(int64_t items, int per_block) {
    return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// ---- reductions -----------------------------------------------------------------------------------------------------

// The sum over the warp, in every lane; a fixed tree.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

}  // namespace orpo::cuda

#ifdef __CUDACC__
namespace orpo::cuda {

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                  Arguments... arguments) {
    cudaFuncAttributes code{};
    cudaFuncGetAttributes(&code, kernel);
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t launch{};
    launch.gridDim = grid, launch.blockDim = block, launch.dynamicSmemBytes = shared_bytes, launch.stream = stream;
    launch.attrs = &early;
    // Otherwise the kernel was compiled without its waits; and graphs take such launches from CUDA 12.3 on.
    launch.numAttrs = code.ptxVersion >= 90 && CUDART_VERSION >= 12030;
    cudaLaunchKernelEx(&launch, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace orpo::cuda

#ifdef ORPO_LAUNCH_WAITS
// The kernel tests on a device (tests/device/) read results at once.
namespace orpo::cuda {
void launched(const char* kernel);  // waits; throws when the kernel failed
}
#define LAUNCHED(kernel) ::orpo::cuda::launched(#kernel)
#else
#define LAUNCHED(kernel) ((void)0)
#endif
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)        \
    do {                                                              \
        (kernel)<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__); \
        LAUNCHED(kernel);                                             \
    } while (0)
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...)                        \
    do {                                                                                    \
        ::orpo::cuda::launch_early(kernel, grid, block, shared_bytes, stream, __VA_ARGS__); \
        LAUNCHED(kernel);                                                                   \
    } while (0)
// More than 48 KiB of dynamic shared memory must be asked for.
#define ALLOW_SHARED(kernel, bytes) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)
#else
#define ALLOW_SHARED(kernel, bytes) ((void)(bytes))
// The arguments are copied now, as CUDA does.
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::simt::submit(#kernel, grid, block, shared_bytes, [=] { (kernel)(__VA_ARGS__); })
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...) \
    ::simt::submit(#kernel, grid, block, shared_bytes, [=] {         \
        (kernel)(__VA_ARGS__);                                       \
        ::simt::kernels_before_awaited();                            \
    })
#endif
