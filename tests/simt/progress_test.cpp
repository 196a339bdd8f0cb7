// Every version of kernels/progress/ against the reference in double: what readers are shown is right, too.
#include "kernels/progress/progress.h"

#include "kernels/cuda/tiles.h"
#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

void check_attention(int H, int KV, const std::vector<Lengths>& lengths) {
    const MicroBatch mb = ragged_batch(lengths, 100);
    HostBatch batch(static_cast<int>(mb.ids.size()), static_cast<int>(mb.pairs.size()),
                    static_cast<int>(mb.heads.size()));
    batch.fill(mb);
    const size_t N = mb.ids.size(), W = static_cast<size_t>(H + 2 * KV) * 64;
    const auto qkv = rounded<bf16>(random_values(N * W, 1));
    std::vector<double> o(N * H * 64), lse(N * H);
    Reference<double>().attention(batch, {H, KV, 64}, qkv.data(), o.data(), lse.data());
    std::vector<QueryTile> tiles;
    query_tiles(mb.pairs, tiles);
    tiles.push_back({});  // padding of a captured graph
    simt::Guarded<bf16> gq(stored<bf16>(qkv));
    for (const auto& version : progress::attention_versions()) {
        CAPTURE(version.name);
        under_every_schedule([&] {
            simt::Guarded<bf16> go(N * H * 64);
            simt::Guarded<float> glse(N * H), scores(H * N * N);
            version.launch(nullptr, static_cast<int>(N), static_cast<int>(tiles.size()), {H, KV}, tiles.data(),
                           gq.data(), scores.data(), go.data(), glse.data());
            CHECK(nmse(widened(go.values()), o) <= tolerance<bf16>());
            CHECK(nmse(widened(glse.values()), lse) <= 1e-9);
            CHECK((go.intact() && glse.intact() && scores.intact()));
        });
    }
}

void check_norm(int N, int C) {
    const size_t n = static_cast<size_t>(N) * C;
    const auto x = rounded<bf16>(random_values(n, 1)), d = rounded<bf16>(random_values(n, 2));
    const auto w = rounded<float>(random_values(C, 3));
    std::vector<double> sum(n), y(n), r(N);
    for (size_t i = 0; i < n; ++i) sum[i] = x[i] + d[i];
    sum = rounded<bf16>(sum);
    Reference<double>().rmsnorm(N, C, 1e-5, sum.data(), w.data(), y.data(), C, r.data());
    simt::Guarded<bf16> gx(stored<bf16>(x)), gd(stored<bf16>(d));
    simt::Guarded<float> gw(stored<float>(w));
    for (const auto& version : progress::add_rmsnorm_versions()) {
        CAPTURE(version.name);
        under_every_schedule([&] {
            simt::Guarded<bf16> x2(n), gy(n);
            simt::Guarded<float> gr(N);
            version.launch(nullptr, N, C, 1e-5f, gx.data(), gd.data(), gw.data(), x2.data(), gy.data(), gr.data());
            CHECK(widened(x2.values()) == sum);
            CHECK(nmse(widened(gy.values()), y) <= tolerance<bf16>());
            CHECK(nmse(widened(gr.values()), r) <= 1e-10);
            CHECK((x2.intact() && gy.intact() && gr.intact()));
        });
    }
}

void check_xent(int n, int V) {
    const auto z = rounded<bf16>(random_values(static_cast<size_t>(n) * V, 4, 3));
    std::vector<double> logp(n), gradient(z.size());
    std::vector<HeadRow> rows(n);
    for (int i = 0; i < n; ++i) {
        const double* row = z.data() + static_cast<size_t>(i) * V;
        const int target = rows[i].target = (i * 31 + 5) % V;
        double sum = 0;
        for (int v = 0; v < V; ++v) sum += std::exp(row[v]);
        logp[i] = row[target] - std::log(sum);
        for (int v = 0; v < V; ++v)
            gradient[static_cast<size_t>(i) * V + v] = std::exp(row[v]) / sum - (v == target ? 1 : 0);
    }
    for (const auto& version : progress::softmax_xent_versions()) {
        CAPTURE(version.name);
        under_every_schedule([&] {
            simt::Guarded<bf16> gz(stored<bf16>(z));
            simt::Guarded<double> glogp(n);
            version.launch(nullptr, n, V, rows.data(), gz.data(), glogp.data());
            CHECK(nmse(widened(gz.values()), gradient) <= tolerance<bf16>());
            CHECK(nmse(glogp.values(), logp) <= 1e-10);
            CHECK((gz.intact() && glogp.intact()));
        });
    }
}

}  // namespace

TEST_CASE("progress: every version of the fused add and norm") {
    check_norm(7, 576);
    check_norm(3, 2048);
    check_norm(5, 40);
}
TEST_CASE("progress: every version of the head's softmax") {
    check_xent(5, 320);
    check_xent(2, 4096);
}
TEST_CASE("progress: every version of attention") {
    check_attention(3, 1, {{5, 3, 4}, {1, 1, 1}, {70, 10, 3}});
    check_attention(9, 3, {{20, 9, 7}});
}
