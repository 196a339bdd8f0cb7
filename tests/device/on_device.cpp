// Makes the kernel tests of tests/simt/ run on a GPU as they are. They call launchers with pointers into vectors; here
// those launchers are nvcc's, every launch is waited for (ORPO_LAUNCH_WAITS), and everything that operator new gives
// lies in managed memory, which host and device share.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

namespace {

constexpr size_t kArena = size_t{8} << 30;  // reserved; pages come when they are touched
constexpr size_t kHeader = 256;             // in front of each block: its size class. Keeps 256-byte alignment.

struct Block {
    int size_class;
    Block* next;  // of the free ones
};

// Blocks of powers of two, used again by size class.
struct Arena {
    unsigned char* base = nullptr;
    size_t used = 0;
    Block* free[48] = {};
    std::mutex mutex;

    void* take(size_t bytes) {
        const int size_class = std::bit_width(bytes + kHeader - 1);
        const std::lock_guard<std::mutex> lock(mutex);
        Block* block = free[size_class];
        if (block) {
            free[size_class] = block->next;
        } else {
            const size_t size = size_t{1} << (size_class < 9 ? 9 : size_class);
            if (used + size > kArena) throw std::bad_alloc();
            block = reinterpret_cast<Block*>(base + used);
            used += size;
        }
        block->size_class = size_class;
        return reinterpret_cast<unsigned char*>(block) + kHeader;
    }
    bool holds(const void* p) const { return base && p >= base && p < base + kArena; }
    void give(void* p) {
        auto* block = reinterpret_cast<Block*>(static_cast<unsigned char*>(p) - kHeader);
        const std::lock_guard<std::mutex> lock(mutex);
        block->next = free[block->size_class];
        free[block->size_class] = block;
    }
};
Arena arena;  // before main opens it, memory comes from malloc

}  // namespace

void* operator new(size_t bytes) {
    void* p = arena.base ? arena.take(bytes) : std::malloc(bytes ? bytes : 1);
    if (!p) throw std::bad_alloc();
    return p;
}
void operator delete(void* p) noexcept {
    if (arena.holds(p))
        arena.give(p);
    else
        std::free(p);
}
void operator delete(void* p, size_t) noexcept { operator delete(p); }

namespace orpo::cuda {

void launched(const char* kernel) {
    cudaError_t status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    if (status != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
}

}  // namespace orpo::cuda

int main(int argc, char** argv) {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        std::printf("no CUDA device: %s\n", cudaGetErrorString(status));
        return 9;
    }
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, kArena, cudaMemAttachGlobal) != cudaSuccess) {
        std::printf("no managed memory\n");
        return 9;
    }
    arena.base = static_cast<unsigned char*>(memory);
    return doctest::Context(argc, argv).run();
}
