// The head's rows are shared by the threads (head.isa.h does the arithmetic); the ORPO scalars run per pair.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu.h"
#include "kernels/orpo_pair.h"
#include "kernels/sample.h"

namespace orpo {

void Cpu::head(const Batch& b, int C, const float* n, const Weight& W, double* logp, float* U) {
    ORPO_CHECK(scratch_ != nullptr && (bf16_ ? isa_.head_scratch_bf16(C) : isa_.head_scratch(C)) <= scratch_stride_);
    const int most = isa_.head_rows();
    shares(b.heads_n, 1, [&](int t, int64_t first, int64_t count) {
        const int64_t blocks = (count + most - 1) / most;
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t begin = first + count * i / blocks, end = first + count * (i + 1) / blocks;
            const cpu::HeadShare share = {static_cast<int>(end - begin), C,        W.rows,        n,
                                          b.heads.data() + begin,        W.packed, W.packed_back, logp + begin,
                                          U ? U + begin * C : nullptr};
            bf16_ ? isa_.head_bf16(share, scratch(t)) : isa_.head(share, scratch(t));
        }
    });
}

void Cpu::orpo(const Batch& b, const double* logp, double* coefficients) {
    for (const PairSpan& span : b.pairs) {
        const PairLoss pair = orpo_pair(span, b.heads.data() + span.first_head, logp + span.first_head);
        for (int i = span.first_head; i < span.first_head + span.heads; ++i)
            coefficients[i] = row_coefficient(b.heads[i], pair);
    }
}

void Cpu::scatter_scaled(const Batch& b, int C, const float* U, const double* coefficients, float* dn) {
    shares(b.N, 64, [&](int, int64_t first, int64_t count) {
        std::memset(dn + first * C, 0, static_cast<size_t>(count * C) * sizeof(float));
        for (int64_t n = first; n < first + count; ++n)
            for (const int i : {b.head1[n], b.head2[n]})
                if (i >= 0) isa_.scale_add(C, static_cast<float>(coefficients[i]), U + int64_t{i} * C, dn + n * C);
    });
}

void Cpu::logits(const Batch& b, int C, const float* n, const Weight& W, float* z) {
    for (int i = 0; i < b.heads_n; ++i) linear(1, n + int64_t{b.heads[i].row} * C, W, z + int64_t{i} * W.rows);
}

void Cpu::sample(const Batch& b, int V, const float* z, const Draw& draw, int32_t* ids) {
    for (int i = 0; i < b.heads_n; ++i)
        ids[i] = orpo::sample({z + int64_t{i} * V, static_cast<size_t>(V)}, draw.rule,
                              draw_random(draw, b.heads[i].text));
}

}  // namespace orpo
