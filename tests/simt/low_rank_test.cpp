// dB and dS of adapted linears against the reference in double: ragged shapes, and the groups of SmolLM2's linears.
// dy, S and dS have a pitch of their own each.
#include "kernels/cuda/low_rank_cut.h"
#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

constexpr int kGap = 8;  // columns of dy and of dS that belong to no term: NaN

void check(int N, int R, const std::vector<int>& widths, size_t step = 1) {
    CAPTURE(N);
    CAPTURE(R);
    CAPTURE(widths.size());
    CAPTURE(widths[0]);
    const int n = static_cast<int>(widths.size()), lds = n * R + kGap, ldds = n * R + kGap / 2;
    std::vector<int> column;
    int ldy = kGap, outs = 0;
    for (const int width : widths) column.push_back(ldy), ldy += width + kGap, outs += width;
    const auto rows = static_cast<size_t>(N), all = static_cast<size_t>(outs) * R;
    auto dy = rounded<bf16>(random_values(rows * ldy, 1)), S = rounded<bf16>(random_values(rows * lds, 2));
    const auto B = rounded<bf16>(random_values(all, 3, 0.1)), dB0 = rounded<float>(random_values(all, 4));
    auto dB = dB0, dS = std::vector<double>(rows * ldds, 0.0);
    std::vector<LowRankGradient<double, double>> exact;
    int before = 0;
    for (int i = 0; i < n; ++i) {
        const int64_t b = int64_t{before} * R;
        exact.push_back(
            {column[i], widths[i], R, S.data() + i * R, lds, B.data() + b, dB.data() + b, dS.data() + i * R, ldds});
        before += widths[i];
    }
    Reference<double>().low_rank_backward(N, 0.75, dy.data(), ldy, exact);
    for (int row = 0; row < N; ++row) {
        for (int c = 0, i = 0; c < ldy; ++c) {
            while (i < n && c >= column[i] + widths[i]) ++i;
            if (i == n || c < column[i]) dy[size_t(row) * ldy + c] = NAN;
        }
        for (int c = n * R; c < lds; ++c) S[size_t(row) * lds + c] = NAN;
    }

    const simt::Guarded<bf16> gdy(stored<bf16>(dy)), gS(stored<bf16>(S)), gB(stored<bf16>(B));
    std::vector<float> first_dB;
    under_every_schedule(
        [&] {
            simt::Guarded<float> gdB(stored<float>(dB0));
            simt::Guarded<bf16> gdS(rows * ldds);
            std::vector<LowRankTerm> terms;
            for (int i = 0; i < n; ++i) {
                const int64_t b = exact[i].dB - dB.data();
                terms.push_back({column[i], widths[i], R, gS.data() + i * R, lds, gB.data() + b, gdB.data() + b,
                                 gdS.data() + i * R, ldds});
            }
            REQUIRE(low_rank_fits(gdy.data(), ldy, n, terms.data()));
            simt::Guarded<float> scratch(static_cast<size_t>(low_rank_scratch(N, n, terms.data())));
            low_rank_backward(nullptr, N, 0.75, gdy.data(), ldy, n, terms.data(), scratch.data());
            CHECK(scratch.intact());
            CHECK(worst(widened(gdB.values()), dB, 1) <= 1e-5);  // sums of hundreds of products near 1
            CHECK(gdB.intact());
            // The gap is as it was; what is written of a row, and no more, is right.
            std::vector<double> got, want;
            bool gap = true;
            for (int row = 0; row < N; ++row)
                for (int c = 0; c < ldds; ++c) {
                    const size_t at = size_t(row) * ldds + c;
                    if (c < n * R)
                        got.push_back(to_float(gdS[at])), want.push_back(dS[at]);
                    else
                        gap &= gdS[at].bits == 0xFFFF;
                }
            CHECK(gap);
            CHECK(worst(got, want) <= element_tolerance<bf16>());
            CHECK(gdS.intact());
            if (first_dB.empty()) first_dB = gdB.values();
            CHECK(first_dB == gdB.values());  // the same bits
        },
        step);
}

}  // namespace

TEST_CASE("low_rank: few rows, ragged columns, every rank") {
    for (const int R : {8, 16, 32}) {
        check(1, R, {8});
        check(17, R, {72, 8});
        check(100, R, {64, 200, 16}, 2);
    }
}
TEST_CASE("low_rank: several ranges of rows and chunks of columns") {
    check(333, 16, {1096}, 2);
    check(1100, 8, {64, 24}, 2);  // more ranges than one thread adds
    check(1100, 16, {40}, 4);
    check(150, 32, {520, 1032}, 3);
    check(140, 8, {1544}, 3);
}
TEST_CASE("low_rank: SmolLM2's groups") {
    check(150, 16, {576, 192, 192}, 3);  // 135M
    check(80, 16, {1536, 1536}, 4);
    check(40, 16, {960, 320, 320}, 4);     // 360M
    check(40, 16, {2048, 2048, 2048}, 4);  // 1.7B
    check(20, 16, {8192, 8192}, 4);
}
TEST_CASE("low_rank: what the kernels are not made for") {
    alignas(16) static bf16 x[64];
    alignas(16) static float f[64];
    const LowRankTerm good{0, 8, 8, x, 8, x, f, x, 8};
    const auto scratch = [](LowRankTerm t, int n = 1) {
        const std::vector<LowRankTerm> terms(static_cast<size_t>(n), t);
        return low_rank_scratch(10, n, terms.data());
    };
    CHECK(scratch(good) > 0);
    CHECK(scratch(good, 3) > 0);
    CHECK(scratch(good, 4) == 0);
    for (const int R : {1, 4, 12, 24, 64}) {
        LowRankTerm t = good;
        t.R = R;
        CHECK(scratch(t) == 0);
    }
    const auto fits = [](const bf16* dy, int ldy, LowRankTerm t) { return low_rank_fits(dy, ldy, 1, &t); };
    CHECK(fits(x, 16, good));
    CHECK(!fits(x + 1, 16, good));
    CHECK(!fits(x, 12, good));
    for (const LowRankTerm& t : {LowRankTerm{4, 8, 8, x, 8, x, f, x, 8}, LowRankTerm{0, 12, 8, x, 8, x, f, x, 8},
                                 LowRankTerm{0, 8, 8, x + 4, 8, x, f, x, 8}, LowRankTerm{0, 8, 8, x, 12, x, f, x, 8},
                                 LowRankTerm{0, 8, 8, x, 8, x + 4, f, x, 8}, LowRankTerm{0, 8, 8, x, 8, x, f + 2, x, 8},
                                 LowRankTerm{0, 8, 8, x, 8, x, f, x + 2, 8}, LowRankTerm{0, 8, 8, x, 8, x, f, x, 10}})
        CHECK(!fits(x, 16, t));
    // Fewer rows never need more.
    for (int N = 1, before = 0; N < 20000; N += 37) {
        const LowRankTerm terms[2] = {{0, 1536, 16, x, 8, x, f, x, 8}, {0, 1536, 16, x, 8, x, f, x, 8}};
        const int now = static_cast<int>(low_rank_scratch(N, 2, terms));
        CHECK(now >= before);
        before = now;
    }
}
