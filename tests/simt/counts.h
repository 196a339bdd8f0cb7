// Counts what a CUDA kernel asks of memory, on a CPU.
//
// Every access of every lane is seen: single values through the calls that the compiler's -fsanitize=thread puts before
// each load and store (they are answered in counts.cpp, ThreadSanitizer itself is not linked), vector accesses,
// cp.async and ldmatrix through the runner. The accesses that the lanes of one warp make at one place in the program,
// between the same two barriers, for the k-th time, are one request, as on a GPU. Of a request are counted:
//   - in global memory its sectors: 32-byte pieces that it touches. Ideal: the distinct bytes it asks for / 32, rounded
//   up;
//   - in shared memory its wavefronts: how often the 32 banks of 4 bytes have to be asked. Lanes of 8 bytes go in
//   groups
//     of 16, lanes of 16 bytes in groups of 8 (ldmatrix: a group a matrix); ideal is one wavefront a group.
// Not seen: what caches do beyond one block, how well accesses overlap, what the device compiler merges or hoists.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/simt/simt.h"

namespace simt {

enum class Space : uint8_t { kGlobal, kShared };

// What one place in the program asked for.
struct SourceLine {
    std::string where;  // "rmsnorm.cu:59", or "attention_tile.cuh:40 < attention.cu:61" for a helper called from there
    Space space = Space::kGlobal;
    Observer::Access access = Observer::Access::kLoad;
    int lane_bytes = 0;
    double requests = 0, lanes = 0;  // requests of warps, and lanes that took part in them
    double bytes = 0;                // distinct bytes asked for
    double units = 0, ideal = 0;     // sectors (global) or wavefronts (shared)
    double lines = 0;                // 128-byte lines touched (global)

    const char* kind() const;  // "load", "store", "cp.async from", ...
    bool is_store() const { return access == Observer::Access::kStore || access == Observer::Access::kCopyTo; }
};

// One launch. Sums are scaled from the blocks that ran to all blocks.
struct LaunchCounts {
    std::string kernel;  // "rmsnorm_kernel<3, bf16>"
    dim3 grid, block;
    int64_t shared_bytes = 0, blocks = 0, blocks_run = 0;
    std::vector<SourceLine> source;
    double mma = 0;                            // instructions m16n8k16 of warps: 4096 FLOPs each
    double special = 0;                        // exponentials and logarithms
    double read_bytes = 0, written_bytes = 0;  // sectors * 32; what a block loads again plainly counts once (L1)
    double steps = 0;  // rounds of global loads that a block makes one after the other, mean: those between two
                       // barriers are taken as one round

    double total(Space space, double SourceLine::*member) const;
    // Units over ideal; 1 where nothing was asked for.
    double ratio(Space space) const;
    // The line with most units above its ideal; null when all are ideal.
    const SourceLine* worst(Space space) const;
};

// Counts every launch made while it lives. One at a time.
class Counter final : public Observer {
  public:
    Counter();
    ~Counter() override;
    Counter(const Counter&) = delete;
    Counter& operator=(const Counter&) = delete;

    // Global memory is what was registered; everything else outside shared memory is a lane's own.
    void global(const void* begin, size_t bytes);
    // Runs only the blocks of which f is true, and scales up.
    void only(std::function<bool(uint3)> f) { only_ = std::move(f); }
    // What was launched so far.
    std::vector<LaunchCounts> launches() const;

    void begin_launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes) override;
    bool begin_block(uint3 block) override;
    void end_block() override;
    void access(Access access, const void* at, int bytes, const void* pc) override;
    void mma() override;
    void special();

  private:
    struct Record {
        uintptr_t pc, at;
        uint32_t epoch, turn;  // barriers passed; how many times before in this epoch
        uint16_t bytes;
        Access access;
        Space space;
    };
    struct Place {
        uintptr_t pc;
        Access access;
        Space space;
        auto operator<=>(const Place&) const = default;
    };
    struct Launch {
        LaunchCounts counts;  // sums over blocks that ran
        std::map<Place, SourceLine> places;
    };
    void count_warp(std::vector<Record>& records);
    void count_request(const Record* first, size_t n);

    std::vector<std::pair<uintptr_t, uintptr_t>> global_;
    std::function<bool(uint3)> only_;
    std::vector<std::vector<Record>> lanes_;  // by thread of the running block
    std::vector<Launch> launched_;
    std::vector<uintptr_t> loaded_, copied_, stored_;  // sectors of the running block
    int block_steps_ = 0;
    bool counting_ = false;
};

}  // namespace simt
