// The head's rows are shared by the threads (head.isa.h does the arithmetic); the ORPO scalars run per pair.
#include <algorithm>

#include "kernels/cpu/cpu.h"
#include "kernels/orpo_pair.h"
#include "kernels/sample.h"

namespace orpo {

template <class T>
void Cpu<T>::head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U) {
    ORPO_CHECK(scratch_ != nullptr && ops_.head_scratch(C) <= scratch_stride_);
    // Every block reads all of W: as few as the threads need.
    const int64_t rows = b.heads_n, least = (rows + ops_.head_rows() - 1) / ops_.head_rows();
    const int64_t blocks = std::min(rows, (least + threads_ - 1) / threads_ * threads_);
    items(blocks, [&](int t, int64_t i) {
        const int64_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
        ops_.head({static_cast<int>(end - begin), C, W.rows, n, b.heads.data() + begin, W.packed, W.packed_back,
                   logp + begin, U ? U + begin * C : nullptr},
                  scratch(t));
    });
}

template <class T>
void Cpu<T>::orpo(const Batch& b, const double* logp, double* coefficients) {
    for (const PairSpan& span : b.pairs) {
        const PairLoss pair = orpo_pair(span, b.heads.data() + span.first_head, logp + span.first_head);
        for (int i = span.first_head; i < span.first_head + span.heads; ++i)
            coefficients[i] = row_coefficient(b.heads[i], pair);
    }
}

template <class T>
void Cpu<T>::scatter_scaled(const Batch& b, int C, const T* U, const double* coefficients, T* dn) {
    shares(b.N, 64, [&](int, int64_t first, int64_t count) {
        for (int64_t n = first; n < first + count; ++n) {
            int terms = 0;
            float weights[2];
            const T* rows[2];
            for (const int i : {b.head1[n], b.head2[n]})
                if (i >= 0) weights[terms] = static_cast<float>(coefficients[i]), rows[terms++] = U + int64_t{i} * C;
            ops_.combine(C, terms, weights, rows, dn + n * C);
        }
    });
}

template <class T>
void Cpu<T>::sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids) {
    for (int i = 0; i < b.heads_n; ++i)
        ids[i] =
            orpo::sample({z + int64_t{i} * V, static_cast<size_t>(V)}, draw.rule, draw_random(draw, b.heads[i].text));
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
