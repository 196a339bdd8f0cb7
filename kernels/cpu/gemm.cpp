// Products: how the threads share the rows and columns of C; the arithmetic is in gemm.isa.h.
#include <algorithm>
#include <concepts>

#include "kernels/cpu/cpu.h"

namespace orpo {

using cpu::BForm;
using cpu::GemmShare;

template <class T>
template <class Out>
void Cpu<T>::product(const GemmShare<T, Out>& whole) {
    ORPO_CHECK(scratch_ != nullptr);
    const int panel = isa_.panel;
    const int panels = (whole.N + panel - 1) / panel;
    // The grid of shares, rows x columns. Threads take them one by one, for processors that others use too are not
    // equally fast. What a thread does, in products of one column and one row: its shares, reading and packing their A
    // (once for all shares of the same rows, if it fits) and B; and half a share of waiting for the others.
    const double cost_a = sizeof(T) == 2 ? 30 : 15, cost_b = whole.form != BForm::kPacked ? 8 : sizeof(T) == 2 ? 10 : 1;
    const double cost_share = 2e6 / whole.K;  // a few microseconds
    const int most = (sizeof(T) == 2 ? 2 : 1) * kSharesOfThread * threads_;
    int rows = 1, columns = 1;
    double least = 1e300;
    const bool small = threads_ == 1 || double(whole.M) * whole.N * whole.K < 1e5;
    for (int r = 1; r <= most && !small; ++r)
        for (int c = 1; r * c <= most && c <= panels; ++c) {
            const double m = (whole.M + r - 1) / r, n = (panels + c - 1) / c * panel;
            const double shares = std::max(1.0, double(r * c) / threads_);
            const bool once = m <= isa_.most_rows && ops_.units(whole.K) <= isa_.most_units;
            const double packed = once ? std::max(1.0, double(r) / threads_) : shares;
            const double share = m * n + cost_b * n + cost_share;
            const double cost = share * shares + cost_a * m * packed + share / 2;
            if (cost < least) least = cost, rows = r, columns = c;
        }
    std::vector<int> last(static_cast<size_t>(threads_), -1);  // rows of a thread's last share
    items(int64_t{rows} * columns, [&](int t, int64_t i) {
        const int r = static_cast<int>(i / columns), c = static_cast<int>(i % columns);
        // Whole tiles of 16 rows.
        const auto row = [&](int k) { return k == rows ? whole.M : whole.M / 16 * k / rows * 16; };
        const int m0 = row(r), m1 = row(r + 1);
        const int n0 = panels * c / columns * panel, n1 = std::min(whole.N, panels * (c + 1) / columns * panel);
        if (m0 == m1 || n0 >= n1) return;
        GemmShare<T, Out> s = whole;
        s.M = m1 - m0, s.N = n1 - n0;
        s.A += m0 * whole.lda;
        s.first += n0;
        s.added_row = m0;
        s.C += m0 * whole.ldc + n0;
        s.some_columns = columns > 1, s.again = last[t] == r;
        last[t] = r;
        if constexpr (std::same_as<T, Out>)
            ops_.gemm(s, scratch(t));
        else
            ops_.gemm_full(s, scratch(t));
    });
}

template <class T>
template <class Function>
void Cpu<T>::runs(int N, std::span<const LowRank<T>> added, const Function& f) {
    for (int row = 0; row < N;) {
        size_t terms = 0;
        while (terms < added.size() && added[terms].row == row) ++terms;
        const int end = terms > 0 ? row + added[0].rows : added.empty() ? N : added[0].row;
        ORPO_CHECK(row < end && end <= N);
        f(row, end - row, added.first(terms));
        added = added.subspan(terms);
        row = end;
    }
}

// y (N, out) = x (N, in) W^T + terms, W (out, in); kTurned: W is what is packed of a weight (in, out). backward: the
// terms' B is (R, columns).
template <class T>
void Cpu<T>::packed_product(BForm form, int N, int in, int out, const T* x, const float* W, T* y,
                            std::span<const LowRank<T>> added, bool backward) {
    runs(N, added, [&](int row, int rows, std::span<const LowRank<T>> terms) {
        T* C = y + int64_t{row} * out;
        GemmShare<T> share = {rows, out, in, 1.0f, x + int64_t{row} * in, in, nullptr, W, out, form, 0, out, C, out,
                              false};
        if (fits(terms)) share.added = terms.data(), share.added_n = static_cast<int>(terms.size());
        share.added_turned = backward;
        product(share);
        if (fits(terms)) return;
        for (const LowRank<T>& t : terms) {
            if (backward)
                gemm_nn(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, C + t.column, out, true);
            else
                gemm_nt(t.rows, t.columns, t.R, 1, t.S, t.lds, t.B, t.ldb, C + t.column, out, true);
        }
    });
}

template <class T>
void Cpu<T>::linear(int N, const T* x, const Weight& W, T* y, std::span<const LowRank<T>> added) {
    packed_product(BForm::kPacked, N, W.cols, W.rows, x, W.packed, y, added, false);
}
template <class T>
void Cpu<T>::linear_backward(int N, const T* dy, const Weight& W, T* dx, std::span<const LowRank<T>> added) {
    if (ops_.pack_weight_turned) ORPO_CHECK(W.packed_back);
    packed_product(ops_.pack_weight_turned ? BForm::kPacked : BForm::kTurned, N, W.rows, W.cols, dy,
                   ops_.pack_weight_turned ? W.packed_back : W.packed, dx, added, true);
}
template <class T>
void Cpu<T>::gemm_nt(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                     bool accumulate) {
    const float scale = static_cast<float>(a);
    product<T>({M, N, K, scale, A, lda, B, nullptr, ldb, BForm::kColumns, 0, 0, C, ldc, accumulate});
}
template <class T>
void Cpu<T>::gemm_nn(int M, int N, int K, double a, const T* A, int lda, const T* B, int ldb, T* C, int ldc,
                     bool accumulate) {
    const float scale = static_cast<float>(a);
    product<T>({M, N, K, scale, A, lda, B, nullptr, ldb, BForm::kRows, 0, 0, C, ldc, accumulate});
}
// One row at a time, for the rows lie apart.
template <class T>
void Cpu<T>::logits(const Batch& b, int C, const T* n, const Weight& W, float* z) {
    for (int i = 0; i < b.heads_n; ++i)
        product<float>({1, W.rows, C, 1.0f, n + int64_t{b.heads[i].row} * C, C, nullptr, W.packed, 0, BForm::kPacked, 0,
                        W.rows, z + int64_t{i} * W.rows, W.rows, false});
}

// The wide side's columns are shared; each share is cut so that its turned C fits the scratch.
template <class T>
void Cpu<T>::gemm_tn(int M, int N, int K, const T* A, int lda, const T* B, int ldb, float* C, int ldc) {
    const bool turned = M > N;
    const int wide = turned ? M : N, narrow = turned ? N : M;
    int most = 8192;
    while (most > isa_.panel && ops_.tokens_scratch(narrow, most) > scratch_stride_) most /= 2;
    ORPO_CHECK(ops_.tokens_scratch(narrow, most) <= scratch_stride_);
    const int panels = (wide + isa_.panel - 1) / isa_.panel;
    // Four panels are read at once (bf16), and each share packs the narrow side again.
    shares(panels, std::clamp(panels / (2 * threads_), 1, 4), [&](int t, int64_t first, int64_t count) {
        const int end = std::min<int>(wide, static_cast<int>(first + count) * isa_.panel);
        for (int n0 = static_cast<int>(first) * isa_.panel; n0 < end; n0 += most) {
            const int n = std::min(most, end - n0);
            if (turned)
                ops_.gemm_tokens(N, n, K, B, ldb, A + n0, lda, C + int64_t{n0} * ldc, ldc, true, scratch(t));
            else
                ops_.gemm_tokens(M, n, K, A, lda, B + n0, ldb, C + n0, ldc, false, scratch(t));
        }
    });
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
