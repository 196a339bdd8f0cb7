#include "tests/simt/standin.h"

#include <dnnl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tuner.h"

namespace orpo::cuda {

namespace {

constexpr unsigned char kPattern = 0xA5;           // on the bytes of an array's pages that are not the array's
constexpr size_t kMostQueued = size_t{64} << 20;   // bytes of copies that wait before they are run
constexpr int64_t kAlign = 256;

struct Array {
    unsigned char* pages = nullptr;  // between guard pages
    size_t page_bytes = 0;           // whole pages
    unsigned char* begin = nullptr;  // as close to the end of the pages as the alignment allows
    size_t bytes = 0;
    bool fresh = true;  // never opened
};
struct Allocation {
    int64_t bytes = 0;
    std::map<int64_t, int64_t> parts;  // offset -> end
};

class Standin final : public StandinDevice {
  public:
    explicit Standin(const StandinOptions& options)
        : options_(options), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
        info_.name = "stand-in for a GPU, kernels in the SIMT runner";
        info_.bytes = options.bytes;
        info_.multiprocessors = 1;
        simt::set_recorder([this](const char* name, dim3 grid, dim3 block, size_t shared, std::function<void()> kernel) {
            ++(capturing_ ? statistics_.graph_launches : statistics_.launches);
            submit([=] { simt::launch(name, grid, block, shared, kernel); });
        });
    }
    ~Standin() override {
        simt::set_recorder(nullptr);
        for (const auto& [begin, array] : arrays_) munmap(array.pages - page_, array.page_bytes + 2 * page_);
        for (const auto& [begin, allocation] : allocations_) munmap(begin, static_cast<size_t>(allocation.bytes));
    }

    const DeviceInfo& info() const override { return info_; }
    const StandinStatistics& statistics() const override { return statistics_; }
    Stream stream() override { return nullptr; }

