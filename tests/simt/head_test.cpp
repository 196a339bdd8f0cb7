// The head's kernels against the reference in double, up to SmolLM2's vocabulary.
#include <utility>

#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

struct Scored {
    double logp;
    std::vector<double> difference;  // softmax - onehot
};
// One row as the text book has it; the first test holds it against the reference's head.
Scored scored(const std::vector<double>& z, int target) {
    const double top = *std::max_element(z.begin(), z.end());
    double sum = 0, others = 0;
    for (size_t v = 0; v < z.size(); ++v) {
        sum += std::exp(z[v] - top);
        if (static_cast<int>(v) != target) others += std::exp(z[v] - z[target]);
    }
    Scored s{-std::log1p(others), {}};
    for (const double value : z) s.difference.push_back(std::exp(value - top) / sum);
    s.difference[target] = -others / (1 + others);
    return s;
}

template <class T>
void check_softmax_xent(int V, const std::vector<std::pair<int, double>>& targets) {
    CAPTURE(V);
    std::vector<HeadRow> rows;
    std::vector<double> z, logp, difference;
    for (const auto& [target, raised] : targets) {
        auto row = random_values(V, 10 + rows.size(), 3);
        row[target] += raised;
        row = rounded<T>(row);
        const Scored s = scored(row, target);
        logp.push_back(s.logp);
        difference.insert(difference.end(), s.difference.begin(), s.difference.end());
        z.insert(z.end(), row.begin(), row.end());
        HeadRow head;
        head.target = target;
        rows.push_back(head);
    }
    const int n = static_cast<int>(rows.size());
    const simt::Guarded<HeadRow> grows(rows);
    under_every_schedule([&] {
        simt::Guarded<T> kept(stored<T>(z)), left(stored<T>(z));
        simt::Guarded<double> glogp(n), alone(n);
        cuda::softmax_xent<T>(nullptr, n, V, grows.data(), kept.data(), glogp.data(), true);
        // A probability of 1e-5 counts as much as the target's: relative, down to 1e-9.
        CHECK(worst(widened(kept.values()), difference, 1e-9) <= (sizeof(T) == 2 ? 1.0 / 256 : 2e-5));
        CHECK(worst(glogp.values(), logp, 1e-12) <= 1e-5);
        CHECK((kept.intact() && glogp.intact()));
        cuda::softmax_xent<T>(nullptr, n, V, grows.data(), left.data(), alone.data(), false);
        check_bits(alone, glogp.values());
        check_bits(left, stored<T>(z));  // only log-probabilities were asked for
    });
}

}  // namespace

TEST_CASE("the rows below equal the reference's head on a unit matrix") {
    const int V = 40;
    MicroBatch mb = ragged_batch({{3, 2, 2}}, V);
    const HostBatch batch = host_batch(mb);
    const auto n = random_values(static_cast<size_t>(batch.N) * V, 1, 3);
    Reference<double> reference;
    Limits limits;
    limits.V = V;
    reference.reserve(limits);
    const auto unit = reference.prepare("unit", V, V, kForward, [&](int64_t first, int64_t count, float* out) {
        for (int64_t i = 0; i < count * V; ++i) out[i] = i / V + first == i % V ? 1.0f : 0.0f;
    });
    std::vector<double> logp(batch.heads_n), U(logp.size() * V);
    reference.head(batch, V, n.data(), unit, logp.data(), U.data());
    for (size_t i = 0; i < logp.size(); ++i) {
        const int64_t at = int64_t{batch.heads[i].row} * V;
        const Scored s = scored({n.begin() + at, n.begin() + at + V}, batch.heads[i].target);
        CHECK(logp[i] == doctest::Approx(s.logp).epsilon(1e-12));
        CHECK(worst({U.begin() + i * V, U.begin() + (i + 1) * V}, s.difference, 1e-9) <= 1e-9);
    }
}

TEST_CASE_TEMPLATE("softmax_xent: ragged vocabularies, confident and hopeless targets", T, float, bf16) {
    check_softmax_xent<T>(8, {{0, 0}, {7, 5}, {3, 40}, {4, -40}});
    check_softmax_xent<T>(104, {{103, 0}, {0, 12}});
    check_softmax_xent<T>(1000, {{511, 0}, {512, 20}, {999, -20}});
    check_softmax_xent<T>(4104, {{4103, 0}, {4096, 30}});
}
TEST_CASE_TEMPLATE("softmax_xent: SmolLM2's vocabulary", T, float, bf16) {
    check_softmax_xent<T>(49152, {{49151, 0}, {17, 25}});
}

TEST_CASE("orpo: coefficients of several pairs, a text without answers, and none") {
    MicroBatch mb = ragged_batch({{5, 3, 4}, {1, 1, 1}, {6, 0, 0}, {2, 40, 3}}, 50);
    const HostBatch batch = host_batch(mb);
    std::vector<double> logp = random_values(mb.heads.size(), 1);
    for (double& value : logp) value = -std::abs(value);
    for (int i = mb.pairs[1].first_head; i < mb.pairs[1].first_head + mb.pairs[1].heads; ++i) logp[i] = 0;  // certain
    std::vector<double> expected(logp.size());
    Reference<double> reference;
    reference.orpo(batch, logp.data(), expected.data());
    PairSpan none;  // what fills up a batch
    none.begin = none.chosen = none.rejected = none.end = batch.N;
    mb.pairs.push_back(none);
    const simt::Guarded<PairSpan> pairs(mb.pairs);
    const simt::Guarded<HeadRow> heads(mb.heads);
    const simt::Guarded<double> glogp(logp);
    under_every_schedule([&] {
        simt::Guarded<double> coefficients(expected.size());
        cuda::orpo(nullptr, static_cast<int>(mb.pairs.size()), pairs.data(), heads.data(), glogp.data(),
                   coefficients.data());
        check_elements(coefficients, expected, 1e-14);
    });
}

TEST_CASE_TEMPLATE("scatter_scaled: rows with two, one and no predictions", T, float, bf16) {
    MicroBatch mb = ragged_batch({{5, 3, 4}, {1, 1, 1}, {2, 9, 3}}, 50);
    const HostBatch batch = host_batch(mb);
    const simt::Guarded<int32_t> head1(batch.head1), head2(batch.head2);
    const auto coefficients = random_values(mb.heads.size(), 1);
    const simt::Guarded<double> gc(coefficients);
    Reference<double> reference;
    for (const int C : {8, 264, 576, 960, 2048}) {
        const auto U = rounded<T>(random_values(mb.heads.size() * C, 2));
        std::vector<double> dn(static_cast<size_t>(batch.N) * C);
        reference.scatter_scaled(batch, C, U.data(), coefficients.data(), dn.data());
        const simt::Guarded<T> gU(stored<T>(U));
        under_every_schedule([&] {
            simt::Guarded<T> gdn(dn.size());
            cuda::scatter_scaled<T>(nullptr, batch.N, C, head1.data(), head2.data(), gU.data(), gc.data(), gdn.data());
            check_elements(gdn, dn);
        });
    }
}
