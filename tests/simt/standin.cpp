#include "tests/simt/standin.h"

#include <dnnl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.cuh"

namespace orpo::cuda {

namespace {

struct Block {
    unsigned char* memory = nullptr;  // page-aligned, between guards
    size_t bytes = 0;                 // whole pages
};

class Standin final : public StandinDevice {
  public:
    explicit Standin(int64_t device_bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
        info_.name = "stand-in for a GPU, kernels in the SIMT runner";
        info_.bytes = device_bytes;
        info_.multiprocessors = 1;
        simt::set_recorder([this](const char* name, dim3 grid, dim3 block, size_t shared, std::function<void()> kernel) {
            if (!capturing_) ++statistics_.launches;
            submit([=] { simt::launch(name, grid, block, shared, kernel); });
        });
    }
    ~Standin() override {
        simt::set_recorder(nullptr);
        for (const Block& block : blocks_) munmap(block.memory - page_, block.bytes + 2 * page_);
    }

    const DeviceInfo& info() const override { return info_; }
    const StandinStatistics& statistics() const override { return statistics_; }
    Stream stream() override { return nullptr; }

    void* allocate(int64_t bytes) override {
        ORPO_CHECK(!capturing_ && bytes >= 0);
        if (statistics_.bytes + bytes > info_.bytes)
            throw Error(Exit::kMemory, "not enough device memory: " + std::to_string(bytes) + " bytes asked for, " +
                                           std::to_string(info_.bytes - statistics_.bytes) +
                                           " are free; lower --micro-batch-tokens");
        statistics_.bytes += bytes;
        const size_t whole = (static_cast<size_t>(bytes) + page_ - 1) / page_ * page_;
        void* range = mmap(nullptr, whole + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ORPO_CHECK(range != MAP_FAILED);
        Block block{static_cast<unsigned char*>(range) + page_, whole};
        blocks_.push_back(block);
        // Pages are filled with NaN when they are first opened, and never when nobody opens them.
        fresh_.push_back(true);
        // The block ends where its last page ends, so that one byte too far is a fault; 256-byte alignment stays.
        return block.memory + (whole - static_cast<size_t>(bytes)) / 256 * 256;
    }
    void copy_in(void* to, const void* host, int64_t bytes) override {
        ORPO_CHECK(!capturing_);
        const std::vector<unsigned char> copy(static_cast<const unsigned char*>(host),
                                              static_cast<const unsigned char*>(host) + bytes);
        submit([=] { std::memcpy(to, copy.data(), copy.size()); });
    }
    void copy_out(const void* from, void* host, int64_t bytes) override {
        ORPO_CHECK(!capturing_);
        statistics_.bytes_out += bytes;
        submit([=] { std::memcpy(host, from, static_cast<size_t>(bytes)); });
    }
    void zero(void* to, int64_t bytes) override {
        submit([=] { std::memset(to, 0, static_cast<size_t>(bytes)); });
    }
    void copy(void* to, const void* from, int64_t bytes) override {
        submit([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
    }
    void wait() override { ORPO_CHECK(!capturing_); }
    double seconds(const std::function<void()>& work) override {
        const auto start = std::chrono::steady_clock::now();
        work();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    void multiply(const Product& p, const void* A, const void* B, void* C) override {
        submit([=, this] { run(p, A, B, C); });
    }

    void begin_capture() override {
        ORPO_CHECK(!capturing_);
        capturing_ = true;
        graphs_.emplace_back();
        ++statistics_.captures;
    }
    int end_capture() override {
        ORPO_CHECK(capturing_);
        capturing_ = false;
        return static_cast<int>(graphs_.size()) - 1;
    }
    void replay(int graph) override {
        ORPO_CHECK(!capturing_);
        ++statistics_.replays;
        open();
        for (const auto& work : graphs_.at(static_cast<size_t>(graph))) work();
        close();
    }
    void push_range(const char*) override { ++ranges_; }
    void pop_range() override { ORPO_CHECK(--ranges_ >= 0); }
    void profile(bool) override {}

  private:
    // In stream order: now, or later when the graph is replayed.
    void submit(std::function<void()> work) {
        if (capturing_) {
            graphs_.back().push_back(std::move(work));
            return;
        }
        open();
        work();
        close();
    }
    void open() {
        for (size_t i = 0; i < blocks_.size(); ++i) {
            ORPO_CHECK(mprotect(blocks_[i].memory, blocks_[i].bytes, PROT_READ | PROT_WRITE) == 0);
            if (fresh_[i]) std::memset(blocks_[i].memory, 0xFF, blocks_[i].bytes);
            fresh_[i] = false;
        }
    }
    void close() {
        for (const Block& block : blocks_) ORPO_CHECK(mprotect(block.memory, block.bytes, PROT_NONE) == 0);
    }

    static float at(Number type, const void* p, int64_t i) {
        return type == Number::kFloat ? static_cast<const float*>(p)[i] : to_float(static_cast<const bf16*>(p)[i]);
    }
    static std::vector<float> widened(Number type, const void* p, int rows, int columns, int ld) {
        std::vector<float> out(static_cast<size_t>(rows) * columns);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = at(type, p, r * ld + c);
        return out;
    }
    void run(const Product& p, const void* A, const void* B, void* C) {
        const int a_rows = p.transpose_a ? p.K : p.M, a_columns = p.transpose_a ? p.M : p.K;
        const int b_rows = p.transpose_b ? p.N : p.K, b_columns = p.transpose_b ? p.K : p.N;
        const auto a = widened(p.in, A, a_rows, a_columns, p.lda), b = widened(p.in, B, b_rows, b_columns, p.ldb);
        std::vector<float> c(static_cast<size_t>(p.M) * p.N);
        if (p.accumulate) c = widened(p.out, C, p.M, p.N, p.ldc);
        ORPO_CHECK(dnnl_sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.M, p.N, p.K,
                              static_cast<float>(p.a), a.data(), a_columns, b.data(), b_columns,
                              p.accumulate ? 1.0f : 0.0f, c.data(), p.N) == dnnl_success);
        for (int64_t m = 0; m < p.M; ++m)
            for (int64_t n = 0; n < p.N; ++n) {
                if (p.out == Number::kFloat) static_cast<float*>(C)[m * p.ldc + n] = c[m * p.N + n];
                else static_cast<bf16*>(C)[m * p.ldc + n] = from_float<bf16>(c[m * p.N + n]);
            }
    }

    size_t page_;
    DeviceInfo info_;
    StandinStatistics statistics_;
    std::vector<Block> blocks_;
    std::vector<bool> fresh_;
    bool capturing_ = false;
    int ranges_ = 0;
    std::vector<std::vector<std::function<void()>>> graphs_;
};

}  // namespace

std::unique_ptr<StandinDevice> StandinDevice::make(int64_t device_bytes) {
    return std::make_unique<Standin>(device_bytes);
}

// What the CUDA library's own Device::open does there.
std::unique_ptr<Device> Device::open(int index) {
    if (index != 0) throw Error(Exit::kNoDevice, "--device cuda:" + std::to_string(index) + ": there is one stand-in, 0");
    return StandinDevice::make();
}

}  // namespace orpo::cuda
