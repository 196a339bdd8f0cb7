// Products: how the threads share the rows and columns of C; the arithmetic is in gemm.isa.h.
#include <omp.h>

#include <algorithm>

#include "kernels/cpu/cpu.h"

namespace orpo {

using cpu::BForm;
using cpu::GemmShare;

void Cpu::product(const GemmShare& whole) {
    ORPO_CHECK(scratch_ != nullptr);
    const int panel = isa_.panel;
    const int panels = (whole.N + panel - 1) / panel;
    // rows x columns of threads: the grid with the least work for the busiest one. A is packed once per column of the
    // grid; B is turned or copied once per row of it.
    const double pack_b = whole.form == BForm::kPacked ? 0.02 : whole.form == BForm::kRows ? 0 : 1.0;
    int rows = 1, columns = threads_;
    double least = 1e300;
    for (int r = 1; r <= threads_; ++r) {
        const int c = threads_ / r;
        const double m = (whole.M + r - 1) / r, n = (panels + c - 1) / c * panel;
        const double cost = m * n + 2 * m + pack_b * 8 * n;
        if (cost < least) least = cost, rows = r, columns = c;
    }
    const auto share = [&](int t) {
        if (t >= rows * columns) return;
        const int r = t % rows, c = t / rows;
        const int m0 = static_cast<int>(int64_t{whole.M} * r / rows),
                  m1 = static_cast<int>(int64_t{whole.M} * (r + 1) / rows);
        const int n0 = panels * c / columns * panel, n1 = std::min(whole.N, panels * (c + 1) / columns * panel);
        if (m0 == m1 || n0 >= n1) return;
        GemmShare s = whole;
        s.M = m1 - m0, s.N = n1 - n0;
        s.A += m0 * whole.lda;
        s.first += n0;
        s.C += m0 * whole.ldc + n0;
        bf16_ ? isa_.gemm_bf16(s, scratch(t)) : isa_.gemm(s, scratch(t));
    };
    if (threads_ == 1 || double(whole.M) * whole.N * whole.K < 1e5) {
        rows = columns = 1;
        return share(0);
    }
#pragma omp parallel num_threads(threads_)
    for (int t = omp_get_thread_num(); t < threads_; t += omp_get_num_threads()) share(t);
}

void Cpu::linear(int N, const float* x, const Weight& W, float* y) {
    product({N, W.rows, W.cols, 1.0f, x, W.cols, W.packed, 0, BForm::kPacked, 0, W.rows, y, W.rows, false});
}
void Cpu::linear_backward(int N, const float* dy, const Weight& W, float* dx) {
    ORPO_CHECK(!bf16_ || W.packed_back);
    product({N, W.cols, W.rows, 1.0f, dy, W.rows, bf16_ ? W.packed_back : W.packed, W.cols, BForm::kPackedTurned, 0,
             bf16_ ? W.cols : W.rows, dx, W.cols, false});
}
void Cpu::gemm_nt(int M, int N, int K, double a, const float* A, int lda, const float* B, int ldb, float* C, int ldc,
                  bool accumulate) {
    product({M, N, K, static_cast<float>(a), A, lda, B, ldb, BForm::kColumns, 0, 0, C, ldc, accumulate});
}
void Cpu::gemm_nn(int M, int N, int K, double a, const float* A, int lda, const float* B, int ldb, float* C, int ldc,
                  bool accumulate) {
    product({M, N, K, static_cast<float>(a), A, lda, B, ldb, BForm::kRows, 0, 0, C, ldc, accumulate});
}

// The wide side's columns are shared; each share is cut so that its turned C fits the scratch.
void Cpu::gemm_tn(int M, int N, int K, const float* A, int lda, const float* B, int ldb, float* C, int ldc) {
    const bool turned = M > N;
    const int wide = turned ? M : N, narrow = turned ? N : M;
    const auto scratch_of = bf16_ ? isa_.tokens_scratch_bf16 : isa_.tokens_scratch;
    const auto multiply = bf16_ ? isa_.gemm_tokens_bf16 : isa_.gemm_tokens;
    int most = 8192;
    while (most > isa_.panel && scratch_of(narrow, most) > scratch_stride_) most /= 2;
    ORPO_CHECK(scratch_of(narrow, most) <= scratch_stride_);
    const int panels = (wide + isa_.panel - 1) / isa_.panel;
    shares(panels, 1, [&](int t, int64_t first, int64_t count) {
        const int end = std::min<int>(wide, static_cast<int>(first + count) * isa_.panel);
        for (int n0 = static_cast<int>(first) * isa_.panel; n0 < end; n0 += most) {
            const int n = std::min(most, end - n0);
            if (turned)
                multiply(N, n, K, B, ldb, A + n0, lda, C + int64_t{n0} * ldc, ldc, true, scratch(t));
            else
                multiply(M, n, K, A, lda, B + n0, ldb, C + n0, ldc, false, scratch(t));
        }
    });
}

}  // namespace orpo
