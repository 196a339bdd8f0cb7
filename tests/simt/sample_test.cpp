// Drawing on the device takes the token that kernels/sample.h takes on the host.
#include "kernels/sample.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

SampleRule rule(double temperature, int top_k = 0, double top_p = 1, double min_p = 0) {
    return {temperature, top_k, top_p, min_p};
}
const std::vector<SampleRule> kRules = {rule(0),          rule(1),           rule(0.7),        rule(1, 1),
                                        rule(1, 5),       rule(1, 0, 0.9),   rule(1, 0, 0.01), rule(1, 0, 1, 0.05),
                                        rule(1, 0, 0.9, 0.3), rule(0.8, 40, 0.95, 0.02), rule(1, 1 << 20),
                                        rule(100, 7, 0.5), rule(1e-45), rule(1, 30, 1, 0.01)};

// n rows of V logits under every rule; every schedule, or the next one for each rule.
void check_sample(int n, int V, const std::vector<double>& logits, const std::vector<SampleRule>& rules = kRules,
                  bool every_schedule = false) {
    CAPTURE(V);
    const auto z = stored<float>(logits);
    const simt::Guarded<float> gz(z);
    std::vector<HeadRow> rows(n);
    for (int i = 0; i < n; ++i) rows[i].text = i * i;
    const simt::Guarded<HeadRow> grows(rows);
    uint32_t place = 0;
    for (const SampleRule& r : rules) {
        const Draw draw{r, stream_key(5, orpo::Stream::kSample), place++};
        CAPTURE(place);
        std::vector<int32_t> expected;
        for (int i = 0; i < n; ++i)
            expected.push_back(orpo::sample(std::span(z).subspan(size_t(i) * V, V), r, draw_random(draw, rows[i].text)));
        const auto run = [&] {
            simt::Guarded<int32_t> ids(n);
            cuda::sample(nullptr, n, V, grows.data(), gz.data(), draw, ids.data());
            CHECK(ids.values() == expected);
            CHECK(ids.intact());
        };
        if (every_schedule) {
            under_every_schedule(run);
        } else {
            simt::machine().schedule = simt::schedules()[place % simt::schedules().size()];
            run();
        }
    }
    simt::machine().schedule = {};
}

}  // namespace

TEST_CASE("sample: every filter under every schedule") {
    check_sample(1, 97, random_values(97, 2, 3), {rule(0), rule(1), rule(0.8, 40, 0.95, 0.02), rule(1, 30, 1, 0.01)}, true);
}
TEST_CASE("sample: every rule, ragged vocabularies") {
    check_sample(3, 8, random_values(3 * 8, 1, 2));
    check_sample(2, 1000, random_values(2 * 1000, 3, 2));
}
TEST_CASE("sample: SmolLM2's vocabulary") {
    check_sample(1, 49152, random_values(49152, 4, 2.5), {rule(0), rule(0.8, 40, 0.95, 0.02), rule(1.5, 3000, 0.9)});
}
TEST_CASE("sample: ties go by id, -0 equals 0, tokens at minus infinity are never drawn") {
    auto few = random_values(2 * 600, 5, 2), masked = random_values(2 * 64, 6, 2);
    for (double& z : few) z = std::round(z);  // about a hundred of each value, and both zeros
    for (size_t i = 0; i < masked.size(); i += 3) masked[i] = -INFINITY;
    check_sample(2, 600, few);
    check_sample(1, 600, std::vector<double>(600, 0.25));
    check_sample(2, 64, masked);
}
TEST_CASE("sample: far apart and close together") {
    auto spread = random_values(64, 7, 300), close = random_values(64, 8, 1e-6);
    for (double& z : close) z += 10;
    check_sample(1, 64, spread);
    check_sample(1, 64, close);
}
TEST_CASE("sample: a row with NaN gives -1, the others their token") {
    auto logits = random_values(3 * 40, 9);
    logits[40 + 17] = NAN;
    const simt::Guarded<float> z(stored<float>(logits));
    const simt::Guarded<HeadRow> rows(std::vector<HeadRow>(3));
    for (const SampleRule& r : {rule(0), rule(1)})
        under_every_schedule([&] {
            simt::Guarded<int32_t> ids(3);
            cuda::sample(nullptr, 3, 40, rows.data(), z.data(), {r, 1, 2}, ids.data());
            CHECK((ids[0] >= 0 && ids[1] == -1 && ids[2] >= 0));
        });
}
