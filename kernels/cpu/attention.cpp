// Attention over all pairs of a batch: keys are packed per (segment, K/V head), then blocks of query rows are handed
// out (forward), or whole segments of one K/V head (backward, so that dk and dv are summed in one order). The
// arithmetic is in attention.isa.h; generation's attention over a cache is at the end.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu.h"

namespace orpo {

using cpu::AttentionShare;

namespace {

// Segment 0: prompt and chosen rows. Segment 1: rejected rows, which also see the prompt.
int segment_begin(const PairSpan& p, int side) { return side == 0 ? p.begin : p.rejected; }
int segment_rows(const PairSpan& p, int side) { return side == 0 ? p.rejected - p.begin : p.end - p.rejected; }
int prompt_rows(const PairSpan& p) { return p.chosen - p.begin; }

}  // namespace

// Packs the keys of pairs [first, last) that fit the workspace, calls run(first, last), and goes on.
template <class T>
void Cpu<T>::attention_groups(const Batch& b, const HeadShape& shape, bool backward, const T* qkv,
                              const std::function<void(int, int)>& run) {
    const int H = shape.H, KV = shape.KV, HS = shape.HS;
    const int64_t width = shape.width();
    const int pairs = static_cast<int>(b.pairs.size());
    segment_at_.resize(2 * b.pairs.size());
    for (int first = 0; first < pairs;) {
        int last = first;
        int64_t used = 0;
        for (; last < pairs; ++last) {
            const PairSpan& p = b.pairs[last];
            const int64_t size0 = ops_.attention_packed(segment_rows(p, 0), HS, backward) * KV;
            const int64_t size1 = ops_.attention_packed(segment_rows(p, 1), HS, backward) * KV;
            if (used + size0 + size1 > packed_capacity_) break;
            segment_at_[2 * last] = used, segment_at_[2 * last + 1] = used + size0;
            used += size0 + size1;
        }
        ORPO_CHECK(last > first);
        items(int64_t{last - first} * 2 * KV, [&](int, int64_t i) {
            const int g = static_cast<int>(i % KV), side = static_cast<int>(i / KV % 2);
            const int pair = first + static_cast<int>(i / KV / 2);
            const int keys = segment_rows(b.pairs[pair], side);
            if (keys == 0) return;
            const T* row = qkv + segment_begin(b.pairs[pair], side) * width;
            ops_.attention_pack(
                keys, HS, row + (H + g) * HS, row + (H + KV + g) * HS, width, backward,
                packed_keys_ + segment_at_[2 * pair + side] + ops_.attention_packed(keys, HS, backward) * g);
        });
        run(first, last);
        first = last;
    }
}

template <class T>
void Cpu<T>::attention(const Batch& b, const HeadShape& shape, const T* qkv, T* o, float* lse) {
    const int H = shape.H, KV = shape.KV, HS = shape.HS;
    const int64_t width = shape.width();
    const int block = ops_.attention_block();
    struct Task {
        int pair, side, first;
    };
    std::vector<Task> tasks;
    attention_groups(b, shape, false, qkv, [&](int first, int last) {
        tasks.clear();
        for (int pair = first; pair < last; ++pair)
            for (int side = 0; side < 2; ++side)
                for (int row = 0; row < segment_rows(b.pairs[pair], side); row += block)
                    tasks.push_back({pair, side, row});
        // The long blocks first, so that the threads end together.
        std::reverse(tasks.begin(), tasks.end());
        items(static_cast<int64_t>(tasks.size()) * H, [&](int t, int64_t i) {
            const Task& task = tasks[i / H];
            const int h = static_cast<int>(i % H), g = h / (H / KV);
            const PairSpan& p = b.pairs[task.pair];
            const int total0 = segment_rows(p, 0), total1 = segment_rows(p, task.side);
            const int64_t row = segment_begin(p, task.side) + task.first;
            AttentionShare<T> s{};
            s.HS = HS, s.first = task.first, s.rows = std::min(block, total1 - task.first);
            s.q = qkv + row * width + h * HS, s.width = width;
            s.keys0 = task.side == 1 ? prompt_rows(p) : 0, s.total0 = total0, s.total1 = total1;
            s.packed0 = packed_keys_ + segment_at_[2 * task.pair] + ops_.attention_packed(total0, HS, false) * g;
            s.packed1 =
                packed_keys_ + segment_at_[2 * task.pair + task.side] + ops_.attention_packed(total1, HS, false) * g;
            s.o = o + (row * H + h) * HS, s.o_width = int64_t{H} * HS;
            s.lse = lse + row * H + h, s.H = H;
            ops_.attention(s, scratch(t));
        });
    });
}

template <class T>
void Cpu<T>::attention_backward(const Batch& b, const HeadShape& shape, const T* qkv, const T* o, const float* lse,
                                const T* d_o, T* dqkv) {
    const int H = shape.H, KV = shape.KV, HS = shape.HS;
    const int64_t width = shape.width();
    const int block = ops_.attention_backward_block();
    // Per pair and K/V head: dk, dv of segment 0, of the prompt as segment 1 saw it, and of segment 1.
    const auto sums_rows = [](const PairSpan& p) { return int64_t{p.end - p.begin} + prompt_rows(p); };
    std::vector<int64_t> sums_at(b.pairs.size());
    attention_groups(b, shape, true, qkv, [&](int first, int last) {
        int64_t used = 0;
        for (int pair = first; pair < last; ++pair) {
            sums_at[pair] = used;
            used += sums_rows(b.pairs[pair]) * KV * HS * 2;
        }
        ORPO_CHECK(used <= sums_capacity_);
        items(int64_t{last - first} * 2 * KV, [&](int t, int64_t i) {
            const int side = static_cast<int>(i % 2), g = static_cast<int>(i / 2 % KV), h = g * (H / KV);
            const int pair = first + static_cast<int>(i / KV / 2);
            const PairSpan& p = b.pairs[pair];
            const int total0 = segment_rows(p, 0), total1 = segment_rows(p, side), P = prompt_rows(p);
            float* sums = key_sums_ + sums_at[pair] + sums_rows(p) * g * HS * 2;
            if (side == 1) sums += int64_t{total0} * HS * 2;
            std::memset(sums, 0, sizeof(float) * HS * 2 * static_cast<size_t>(side == 0 ? total0 : P + total1));
            AttentionShare<T> s{};
            s.HS = HS, s.heads = H / KV, s.width = width, s.o_width = int64_t{H} * HS, s.H = H;
            s.keys0 = side == 1 ? P : 0, s.total0 = total0, s.total1 = total1;
            s.packed0 = packed_keys_ + segment_at_[2 * pair] + ops_.attention_packed(total0, HS, true) * g;
            s.packed1 = packed_keys_ + segment_at_[2 * pair + side] + ops_.attention_packed(total1, HS, true) * g;
            s.dk0 = sums, s.dv0 = s.dk0 + int64_t{s.keys0} * HS;
            s.dk1 = s.dv0 + int64_t{s.keys0} * HS, s.dv1 = s.dk1 + int64_t{total1} * HS;
            for (int row0 = 0; row0 < total1; row0 += s.rows) {
                const int64_t row = segment_begin(p, side) + row0;
                s.first = row0, s.rows = std::min(block, total1 - row0);
                s.q = qkv + row * width + h * HS, s.dq = dqkv + row * width + h * HS;
                s.o = const_cast<T*>(o) + (row * H + h) * HS, s.d_o = d_o + (row * H + h) * HS;
                s.lse = const_cast<float*>(lse) + row * H + h;
                ops_.attention_backward(s, scratch(t));
            }
        });
        // dk, dv of a row; prompt rows have a part from segment 1.
        const int begin = b.pairs[first].begin, end = b.pairs[last - 1].end;
        std::vector<int> pair_of(static_cast<size_t>(end - begin));
        for (int pair = first; pair < last; ++pair)
            std::fill(pair_of.begin() + (b.pairs[pair].begin - begin), pair_of.begin() + (b.pairs[pair].end - begin),
                      pair);
        const float ones[2] = {1, 1};
        shares(end - begin, 16, [&](int, int64_t from, int64_t count) {
            for (int64_t n = begin + from; n < begin + from + count; ++n) {
                const int pair = pair_of[n - begin];
                const PairSpan& p = b.pairs[pair];
                const int total0 = segment_rows(p, 0), total1 = segment_rows(p, 1), P = prompt_rows(p);
                for (int g = 0; g < KV; ++g) {
                    const float* sums = key_sums_ + sums_at[pair] + sums_rows(p) * g * HS * 2;
                    const float* rejected = sums + int64_t{total0} * HS * 2;
                    T* dk = dqkv + n * width + (H + g) * HS;
                    if (n < p.rejected) {
                        const int64_t at = (n - p.begin) * HS;
                        const float* k[2] = {sums + at, rejected + at};
                        const float* v[2] = {sums + int64_t{total0} * HS + at, rejected + int64_t{P} * HS + at};
                        const int terms = n < p.chosen && total1 > 0 ? 2 : 1;
                        ops_.combine_full(HS, terms, ones, k, dk);
                        ops_.combine_full(HS, terms, ones, v, dk + KV * HS);
                    } else {
                        const float* k = rejected + int64_t{P} * HS * 2 + (n - p.rejected) * HS;
                        const float* v = k + int64_t{total1} * HS;
                        ops_.combine_full(HS, 1, ones, &k, dk);
                        ops_.combine_full(HS, 1, ones, &v, dk + KV * HS);
                    }
                }
            }
        });
    });
}

template <class T>
void Cpu<T>::cache_append(const Batch& b, const HeadShape& shape, int capacity, const T* qkv, T* cache) {
    const int H = shape.H, KV = shape.KV, HS = shape.HS;
    for (int n = 0; n < b.N; ++n)
        std::copy_n(qkv + int64_t{n} * shape.width() + H * HS, 2 * KV * HS,
                    cache + (int64_t{b.mask_pair[n] / 2} * capacity + b.positions[n]) * 2 * KV * HS);
}

template <class T>
void Cpu<T>::decode_attention(const Batch& b, const HeadShape& shape, int capacity, const float* table, T* qkv,
                              T* cache, T* o) {
    const int H = shape.H, KV = shape.KV, HS = shape.HS;
    rope(b, shape, table, 1, qkv);
    cache_append(b, shape, capacity, qkv, cache);
    // The scores of a row live in its thread's scratch, which holds more floats than a sequence has positions.
    ORPO_CHECK(capacity <= scratch_stride_);
    items(b.N, [&](int t, int64_t n) {
        ops_.decode_attention(H, KV, HS, b.positions[n] + 1, qkv + n * shape.width(),
                              cache + int64_t{b.mask_pair[n] / 2} * capacity * 2 * KV * HS, scratch(t), o + n * H * HS);
    });
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
