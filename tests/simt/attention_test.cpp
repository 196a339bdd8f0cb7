// The attention kernels against the reference in double, at ragged shapes and at SmolLM2's head counts.
#include "kernels/cuda/tiles.h"
#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

template <class T>
void check_attention(int H, int KV, const std::vector<Lengths>& lengths, size_t step = 1, double size = 1) {
    const MicroBatch mb = ragged_batch(lengths, 100);
    const HostBatch batch = host_batch(mb);
    const size_t N = mb.ids.size(), W = static_cast<size_t>(H + 2 * KV) * 64;
    const HeadShape shape{H, KV, 64};
    const auto qkv = rounded<T>(random_values(N * W, 1, size)), d_o = rounded<T>(random_values(N * H * 64, 2));
    std::vector<double> o(N * H * 64), lse(N * H), dqkv(N * W);
    Reference<double> reference;
    reference.attention(batch, shape, qkv.data(), o.data(), lse.data());
    const auto o_in = rounded<T>(o);  // backward is given what forward stored
    reference.attention_backward(batch, shape, qkv.data(), o_in.data(), lse.data(), d_o.data(), dqkv.data());

    std::vector<QueryTile> queries;
    std::vector<KeyTile> keys;
    query_tiles(mb.pairs, queries);
    key_tiles(mb.pairs, keys);
    queries.push_back({}), keys.push_back({});  // padding of a captured graph
    CHECK(static_cast<int>(keys.size()) <= most_tiles(static_cast<int>(N), static_cast<int>(lengths.size())) + 1);
    const simt::Guarded<QueryTile> gqueries(queries);
    const simt::Guarded<KeyTile> gkeys(keys);
    const simt::Guarded<T> gqkv(stored<T>(qkv)), gd_o(stored<T>(d_o)), go_in(stored<T>(o));
    const simt::Guarded<float> glse_in(stored<float>(lse));
    under_every_schedule(
        [&] {
            simt::Guarded<T> go(N * H * 64), gdqkv(N * W);
            simt::Guarded<float> glse(N * H), gstats(2 * N * H);
            cuda::attention<T>(nullptr, static_cast<int>(queries.size()), {H, KV}, gqueries.data(), gqkv.data(),
                               go.data(), glse.data());
            CHECK(nmse(widened(go.values()), o) <= tolerance<T>());
            CHECK(nmse(widened(glse.values()), lse) <= tolerance<T>());
            cuda::attention_backward<T>(nullptr, static_cast<int>(N), static_cast<int>(queries.size()),
                                        static_cast<int>(keys.size()), {H, KV}, gqueries.data(), gkeys.data(),
                                        gqkv.data(), go_in.data(), glse_in.data(), gd_o.data(), gstats.data(),
                                        gdqkv.data());
            CHECK(nmse(widened(gdqkv.values()), dqkv) <= tolerance<T>());
            CHECK((go.intact() && glse.intact() && gdqkv.intact() && gstats.intact()));
        },
        step);
}

}  // namespace

TEST_CASE("attention: ragged pairs, grouped heads, bf16") {
    check_attention<bf16>(3, 1, {{5, 3, 4}, {1, 1, 1}, {70, 10, 3}});
    check_attention<bf16>(2, 2, {{64, 2, 65}});
    check_attention<bf16>(1, 1, {{2, 70, 64}});
}
TEST_CASE("attention: ragged pairs, grouped heads, fp32") {
    check_attention<float>(3, 1, {{5, 3, 4}, {1, 1, 1}, {20, 2, 30}});
    check_attention<float>(2, 2, {{40, 30, 1}});
}
TEST_CASE_TEMPLATE("attention: SmolLM2's heads", T, float, bf16) {
    check_attention<T>(9, 3, {{30, 20, 9}}, 4);
    check_attention<T>(15, 5, {{10, 5, 12}}, 4);
    check_attention<T>(32, 32, {{7, 3, 2}}, 4);
}
TEST_CASE("attention: later scores outgrow the first ones, bf16") {
    // Scores of up to some 200: the softmax is made relative to something else several times a row.
    check_attention<bf16>(1, 1, {{150, 130, 40}}, 2, 2.5);
}
TEST_CASE("attention: tiles are sorted, the longest first, and every row has its own") {
    const MicroBatch mb = ragged_batch({{5, 3, 4}, {200, 300, 77}, {64, 128, 65}}, 100);
    std::vector<QueryTile> queries;
    std::vector<KeyTile> keys;
    query_tiles(mb.pairs, queries);
    key_tiles(mb.pairs, keys);
    std::vector<int> as_query(mb.ids.size()), as_key(mb.ids.size());
    for (const QueryTile& t : queries)
        for (int n = t.q0; n < t.q1; ++n) ++as_query[static_cast<size_t>(n)];
    for (const KeyTile& t : keys)
        for (int n = t.k0; n < t.k1; ++n) ++as_key[static_cast<size_t>(n)];
    CHECK(as_query == std::vector<int>(mb.ids.size(), 1));
    CHECK(as_key == std::vector<int>(mb.ids.size(), 1));
    for (size_t i = 1; i < queries.size(); ++i) CHECK(steps_of(queries[i - 1]) >= steps_of(queries[i]));
    for (size_t i = 1; i < keys.size(); ++i) CHECK(steps_of(keys[i - 1]) >= steps_of(keys[i]));
}
TEST_CASE("attention: the same bits under every schedule") {
    const MicroBatch mb = ragged_batch({{33, 40, 21}}, 100);
    const size_t N = mb.ids.size(), W = 5 * 64;
    std::vector<QueryTile> queries;
    query_tiles(mb.pairs, queries);
    simt::Guarded<bf16> qkv(stored<bf16>(random_values(N * W, 5))), o(N * 3 * 64);
    simt::Guarded<float> lse(N * 3);
    std::vector<std::vector<double>> outs;
    under_every_schedule([&] {
        cuda::attention<bf16>(nullptr, static_cast<int>(queries.size()), {3, 1}, queries.data(), qkv.data(), o.data(),
                              lse.data());
        outs.push_back(widened(o.values()));
    });
    for (const auto& out : outs) CHECK(out == outs[0]);
}
