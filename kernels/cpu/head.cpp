// Rows of the head and parts of the vocabulary are shared by the threads (head.isa.h does the arithmetic); the ORPO
// scalars run per pair.
#include <algorithm>

#include "kernels/cpu/cpu.h"
#include "kernels/orpo_pair.h"
#include "kernels/sample.h"

namespace orpo {

namespace {

// Words of a part of the vocabulary: whole panels.
int64_t words_of_part(int64_t V) {
    const int64_t least = (V + cpu::kMostHeadParts - 1) / cpu::kMostHeadParts;
    return std::max(cpu::kHeadPart, (least + 31) / 32 * 32);
}
int64_t parts_of(int64_t V) { return (V + words_of_part(V) - 1) / words_of_part(V); }
// C in whole panels: floats of a row of U.
int64_t wide_of(int C, int panel) { return (C + panel - 1) / panel * panel; }

}  // namespace

template <class T>
int64_t Cpu<T>::head_floats(int rows, int C, int V) const {
    return int64_t{(std::min(rows, kHeadChunk) + 31) / 32 * 32} * wide_of(C, isa_.panel) * parts_of(V);
}

// Blocks of rows times parts of the vocabulary, so that threads of unequal speed end together.
template <class T>
void Cpu<T>::head(const Batch& b, int C, const T* n, const Weight& W, double* logp, T* U) {
    ORPO_CHECK(scratch_ != nullptr && std::max<int64_t>(C, ops_.head_scratch(C)) <= scratch_stride_);
    const int64_t parts = parts_of(W.rows), words = words_of_part(W.rows), wide = wide_of(C, isa_.panel);
    std::vector<cpu::HeadSums> sums;
    for (int begin = 0; begin < b.heads_n; begin += kHeadChunk) {
        const int rows = std::min(kHeadChunk, b.heads_n - begin), tiles = (rows + 31) / 32;
        // Every block reads all of W: as few as there must be, and enough for the threads.
        const int most = ops_.head_rows() / 32;
        const int64_t least =
            std::max<int64_t>((tiles + most - 1) / most, threads_ == 1 ? 1 : (2 * threads_ + parts - 1) / parts);
        const int64_t blocks = std::min<int64_t>(tiles, least);
        const auto row = [&](int64_t block) { return std::min<int64_t>(rows, tiles * block / blocks * 32); };
        const int64_t step = int64_t{tiles} * 32 * wide;  // floats of a part of U
        ORPO_CHECK(!U || step * parts <= head_sums_capacity_);
        sums.resize(static_cast<size_t>(parts * rows));
        items(blocks * parts, [&](int t, int64_t i) {
            const int64_t part = i % parts, first = row(i / parts), last = row(i / parts + 1);
            ops_.head(
                {static_cast<int>(last - first), C, W.rows, part * words, std::min<int64_t>(W.rows, (part + 1) * words),
                 n, b.heads.data() + begin + first, W.packed, W.packed_back, sums.data() + part * rows + first,
                 U ? head_sums_ + part * step + first * wide : nullptr},
                scratch(t));
        });
        items(blocks, [&](int t, int64_t i) {
            const int64_t first = row(i), last = row(i + 1);
            ops_.head_end(
                {static_cast<int>(last - first), C, static_cast<int>(parts), W.rows, b.heads.data() + begin + first,
                 W.packed, sums.data() + first, rows, U ? head_sums_ + first * wide : nullptr, step,
                 logp + begin + first, U ? U + (begin + first) * C : nullptr},
                scratch(t));
        });
    }
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
