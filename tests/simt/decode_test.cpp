// The kernels of generation against the reference in double: ragged caches and SmolLM2's heads and widths.
#include <tuple>

#include "kernels/reference/reference.h"
#include "kernels/rope_table.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

// One new row for each sequence, at a position of its own.
MicroBatch new_rows(const std::vector<int32_t>& sequences, const std::vector<int32_t>& positions) {
    MicroBatch mb;
    for (size_t n = 0; n < sequences.size(); ++n) {
        PairSpan span;
        span.begin = static_cast<int32_t>(n);
        span.chosen = span.rejected = span.end = span.begin + 1;
        span.pair_in_batch = sequences[n];
        mb.pairs.push_back(span), mb.ids.push_back(0), mb.positions.push_back(positions[n]);
    }
    return mb;
}

template <class T>
void check_decode(Heads heads, const std::vector<int32_t>& sequences, const std::vector<int32_t>& positions,
                  int capacity) {
    CAPTURE(heads.H);
    const HostBatch batch = host_batch(new_rows(sequences, positions));
    const HeadShape shape{heads.H, heads.KV, 64};
    const int N = batch.N;
    const size_t row = 2 * static_cast<size_t>(heads.KV) * 64;
    const int most = *std::max_element(sequences.begin(), sequences.end()) + 1;
    const auto qkv = rounded<T>(random_values(static_cast<size_t>(N) * shape.width(), 1, 2));
    // What was not appended yet holds NaN: it must never be read.
    auto cache = rounded<T>(random_values(most * capacity * row, 2));
    std::vector<bool> seen(static_cast<size_t>(most) * capacity);
    for (int n = 0; n < N; ++n)
        for (int p = 0; p < positions[n]; ++p) seen[int64_t{sequences[n]} * capacity + p] = true;
    for (size_t i = 0; i < cache.size(); ++i)
        if (!seen[i / row]) cache[i] = NAN;
    // The row's q and k are turned and rounded to T before they are used; a table of no turns then leaves them alone.
    auto turned = qkv;
    Reference<double> reference;
    reference.rope(batch, shape, rope_table<double>(capacity, 64, 10000).data(), 1, turned.data());
    turned = rounded<T>(turned);
    std::vector<double> still(static_cast<size_t>(capacity) * 64);
    for (size_t i = 0; i < still.size(); i += 2) still[i] = 1;
    auto appended = cache;
    std::vector<double> o(static_cast<size_t>(N) * heads.H * 64);
    reference.decode_attention(batch, shape, capacity, still.data(), turned.data(), appended.data(), o.data());

    const simt::Guarded<T> gqkv(stored<T>(qkv));
    const simt::Guarded<int32_t> mask_pair(batch.mask_pair), gpositions(batch.positions);
    const simt::Guarded<float> table(rope_table<float>(capacity, 64, 10000));
    const simt::Guarded<T> gturned(stored<T>(turned));
    under_every_schedule([&] {
        simt::Guarded<T> by_itself(stored<T>(cache));
        cuda::cache_append<T>(nullptr, N, heads, capacity, mask_pair.data(), gpositions.data(), gturned.data(),
                              by_itself.data());
        check_bits(by_itself, stored<T>(appended));

        simt::Guarded<T> gcache(stored<T>(cache)), go(o.size());
        simt::Guarded<float> parts(static_cast<size_t>(N) * heads.H * kDecodeStretches * kDecodePart);
        simt::Guarded<int32_t> arrived(std::vector<int32_t>(static_cast<size_t>(N) * heads.H));
        for (int again = 0; again < 2; ++again) {
            cuda::decode_attention<T>(nullptr, N, heads, capacity, mask_pair.data(), gpositions.data(), table.data(),
                                      gqkv.data(), gcache.data(), parts.data(), arrived.data(), go.data());
            check_elements(go, o, sizeof(T) == 2 ? 1.0 / 128 : 2e-5);
        }
        CHECK(parts.intact());
        check_bits(arrived, std::vector<int32_t>(arrived.size()));
        CHECK(gcache.intact());
        // Only the new rows changed; a key may have been rounded the other way.
        const auto got = widened(gcache.values()), before = rounded<T>(cache);
        double error = 0;
        for (size_t i = 0; i < got.size(); ++i) {
            const bool fresh = std::isnan(before[i]) && !std::isnan(appended[i]);
            const bool same = got[i] == before[i] || (std::isnan(got[i]) && std::isnan(before[i]));
            if (!fresh)
                error = same ? error : INFINITY;
            else
                error = std::max(error, std::abs(got[i] - appended[i]) / (std::abs(appended[i]) + 0.1));
        }
        CHECK(error <= element_tolerance<T>());
    });
}

