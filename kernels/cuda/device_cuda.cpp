// Device with the CUDA runtime and cuBLASLt. The only file that calls either.
#include <cublasLt.h>
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <charconv>
#include <map>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.h"

namespace orpo::cuda {

namespace {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    const std::string text = std::string("CUDA: ") + what + ": " + cudaGetErrorString(status);
    if (status == cudaErrorMemoryAllocation)
        throw Error(Exit::kMemory, text + "; lower --micro-batch-tokens or --memory-limit");
    throw Error(Exit::kNoDevice, text);
}
void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw Error(Exit::kNoDevice, std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(status));
}

constexpr auto kWorkspace = static_cast<size_t>(kProductWorkspace);

constexpr int kMostCandidates = 16;  // of a product, for --tune

cudaDataType_t type_of(Number number) { return number == Number::kBf16 ? CUDA_R_16BF : CUDA_R_32F; }

// A product whose algorithm is chosen once a shape and never again, so that its bits do not change.
struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
};

class CudaDevice final : public Device {
  public:
    explicit CudaDevice(int index) : info_(look(index)) {
        check(cudaSetDevice(index), "cudaSetDevice");
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
        check(cublasLtCreate(&handle_), "cublasLtCreate");
        check(cudaMalloc(&workspace_, kWorkspace), "cudaMalloc of the product workspace");
    }
    ~CudaDevice() override {
        cudaStreamSynchronize(stream_);
        for (cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
        for (auto& [key, plan] : plans_) {
            cublasLtMatmulDescDestroy(plan.operation);
            for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c}) cublasLtMatrixLayoutDestroy(layout);
        }
        for (void* block : blocks_) cudaFree(block);
        cudaFree(workspace_);
        if (pinned_) cudaFreeHost(pinned_);
        for (cudaEvent_t event : {begin_, end_})
            if (event) cudaEventDestroy(event);
        cublasLtDestroy(handle_);
        cudaStreamDestroy(stream_);
    }

    const DeviceInfo& info() const override { return info_; }
    Stream stream() override { return stream_; }

    void* allocate(int64_t bytes) override {
        if (bytes == 0) return nullptr;
        void* block = nullptr;
        const cudaError_t status = cudaMalloc(&block, static_cast<size_t>(bytes));
        if (status == cudaErrorMemoryAllocation) {
            size_t free_bytes = 0, all = 0;
            cudaMemGetInfo(&free_bytes, &all);
            refuse_memory(bytes, static_cast<int64_t>(free_bytes), static_cast<int64_t>(all));
        }
        check(status, "cudaMalloc");
        blocks_.push_back(block);
        return block;
    }
    void copy_in(void* to, const void* host, int64_t bytes) override {
        // Through pinned memory, which may be reused once the copy before has left it.
        const auto n = static_cast<size_t>(bytes);
        wait();
        if (n > pinned_bytes_) {
            if (pinned_) cudaFreeHost(pinned_);
            pinned_ = nullptr;
            check(cudaMallocHost(&pinned_, n), "cudaMallocHost");
            pinned_bytes_ = n;
        }
        __builtin_memcpy(pinned_, host, n);
        check(cudaMemcpyAsync(to, pinned_, n, cudaMemcpyHostToDevice, stream_), "copy to the device");
    }
    void copy_out(const void* from, void* host, int64_t bytes) override {
        check(cudaMemcpyAsync(host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
              "copy from the device");
        wait();
    }
    void zero(void* to, int64_t bytes) override {
        check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_), "cudaMemset");
    }
    void copy(void* to, const void* from, int64_t bytes) override {
        check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_), "copy");
    }
    void wait() override {
        check(cudaStreamSynchronize(stream_), "waiting for the device");
        check(cudaGetLastError(), "a kernel");
    }

    void multiply(const Product& p, const void* A, const void* B, void* C) override {
        const Plan& plan = plan_for(p);
        const float alpha = static_cast<float>(p.a), beta = p.accumulate ? 1.0f : 0.0f;
        // Row-major C = A B is column-major C^T = B^T A^T: the operands change places.
        check(cublasLtMatmul(handle_, plan.operation, &alpha, B, plan.a, A, plan.b, &beta, C, plan.c, C, plan.c,
                             &plan.algorithm, workspace_, kWorkspace, stream_),
              "cublasLtMatmul");
    }

    std::vector<std::string> candidates(const Product& p) override {
        std::vector<std::string> texts;
        for (const cublasLtMatmulHeuristicResult_t& result : heuristics(plan_for(p), kMostCandidates))
            texts.push_back(text_of(result.algo));
        return texts;
    }
    bool choose(const Product& p, const std::string& candidate) override {
        Plan& plan = plan_for(p);
        cublasLtMatmulAlgo_t algorithm{};
        if (!parse(candidate, algorithm)) return false;
        cublasLtMatmulHeuristicResult_t result{};
        const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle_, plan.operation, plan.a, plan.b, plan.c, plan.c,
                                                              &algorithm, &result);
        if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kWorkspace) return false;
        plan.algorithm = algorithm;
        return true;
    }
    std::string products_by() const override {
        return info_.name + ", cuBLASLt " + std::to_string(cublasLtGetVersion());
    }

    void begin_capture() override {
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    }
    int end_capture() override {
        cudaGraph_t graph = nullptr;
        check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        cudaGraphExec_t executable = nullptr;
        check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
        cudaGraphDestroy(graph);
        graphs_.push_back(executable);
        return static_cast<int>(graphs_.size()) - 1;
    }
    void replay(int graph) override {
        check(cudaGraphLaunch(graphs_[static_cast<size_t>(graph)], stream_), "cudaGraphLaunch");
    }

    double seconds(const std::function<void()>& work) override {
        if (!begin_) check(cudaEventCreate(&begin_), "cudaEventCreate");
        if (!end_) check(cudaEventCreate(&end_), "cudaEventCreate");
        check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
        work();
        check(cudaEventRecord(end_, stream_), "cudaEventRecord");
        wait();
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
        return milliseconds * 1e-3;
    }

    void push_range(const char* name) override { nvtxRangePushA(name); }
    void pop_range() override { nvtxRangePop(); }
    void profile(bool on) override {
        check(on ? cudaProfilerStart() : cudaProfilerStop(), "the profiler's switch");
    }

  private:
    using Key = std::tuple<bool, bool, int, int, int, int, int, int, bool, Number, Number>;

    // An algorithm is plain bytes, valid for this version of the library: hexadecimal in files.
    static std::string text_of(const cublasLtMatmulAlgo_t& algorithm) {
        constexpr const char* kDigits = "0123456789abcdef";
        unsigned char bytes[sizeof algorithm];
        __builtin_memcpy(bytes, &algorithm, sizeof algorithm);
        std::string text;
        for (const unsigned char byte : bytes) text += kDigits[byte >> 4], text += kDigits[byte & 15];
        return text;
    }
    static bool parse(const std::string& text, cublasLtMatmulAlgo_t& algorithm) {
        unsigned char bytes[sizeof algorithm];
        if (text.size() != 2 * sizeof bytes) return false;
        for (size_t i = 0; i < sizeof bytes; ++i) {
            const auto [end, error] = std::from_chars(text.data() + 2 * i, text.data() + 2 * i + 2, bytes[i], 16);
            if (error != std::errc() || end != text.data() + 2 * i + 2) return false;
        }
        __builtin_memcpy(&algorithm, bytes, sizeof algorithm);
        return true;
    }

    // The library's own order, best guess first.
    std::vector<cublasLtMatmulHeuristicResult_t> heuristics(const Plan& plan, int most) {
        cublasLtMatmulPreference_t preference = nullptr;
        check(cublasLtMatmulPreferenceCreate(&preference), "preference");
        check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace,
                                                   sizeof kWorkspace),
              "preference");
        std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
        int count = 0;
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.a, plan.b, plan.c,
                                                                     plan.c, preference, most, results.data(), &count);
        cublasLtMatmulPreferenceDestroy(preference);
        check(status, "cublasLtMatmulAlgoGetHeuristic");
        if (count == 0) throw Error(Exit::kNoDevice, "cuBLASLt has no algorithm for a product of this shape");
        results.resize(static_cast<size_t>(count));
        return results;
    }

    Plan& plan_for(const Product& p) {
        const Key key{p.transpose_a, p.transpose_b, p.M, p.N, p.K, p.lda, p.ldb, p.ldc, p.accumulate, p.in, p.out};
        const auto found = plans_.find(key);
        if (found != plans_.end()) return found->second;
        Plan plan;
        check(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
        const cublasOperation_t first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
        const cublasOperation_t second = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
        check(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
              "transpose");
        check(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
              "transpose");
        const auto layout = [&](cublasLtMatrixLayout_t* to, Number type, int rows, int columns, int ld) {
            // A row-major (rows, columns) matrix is a column-major (columns, rows) one.
            check(cublasLtMatrixLayoutCreate(to, type_of(type), static_cast<uint64_t>(columns),
                                             static_cast<uint64_t>(rows), ld),
                  "layout");
        };
        layout(&plan.a, p.in, p.transpose_b ? p.N : p.K, p.transpose_b ? p.K : p.N, p.ldb);
        layout(&plan.b, p.in, p.transpose_a ? p.K : p.M, p.transpose_a ? p.M : p.K, p.lda);
        layout(&plan.c, p.out, p.M, p.N, p.ldc);
        plan.algorithm = heuristics(plan, 1)[0].algo;
        return plans_.emplace(key, plan).first->second;
    }

    DeviceInfo info_;
    cudaStream_t stream_ = nullptr;
    cublasLtHandle_t handle_ = nullptr;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
    void* workspace_ = nullptr;
    void* pinned_ = nullptr;
    size_t pinned_bytes_ = 0;
    std::vector<void*> blocks_;
    std::vector<cudaGraphExec_t> graphs_;
    std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<Device> Device::open(int index) { return std::make_unique<CudaDevice>(index); }

DeviceInfo Device::look(int index) {
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0)
        throw Error(Exit::kNoDevice, std::string("no CUDA device: ") + cudaGetErrorString(found));
    if (index < 0 || index >= count)
        throw Error(Exit::kNoDevice, "--device cuda:" + std::to_string(index) + ": this machine has " +
                                         std::to_string(count) + " CUDA device(s), numbered from 0");
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    if (properties.major < 8)
        throw Error(Exit::kNoDevice, std::string(properties.name) + " has compute capability " +
                                         std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                                         "; 8.0 (Ampere) or newer is needed: use --device cpu");
    DeviceInfo info;
    info.name =
        std::string(properties.name) + ", sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
    info.bytes = static_cast<int64_t>(properties.totalGlobalMem);
    info.multiprocessors = properties.multiProcessorCount;
    return info;
}

}  // namespace orpo::cuda
