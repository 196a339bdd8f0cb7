#include "kernels/cpu/onednn.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>

namespace orpo {

double onednn_seconds(int M, int N, int K, bool bf16, int threads, int repeats) {
    using namespace dnnl;
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    double best = 1e30;
    try {
        engine engine(engine::kind::cpu, 0);
        stream stream(engine);
        const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
        const memory::desc a({M, K}, type, memory::format_tag::ab), b({K, N}, type, memory::format_tag::any),
            c({M, N}, type, memory::format_tag::ab);
        const matmul::primitive_desc description(matmul::desc(a, b, c), engine);
        const matmul product(description);
        memory A(a, engine), B(description.weights_desc(), engine), C(c, engine);
        std::memset(A.get_data_handle(), 0, a.get_size());
        std::memset(B.get_data_handle(), 0, description.weights_desc().get_size());
        for (int i = 0; i < repeats; ++i) {
            const auto start = std::chrono::steady_clock::now();
            product.execute(stream, {{DNNL_ARG_SRC, A}, {DNNL_ARG_WEIGHTS, B}, {DNNL_ARG_DST, C}});
            stream.wait();
            best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
    } catch (const dnnl::error&) {
    }
    omp_set_num_threads(before);
    return best;
}

}  // namespace orpo