template <class T, class Y>
void check_gemv(int N, int out, int in) {
    CAPTURE(out);
    CAPTURE(in);
    const auto x = rounded<T>(random_values(static_cast<size_t>(N) * in, 1)),
               W = rounded<T>(random_values(static_cast<size_t>(out) * in, 2, 1 / std::sqrt(in)));
    std::vector<double> y(static_cast<size_t>(N) * out);
    Reference<double> reference;
    reference.gemm_nt(N, out, in, 1, x.data(), in, W.data(), in, y.data(), out, false);
    const simt::Guarded<T> gx(stored<T>(x)), gW(stored<T>(W));
    const auto run = [&] {
        simt::Guarded<Y> gy(y.size());
        cuda::gemv<T, Y>(nullptr, N, out, in, gx.data(), gW.data(), gy.data());
        check_elements(gy, y);
    };
    if (out < 10000)
        under_every_schedule(run);
    else
        run();  // as many warps as the vocabulary has tokens
}

}  // namespace

TEST_CASE_TEMPLATE("cache_append and decode_attention: fewer keys than warps, and ragged numbers of them", T, float,
                   bf16) {
    check_decode<T>({1, 1}, {0}, {0}, 1);
    check_decode<T>({2, 1}, {1, 0, 2}, {0, 3, 7}, 9);
    check_decode<T>({4, 2}, {3, 1, 0}, {8, 40, 41}, 42);
}
TEST_CASE_TEMPLATE("decode_attention: keys of several blocks", T, float, bf16) {
    check_decode<T>({1, 1}, {0, 2, 1}, {127, 128, 300}, 301);
    check_decode<T>({2, 1}, {0}, {2304}, 2400);  // ten stretches of 256 keys, the last of one
}
TEST_CASE_TEMPLATE("cache_append and decode_attention: SmolLM2's heads", T, float, bf16) {
    check_decode<T>({9, 3}, {0, 1}, {25, 9}, 32);
    check_decode<T>({15, 5}, {1, 0}, {6, 17}, 20);
    check_decode<T>({32, 32}, {0}, {11}, 12);
}
TEST_CASE_TEMPLATE("cache_append: a whole prompt; rows of no sequence leave the cache alone", T, float, bf16) {
    const Heads heads{3, 1};
    const int capacity = 12, width = 5 * 64;
    const int32_t sequence[] = {2, 2, 2, 0, 0, -1, -1}, position[] = {0, 1, 2, 0, 1, 0, 1};
    std::vector<int32_t> mask_pair, positions;
    for (int n = 0; n < 7; ++n) mask_pair.push_back(sequence[n] * 2), positions.push_back(position[n]);
    const auto qkv = stored<T>(random_values(7 * width, 1));
    std::vector<T> expected = simt::Guarded<T>(3 * capacity * 128).values();  // NaN
    for (int n = 0; n < 5; ++n)
        std::copy_n(&qkv[n * width + 192], 128, &expected[(sequence[n] * capacity + position[n]) * 128]);
    const simt::Guarded<T> gqkv(qkv);
    const simt::Guarded<float> table(rope_table<float>(capacity, 64, 10000));
    const simt::Guarded<int32_t> gmask_pair(mask_pair), gpositions(positions);
    under_every_schedule([&] {
        simt::Guarded<T> cache(expected.size()), o(7 * 192);
        cuda::cache_append<T>(nullptr, 7, heads, capacity, gmask_pair.data(), gpositions.data(), gqkv.data(),
                              cache.data());
        check_bits(cache, expected);
        simt::Guarded<float> parts(7 * 3 * kDecodeStretches * kDecodePart);
        simt::Guarded<int32_t> arrived(std::vector<int32_t>(7 * 3));
        cuda::decode_attention<T>(nullptr, 7, heads, capacity, gmask_pair.data(), gpositions.data(), table.data(),
                                  gqkv.data(), cache.data(), parts.data(), arrived.data(), o.data());
        const auto got = widened(o.values());
        CHECK(std::all_of(got.begin(), got.end(), [](double x) { return std::isfinite(x); }));
        CHECK(std::all_of(got.begin() + 5 * 192, got.end(), [](double x) { return x == 0; }));
    });
}

TEST_CASE("gemv: ragged and SmolLM2's shapes") {
    for (const auto& [N, out, in] :
         {std::tuple{1, 1, 8}, {2, 9, 264}, {3, 17, 576}, {4, 96, 960}, {5, 8, 2048}, {1, 40, 1536}}) {
        check_gemv<float, float>(N, out, in);
        check_gemv<bf16, bf16>(N, out, in);
        check_gemv<bf16, float>(N, out, in);
    }
}
TEST_CASE("gemv: one row over SmolLM2's vocabulary") { check_gemv<bf16, float>(1, 49152, 64); }