    void* allocate(int64_t bytes) override {
        ORPO_CHECK(!capturing_ && bytes >= 0);
        if (bytes == 0) return nullptr;
        const int64_t free = info_.bytes - options_.taken - statistics_.bytes;
        if (bytes > free) refuse_memory(bytes, free, info_.bytes);
        statistics_.bytes += bytes;
        auto* begin = static_cast<unsigned char*>(reserve(static_cast<size_t>(bytes)));
        allocations_[begin].bytes = bytes;
        return begin;
    }
    void* part(void* block, int64_t offset, int64_t bytes) override {
        if (bytes == 0) return nullptr;
        const auto found = allocations_.find(static_cast<unsigned char*>(block));
        ORPO_CHECK(found != allocations_.end() && bytes > 0 && offset >= 0 && offset % kAlign == 0);
        Allocation& allocation = found->second;
        const int64_t end = offset + (bytes + kAlign - 1) / kAlign * kAlign;
        const auto next = allocation.parts.lower_bound(offset);
        ORPO_CHECK(end <= allocation.bytes);
        ORPO_CHECK(next == allocation.parts.end() || end <= next->first);
        ORPO_CHECK(next == allocation.parts.begin() || std::prev(next)->second <= offset);
        allocation.parts[offset] = end;
        statistics_.in_arrays += end - offset;
        Array array;
        array.bytes = static_cast<size_t>(bytes);
        array.page_bytes = (array.bytes + page_ - 1) / page_ * page_;
        array.pages = static_cast<unsigned char*>(reserve(array.page_bytes + 2 * page_)) + page_;
        array.begin = array.pages + (array.page_bytes - array.bytes) / kAlign * kAlign;
        arrays_[array.begin] = array;
        return array.begin;
    }
    void copy_in(void* to, const void* host, int64_t bytes) override {
        ORPO_CHECK(!capturing_);
        check_inside(to, bytes);
        ++statistics_.copies_in;
        if (options_.counted) return;
        const auto* from = static_cast<const unsigned char*>(host);
        const std::vector<unsigned char> copy(from, from + bytes);
        queued_bytes_ += copy.size();
        submit([to, copy = std::move(copy)] { std::memcpy(to, copy.data(), copy.size()); });
        if (queued_bytes_ > kMostQueued) run_queue();
    }
    void copy_out(const void* from, void* host, int64_t bytes) override {
        ORPO_CHECK(!capturing_);
        check_inside(from, bytes);
        ++statistics_.copies_out;
        statistics_.bytes_out += bytes;
        if (options_.counted) {
            std::memset(host, 0, static_cast<size_t>(bytes));
            return;
        }
        submit([=] { std::memcpy(host, from, static_cast<size_t>(bytes)); });
        run_queue();
    }
    void zero(void* to, int64_t bytes) override {
        if (bytes == 0) return;
        check_inside(to, bytes);
        ++(capturing_ ? statistics_.graph_fills : statistics_.fills);
        submit([=] { std::memset(to, 0, static_cast<size_t>(bytes)); });
    }
    void copy(void* to, const void* from, int64_t bytes) override {
        check_inside(to, bytes), check_inside(from, bytes);
        submit([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
    }
    double seconds(const std::function<void()>& work) override {
        ORPO_CHECK(!capturing_);
        run_queue();
        const auto start = std::chrono::steady_clock::now();
        work();
        run_queue();
        ++statistics_.timed;
        if (last_choice_ == "second") return 1e-3;
        if (!last_choice_.empty()) return 2e-3;
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    void wait() override {
        ORPO_CHECK(!capturing_);
        ++statistics_.waits;
        run_queue();
    }

    void multiply(const Product& p, const void* A, const void* B, void* C) override {
        const auto matrix = [&](const void* at, Number type, int rows, int columns, int ld) {
            ORPO_CHECK(rows > 0 && columns > 0 && ld >= columns);
            check_inside(at, ((rows - int64_t{1}) * ld + columns) * (type == Number::kFloat ? 4 : 2));
        };
        matrix(A, p.in, p.transpose_a ? p.K : p.M, p.transpose_a ? p.M : p.K, p.lda);
        matrix(B, p.in, p.transpose_b ? p.N : p.K, p.transpose_b ? p.K : p.N, p.ldb);
        matrix(C, p.out, p.M, p.N, p.ldc);
        ++(capturing_ ? statistics_.graph_products : statistics_.products);
        const auto choice = chosen_.find(shape_key(p));
        last_choice_ = choice == chosen_.end() ? "" : choice->second;
        statistics_.by_best += last_choice_ == "second";
        submit([=, this] { run(p, A, B, C); });
    }

    // Three that compute the same. Times are made up: the second one is the fastest.
    std::vector<std::string> candidates(const Product&) override { return {"first", "second", "third"}; }
    bool choose(const Product& p, const std::string& candidate) override {
        for (const std::string& known : candidates(p))
            if (candidate == known) {
                chosen_[shape_key(p)] = candidate;
                return true;
            }
        return false;
    }
    std::string products_by() const override { return info_.name; }

    void begin_capture() override {
        ORPO_CHECK(!capturing_);
        capturing_ = true;
        graphs_.emplace_back();
        ++statistics_.captures;
        statistics_.graph_launches = statistics_.graph_products = statistics_.graph_fills = 0;
    }
    int end_capture() override {
        ORPO_CHECK(capturing_);
        capturing_ = false;
        return static_cast<int>(graphs_.size()) - 1;
    }
    void replay(int graph) override {
        ORPO_CHECK(!capturing_);
        ++statistics_.replays;
        const auto& works = graphs_.at(static_cast<size_t>(graph));
        queue_.insert(queue_.end(), works.begin(), works.end());
    }
    void push_range(const char*) override { ++ranges_; }
    void pop_range() override { ORPO_CHECK(--ranges_ >= 0); }
    void profile(bool) override {}

  private:
    using Work = std::function<void()>;

    // Addresses without memory behind them.
    static void* reserve(size_t bytes) {
        void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ORPO_CHECK(range != MAP_FAILED);
        return range;
    }
    void submit(Work work) {
        if (options_.counted && !capturing_) return;
        (capturing_ ? graphs_.back() : queue_).push_back(std::move(work));
    }
    // [p, p + bytes) lies in one array.
    void check_inside(const void* p, int64_t bytes) const {
        const auto* at = static_cast<const unsigned char*>(p);
        auto after = arrays_.upper_bound(const_cast<unsigned char*>(at));
        ORPO_CHECK(after != arrays_.begin());
        const Array& array = std::prev(after)->second;
        ORPO_CHECK(bytes >= 0 && at + bytes <= array.begin + array.bytes);
    }

    // Device memory is open while this lives.
    class Open {
      public:
        explicit Open(Standin& device) : device_(device) {
            for (auto& [begin, array] : device_.arrays_) {
                ORPO_CHECK(mprotect(array.pages, array.page_bytes, PROT_READ | PROT_WRITE) == 0);
                if (!array.fresh) continue;
                std::memset(array.pages, kPattern, array.page_bytes);
                std::memset(array.begin, 0xFF, array.bytes);  // NaN in every format
                array.fresh = false;
            }
        }
        ~Open() {
            for (auto& [begin, array] : device_.arrays_) mprotect(array.pages, array.page_bytes, PROT_NONE);
        }
        // Nobody wrote beside an array.
        bool intact() const {
            for (const auto& [begin, array] : device_.arrays_) {
                const unsigned char *end = array.begin + array.bytes, *last = array.pages + array.page_bytes;
                for (const unsigned char* p = array.pages; p < last; ++p)
                    if (p == array.begin) p = end - 1;
                    else if (*p != kPattern) return false;
            }
            return true;
        }

      private:
        Standin& device_;
    };
    void run_queue() {
        if (queue_.empty() || options_.counted) return queue_.clear();
        const std::vector<Work> works = std::exchange(queue_, {});
        queued_bytes_ = 0;
        const Open open(*this);
        for (const Work& work : works) work();
        if (!open.intact()) throw Error(Exit::kInternal, "stand-in: device memory beside an array was written");
    }

    // A matrix as fp32, without gaps between its rows.
    static const float* widened(Number type, const void* p, int rows, int columns, int& ld, std::vector<float>& out) {
        if (type == Number::kFloat) return static_cast<const float*>(p);
        const auto* from = static_cast<const bf16*>(p);
        out.resize(static_cast<size_t>(rows) * columns);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = to_float(from[r * ld + c]);
        ld = columns;
        return out.data();
    }
    void run(const Product& p, const void* A, const void* B, void* C) {
        int lda = p.lda, ldb = p.ldb, ldc = p.ldc;
        const float* a = widened(p.in, A, p.transpose_a ? p.K : p.M, p.transpose_a ? p.M : p.K, lda, a_);
        const float* b = widened(p.in, B, p.transpose_b ? p.N : p.K, p.transpose_b ? p.K : p.N, ldb, b_);
        float* c = static_cast<float*>(C);
        if (p.out == Number::kBf16) {
            if (p.accumulate) widened(p.out, C, p.M, p.N, ldc, c_);
            c_.resize(static_cast<size_t>(p.M) * p.N);
            c = c_.data(), ldc = p.N;
        }
        ORPO_CHECK(dnnl_sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.M, p.N, p.K,
                              static_cast<float>(p.a), a, lda, b, ldb, p.accumulate ? 1.0f : 0.0f, c,
                              ldc) == dnnl_success);
        if (p.out == Number::kFloat) return;
        auto* to = static_cast<bf16*>(C);
        for (int64_t m = 0; m < p.M; ++m)
            for (int64_t n = 0; n < p.N; ++n) to[m * p.ldc + n] = from_float<bf16>(c[m * p.N + n]);
    }

    StandinOptions options_;
    size_t page_;
    DeviceInfo info_;
    StandinStatistics statistics_;
    std::map<unsigned char*, Allocation> allocations_;
    std::map<unsigned char*, Array> arrays_;  // by begin
    bool capturing_ = false;
    int ranges_ = 0;
    std::vector<Work> queue_;
    size_t queued_bytes_ = 0;
    std::vector<std::vector<Work>> graphs_;
    std::map<std::string, std::string> chosen_;
    std::string last_choice_;  // of the product that was queued last
    std::vector<float> a_, b_, c_;
};

}  // namespace

std::unique_ptr<StandinDevice> StandinDevice::make(const StandinOptions& options) {
    return std::make_unique<Standin>(options);
}

}  // namespace orpo::cuda
