// What the tests of the CPU backend share: noise, errors, batches.
#pragma once

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/reference/reference.h"

namespace orpo {

using Oracle = Reference<double>;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;
constexpr float kSentinel = 12345.0f;

// Numbers of about unit size from a hash of their index.
inline Floats noise(int64_t n, uint64_t key, double scale = 1) {
    Floats x(n);
    for (int64_t i = 0; i < n; ++i) {
        const auto w = philox(key, {static_cast<uint32_t>(i), 0, 0, 0});
        x[i] = static_cast<float>(scale * 1.7 * (uniform(w[0]) + uniform(w[1]) - uniform(w[2]) - uniform(w[3])));
    }
    return x;
}
inline Doubles wide(const Floats& x) { return Doubles(x.begin(), x.end()); }

// Norm of the difference over the norm of what is expected; NaN and infinity make it fail any `<=`.
template <class A, class B>
double error(const A& got, const B& want) {
    REQUIRE(got.size() == want.size());
    double diff = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        diff += (double(got[i]) - double(want[i])) * (double(got[i]) - double(want[i]));
        norm += double(want[i]) * double(want[i]);
    }
    return std::sqrt(diff / (norm + 1e-300));
}

inline Limits limits(int tokens, const HeadShape& shape, int C, int I, int V) {
    Limits l;
    l.tokens = tokens, l.heads = 2 * tokens, l.C = C, l.I = I, l.V = V, l.shape = shape;
    return l;
}

template <class K>
typename K::Weight weight(K& k, int rows, int cols, const Floats& data) {
    return k.prepare("W", rows, cols, kForward | kBackward | kRows, [&](int64_t first, int64_t count, float* out) {
        std::copy_n(data.begin() + first * cols, count * cols, out);
    });
}

// Pairs of the given (prompt, chosen, rejected) lengths, with every head row that training scores.
inline MicroBatch pairs_of(const std::vector<std::array<int, 3>>& lengths, int V, int first_pair = 0) {
    MicroBatch mb;
    mb.dropout_key = 77, mb.step = 3;
    for (const auto& [prompt, chosen, rejected] : lengths) {
        PairSpan p;
        p.begin = static_cast<int>(mb.ids.size());
        p.chosen = p.begin + prompt, p.rejected = p.chosen + chosen, p.end = p.rejected + rejected;
        p.first_head = static_cast<int>(mb.heads.size());
        p.pair_in_batch = first_pair + static_cast<int>(mb.pairs.size());
        p.odds_weight = 0.1;
        const int pair = static_cast<int>(mb.pairs.size());
        for (int n = p.begin; n < p.end; ++n) {
            mb.ids.push_back(
                static_cast<int32_t>(philox(5, {uint32_t(n - p.begin), uint32_t(p.pair_in_batch), 0, 0})[0] % V));
            mb.positions.push_back(n < p.rejected ? n - p.begin : prompt + n - p.rejected);
        }
        const auto score = [&](int row, int next, Part part) {
            HeadRow h;
            h.row = row, h.target = mb.ids[next], h.pair = pair, h.part = part;
            h.in_odds = part != Part::kPrompt, h.nll_weight = part == Part::kRejected ? 0 : 0.01;
            mb.heads.push_back(h);
        };
        for (int n = p.begin; n + 1 < p.rejected; ++n)
            score(n, n + 1, n + 1 < p.chosen ? Part::kPrompt : Part::kChosen);
        if (prompt > 0 && rejected > 0) score(p.chosen - 1, p.rejected, Part::kRejected);
        for (int n = p.rejected; n + 1 < p.end; ++n) score(n, n + 1, Part::kRejected);
        p.heads = static_cast<int>(mb.heads.size()) - p.first_head;
        mb.pairs.push_back(p);
    }
    return mb;
}

// Terms on rows [3, 3 + 9) and [15, N), of ranks and columns that fit no panel. S (N, 2 R), B (columns, R) and
// A (R, columns): anything long enough.
template <class T>
std::vector<LowRank<T>> some_terms(int N, int columns, int R, const T* S, const T* B, bool turned) {
    std::vector<LowRank<T>> terms;
    for (const auto& [row, rows] : {std::pair{3, 9}, {15, N - 15}})
        for (const auto& [from, to, at] : {std::tuple{5, columns / 2 + 3, 0}, {columns / 2 + 3, columns, R}})
            terms.push_back({row, rows, from, to - from, R, S + row * 2 * R + at, 2 * R, B + at, turned ? columns : R});
    return terms;
}

// A linear and its gradient with such terms, in double. made(n, key, scale): the numbers of an operand.
struct LowRankCase {
    static constexpr int N = 60, in = 1300, out = 150;
    Floats x, w, dy, S, B;
    Doubles y, dx;

    template <class Made>
    LowRankCase(int R, Made made)
        : x(made(N * in, 1, 1)),
          w(made(out * in, 2, 0.1)),
          dy(made(N * out, 3, 1)),
          S(made(N * 2 * R, 4, 1)),
          B(made(int64_t{2} * R * in, 5, 1)),
          y(N * out),
          dx(N * in) {
        const Doubles Sd = wide(S), Bd = wide(B), wd = wide(w);
        Oracle ref;
        const auto forward = some_terms(N, out, R, Sd.data(), Bd.data(), false);
        const auto back = some_terms(N, in, R, Sd.data(), Bd.data(), true);
        ref.linear(N, wide(x).data(), {out, in, wd.data()}, y.data(), forward);
        ref.linear_backward(N, wide(dy).data(), {out, in, wd.data()}, dx.data(), back);
    }
};

template <class K>
typename K::Batch batch_of(K& k, const MicroBatch& mb) {
    auto b = k.make_batch(int(mb.ids.size()), int(mb.pairs.size()), int(mb.heads.size()));
    k.upload(mb, b);
    return b;
}

}  // namespace orpo
