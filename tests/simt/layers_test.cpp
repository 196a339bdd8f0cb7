// Every layer kernel but attention against the reference in double: ragged shapes and SmolLM2's own.
#include <array>
#include <utility>

#include "kernels/reference/reference.h"
#include "kernels/rope_table.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

namespace {

// (N, C): one pack, ragged warps and blocks, every number of packs a lane, SmolLM2's widths.
const std::vector<std::pair<int, int>> kShapes = {{1, 8},   {9, 24},  {5, 264},  {3, 496},
                                                  {4, 576}, {2, 960}, {3, 1240}, {5, 2048}};
const std::vector<Heads> kHeads = {{1, 1}, {3, 1}, {9, 3}, {15, 5}, {32, 32}};

}  // namespace

TEST_CASE_TEMPLATE("embed: rows of the vocabulary's 49152", T, float, bf16) {
    for (const auto& [V, C] : {std::pair{49152, 8}, {7, 24}, {40, 576}, {30, 960}, {20, 2048}}) {
        const auto E = stored<T>(random_values(static_cast<size_t>(V) * C, 1));
        const std::vector<int32_t> ids = {V - 1, 0, V / 2, V - 1, 3};
        std::vector<T> expected;
        for (const int id : ids)
            expected.insert(expected.end(), E.begin() + int64_t{id} * C, E.begin() + int64_t{id} * C + C);
        const simt::Guarded<T> table(E);
        const simt::Guarded<int32_t> wanted(ids);
        under_every_schedule([&] {
            simt::Guarded<T> x(ids.size() * C);
            cuda::embed<T>(nullptr, static_cast<int>(ids.size()), C, wanted.data(), table.data(), x.data());
            check_bits(x, expected);
        });
    }
}

TEST_CASE_TEMPLATE("gather: the rows that the head scores", T, float, bf16) {
    for (const int C : {8, 264, 576, 960, 2048}) {
        const auto x = stored<T>(random_values(11 * static_cast<size_t>(C), 1));
        std::vector<HeadRow> rows(5);
        std::vector<T> expected;
        for (size_t i = 0; i < rows.size(); ++i) {
            rows[i].row = std::array{10, 0, 10, 4, 9}[i];
            expected.insert(expected.end(), x.begin() + int64_t{rows[i].row} * C,
                            x.begin() + int64_t{rows[i].row + 1} * C);
        }
        const simt::Guarded<T> from(x);
        const simt::Guarded<HeadRow> wanted(rows);
        under_every_schedule([&] {
            simt::Guarded<T> to(rows.size() * C);
            cuda::gather<T>(nullptr, static_cast<int>(rows.size()), C, wanted.data(), from.data(), to.data());
            check_bits(to, expected);
        });
    }
}

TEST_CASE_TEMPLATE("cast: any length", T, float, bf16) {
    for (const size_t n : {1, 7, 8, 9, 255, 2047, 2048, 2049, 5003}) {
        const auto values = rounded<float>(random_values(n, 1));
        const simt::Guarded<float> x(stored<float>(values));
        under_every_schedule([&] {
            simt::Guarded<T> y(n);
            cuda::cast<T>(nullptr, static_cast<int64_t>(n), x.data(), y.data());
            check_bits(y, stored<T>(values));
        });
    }
}

TEST_CASE_TEMPLATE("rmsnorm, add_rmsnorm, normalize, rmsnorm_backward", T, float, bf16) {
    Reference<double> reference;
    for (const auto& [N, C] : kShapes) {
        CAPTURE(C);
        const size_t n = static_cast<size_t>(N) * C;
        const double eps = 1e-5;
        const auto x = rounded<T>(random_values(n, 1)), d = rounded<T>(random_values(n, 2)),
                   dy = rounded<T>(random_values(n, 3)), dx0 = rounded<T>(random_values(n, 4));
        const auto w = rounded<float>(random_values(C, 5));
        std::vector<double> y(n), r(N), sum(n), sum_y(n), sum_r(N), dx(n), added = dx0;
        reference.rmsnorm(N, C, eps, x.data(), w.data(), y.data(), C, r.data());
        for (size_t i = 0; i < n; ++i) sum[i] = x[i] + d[i];
        sum = rounded<T>(sum);
        reference.rmsnorm(N, C, eps, sum.data(), w.data(), sum_y.data(), C, sum_r.data());
        const auto r_in = rounded<float>(r);
        reference.rmsnorm_backward(N, C, dy.data(), x.data(), w.data(), r_in.data(), dx.data(), C, false);
        reference.rmsnorm_backward(N, C, dy.data(), x.data(), w.data(), r_in.data(), added.data(), C, true);

        const simt::Guarded<T> gx(stored<T>(x)), gd(stored<T>(d)), gdy(stored<T>(dy));
        const simt::Guarded<float> gw(stored<float>(w)), gr_in(stored<float>(r));
        under_every_schedule([&] {
            simt::Guarded<T> gy(n), gnormed(n), gdx(n), gadded(stored<T>(dx0));
            simt::Guarded<float> gr(N), gsum_r(N);
            cuda::rmsnorm<T>(nullptr, N, C, eps, gx.data(), gw.data(), gy.data(), C, gr.data());
            check_elements(gy, y);
            check_elements(gr, r);
            cuda::normalize<T>(nullptr, N, C, gx.data(), gw.data(), gr_in.data(), gnormed.data(), C);
            check_elements(gnormed, y);
            cuda::rmsnorm_backward<T>(nullptr, N, C, gdy.data(), gx.data(), gw.data(), gr_in.data(), gdx.data(), C,
                                      false);
            check_elements(gdx, dx);
            cuda::rmsnorm_backward<T>(nullptr, N, C, gdy.data(), gx.data(), gw.data(), gr_in.data(), gadded.data(), C,
                                      true);
            check_elements(gadded, added);
            simt::Guarded<T> gsum(n), gsum_y(n), in_place(stored<T>(x)), d_in_place(stored<T>(d));
            cuda::add_rmsnorm<T>(nullptr, N, C, eps, gx.data(), gd.data(), gw.data(), gsum.data(), gsum_y.data(), C,
                                 gsum_r.data());
            check_bits(gsum, stored<T>(sum));
            check_elements(gsum_y, sum_y);
            check_elements(gsum_r, sum_r);
            // As the transformer calls it: x2 over x, y over d.
            cuda::add_rmsnorm<T>(nullptr, N, C, eps, in_place.data(), d_in_place.data(), gw.data(), in_place.data(),
                                 d_in_place.data(), C, gsum_r.data());
            check_bits(in_place, stored<T>(sum));
            check_bits(d_in_place, gsum_y.values());
        });
    }
}

// The rows of `apart`, ld elements apart, are those of `close`; what lies between them is still `before`.
template <class T>
void check_rows_apart(simt::Guarded<T>& apart, int ld, const std::vector<T>& close, int C, T before) {
    bool same = true, untouched = true;
    for (size_t i = 0; i < apart.values().size(); ++i) {
        const size_t n = i / static_cast<size_t>(ld), c = i % static_cast<size_t>(ld);
        const T& expected = c < static_cast<size_t>(C) ? close[n * static_cast<size_t>(C) + c] : before;
        (c < static_cast<size_t>(C) ? same : untouched) &= std::memcmp(&apart.values()[i], &expected, sizeof(T)) == 0;
    }
    CHECK(same);
    CHECK(untouched);
    CHECK(apart.intact());
}

TEST_CASE_TEMPLATE("norms whose rows lie further apart: the same bits, and nothing between them", T, float, bf16) {
    for (const auto& [N, C] : kShapes) {
        CAPTURE(C);
        const int ld = C + 48;
        const size_t n = static_cast<size_t>(N) * C, far = static_cast<size_t>(N) * ld;
        const simt::Guarded<T> x(stored<T>(random_values(n, 1))), d(stored<T>(random_values(n, 2)));
        const simt::Guarded<float> w(stored<float>(random_values(C, 3)));
        const T before = stored<T>(std::vector<double>{7})[0];
        under_every_schedule([&, N = N, C = C] {
            simt::Guarded<T> close(n), apart(std::vector<T>(far, before)), x2(n), low(n);
            simt::Guarded<float> r(N);
            const auto refill = [&] { std::fill_n(apart.data(), far, before); };
            cuda::rmsnorm<T>(nullptr, N, C, 1e-5, x.data(), w.data(), close.data(), C, r.data());
            cuda::rmsnorm<T>(nullptr, N, C, 1e-5, x.data(), w.data(), apart.data(), ld, r.data());
            check_rows_apart(apart, ld, close.values(), C, before);
            refill();
            cuda::normalize<T>(nullptr, N, C, x.data(), w.data(), r.data(), close.data(), C);
            cuda::normalize<T>(nullptr, N, C, x.data(), w.data(), r.data(), apart.data(), ld);
            check_rows_apart(apart, ld, close.values(), C, before);
            T* const lows[] = {nullptr, sizeof(T) == 2 ? low.data() : nullptr};
            for (T* x2_low : lows) {
                refill();
                cuda::add_rmsnorm<T>(nullptr, N, C, 1e-5, x.data(), d.data(), w.data(), x2.data(), close.data(), C,
                                     r.data(), nullptr, x2_low);
                cuda::add_rmsnorm<T>(nullptr, N, C, 1e-5, x.data(), d.data(), w.data(), x2.data(), apart.data(), ld,
                                     r.data(), nullptr, x2_low);
                check_rows_apart(apart, ld, close.values(), C, before);
            }
            refill();
            for (const bool accumulate : {false, true}) {
                cuda::rmsnorm_backward<T>(nullptr, N, C, d.data(), x.data(), w.data(), r.data(), close.data(), C,
                                          accumulate);
                cuda::rmsnorm_backward<T>(nullptr, N, C, d.data(), x.data(), w.data(), r.data(), apart.data(), ld,
                                          accumulate);
            }
            check_rows_apart(apart, ld, close.values(), C, before);
        });
    }
}

TEST_CASE_TEMPLATE("borders: rows, lists of blocks and casts, and nothing beside them", T, float, bf16) {
    const int rows = 37, cols = 24, ld_from = 40, ld_to = 32;
    const auto values = rounded<T>(random_values(static_cast<size_t>(rows) * ld_from, 1));
    const simt::Guarded<T> from(stored<T>(values));
    const T before = stored<T>(std::vector<double>{7})[0];
    std::vector<T> close;
    for (int r = 0; r < rows; ++r)
        close.insert(close.end(), from.data() + r * ld_from, from.data() + r * ld_from + cols);
    under_every_schedule([&] {
        simt::Guarded<T> to(std::vector<T>(static_cast<size_t>(rows) * ld_to, before));
        cuda::copy_rows<T>(nullptr, rows, cols, from.data(), ld_from, to.data(), ld_to);
        check_rows_apart(to, ld_to, close, cols, before);

        // B (30, 8) from 16 on goes to columns 24.. of rows 2.., A (3, 24) from 256 on to the rows behind.
        simt::Guarded<T> matrix(std::vector<T>(static_cast<size_t>(rows) * ld_to, before));
        const simt::Guarded<Border<T>> list(std::vector<Border<T>>{
            {16, matrix.data() + 2 * ld_to + 24, 30, 8, ld_to, 0}, {256, matrix.data() + 33 * ld_to, 3, 24, ld_to, 0}});
        std::vector<T> expected(matrix.values());
        for (int r = 0; r < 30; ++r) std::copy_n(from.data() + 16 + r * 8, 8, &expected[(2 + r) * ld_to + 24]);
        for (int r = 0; r < 3; ++r) std::copy_n(from.data() + 256 + r * 24, 24, &expected[(33 + r) * ld_to]);
        cuda::copy_borders<T>(nullptr, 2, list.data(), from.data());
        check_bits(matrix, expected);

        const auto numbers = rounded<float>(random_values(static_cast<size_t>(rows) * cols, 2));
        const simt::Guarded<float> full(stored<float>(numbers));
        simt::Guarded<T> cast(std::vector<T>(static_cast<size_t>(rows) * ld_to, before));
        cuda::cast_rows<T>(nullptr, rows, cols, full.data(), cast.data(), ld_to);
        check_rows_apart(cast, ld_to, stored<T>(numbers), cols, before);
    });
}

TEST_CASE("add_rmsnorm with low parts: bf16 that keeps 16 bits of the sum") {
    for (const auto& [N, C] : kShapes) {
        CAPTURE(C);
        const size_t n = static_cast<size_t>(N) * C;
        const auto x = rounded<bf16>(random_values(n, 1)), d = rounded<bf16>(random_values(n, 2)),
                   x_low = rounded<bf16>(random_values(n, 3, 1.0 / 512));
        const auto w = rounded<float>(random_values(C, 4));
        const simt::Guarded<bf16> gx(stored<bf16>(x)), gx_low(stored<bf16>(x_low)), gd(stored<bf16>(d));
        const simt::Guarded<float> gw(stored<float>(w));
        for (const bool first : {true, false}) {  // the first addition has no low part to add
            std::vector<double> sum(n), y(n), r(N);
            for (size_t i = 0; i < n; ++i) sum[i] = x[i] + (first ? 0 : x_low[i]) + d[i];
            Reference<double>().rmsnorm(N, C, 1e-5, sum.data(), w.data(), y.data(), C, r.data());
            under_every_schedule([&, N = N, C = C] {
                simt::Guarded<bf16> x2(n), x2_low(n), gy(n);
                simt::Guarded<float> gr(N);
                cuda::add_rmsnorm<bf16>(nullptr, N, C, 1e-5, gx.data(), gd.data(), gw.data(), x2.data(), gy.data(), C,
                                        gr.data(), first ? nullptr : gx_low.data(), x2_low.data());
                std::vector<double> both = widened(x2.values());
                CHECK(worst(both, sum) > 1.0 / 65536);  // control: x2 alone does not keep them
                for (size_t i = 0; i < n; ++i) both[i] += to_float(x2_low[i]);
                CHECK(worst(both, sum) <= 1.0 / 65536);
                check_bits(x2, stored<bf16>(sum));
                check_elements(gy, y);
                check_elements(gr, r);
                CHECK(x2_low.intact());
                if (first) return;
                // As the transformer calls it: x2 over x, x2_low over x_low, y over d.
                simt::Guarded<bf16> in_place(stored<bf16>(x)), low_in_place(stored<bf16>(x_low)),
                    d_in_place(stored<bf16>(d));
                cuda::add_rmsnorm<bf16>(nullptr, N, C, 1e-5, in_place.data(), d_in_place.data(), gw.data(),
                                        in_place.data(), d_in_place.data(), C, gr.data(), low_in_place.data(),
                                        low_in_place.data());
                check_bits(in_place, x2.values());
                check_bits(low_in_place, x2_low.values());
                check_bits(d_in_place, gy.values());
            });
        }
    }
}

TEST_CASE_TEMPLATE("rope: forward and back, key/value heads of v untouched", T, float, bf16) {
    const MicroBatch mb = ragged_batch({{5, 3, 4}, {1, 1, 1}, {2, 9, 0}}, 50);
    const HostBatch batch = host_batch(mb);
    const int N = batch.N, positions = 14;
    const auto table = rope_table<double>(positions, 64, 100000);
    const simt::Guarded<float> gtable(stored<float>(table));
    const simt::Guarded<int32_t> gpositions(mb.positions);
    Reference<double> reference;
    for (const Heads& heads : kHeads)
        for (const int sign : {1, -1}) {
            const HeadShape shape{heads.H, heads.KV, 64};
            const auto qkv = rounded<T>(random_values(static_cast<size_t>(N) * shape.width(), 1));
            std::vector<double> expected = qkv;
            reference.rope(batch, shape, table.data(), sign, expected.data());
            under_every_schedule([&] {
                simt::Guarded<T> got(stored<T>(qkv));
                cuda::rope<T>(nullptr, N, heads, gpositions.data(), gtable.data(), sign, got.data());
                check_elements(got, expected);
                const int v = (heads.H + heads.KV) * 64, width = shape.width();
                bool same = true;
                for (int64_t n = 0; n < N; ++n)
                    for (int c = v; c < width; ++c) same &= to_float(got[n * width + c]) == qkv[n * width + c];
                CHECK(same);
            });
        }
}

TEST_CASE_TEMPLATE("swiglu and its backward, in place", T, float, bf16) {
    Reference<double> reference;
    for (const auto& [N, I] : {std::pair{1, 8}, {7, 40}, {3, 344}, {2, 1536}, {2, 2560}, {1, 8192}}) {
        const size_t n = static_cast<size_t>(N) * I;
        // Far into both tails of the sigmoid.
        const auto gu = rounded<T>(random_values(2 * n, 1, 8)), dh = rounded<T>(random_values(n, 2));
        std::vector<double> h(n), dgu = gu;
        reference.swiglu(N, I, gu.data(), h.data());
        reference.swiglu_backward(N, I, dh.data(), dgu.data(), nullptr);
        const simt::Guarded<T> in(stored<T>(gu)), gdh(stored<T>(dh));
        under_every_schedule([&] {
            simt::Guarded<T> gh(n), gdgu(stored<T>(gu));
            cuda::swiglu<T>(nullptr, N, I, in.data(), gh.data());
            check_elements(gh, h);
            cuda::swiglu_backward<T>(nullptr, N, I, gdh.data(), gdgu.data(), nullptr);
            check_elements(gdgu, dgu);
            // As the transformer calls it: h over dh.
            simt::Guarded<T> again(stored<T>(gu)), h_over_dh(stored<T>(dh));
            cuda::swiglu_backward<T>(nullptr, N, I, h_over_dh.data(), again.data(), h_over_dh.data());
            check_bits(again, gdgu.values());
            check_elements(h_over_dh, h);
        });
    }
}

TEST_CASE_TEMPLATE("dropout and dropout_add: the reference's masks, and no row outside the range", T, float, bf16) {
    const MicroBatch mb = ragged_batch({{5, 3, 4}, {1, 2, 1}, {3, 0, 0}}, 50);
    const HostBatch batch = host_batch(mb);
    const simt::Guarded<BatchScalars> scalars({BatchScalars{mb.dropout_key, mb.step}});
    const simt::Guarded<int32_t> mask_pair(batch.mask_pair), positions(batch.positions);
    Reference<double> reference;
    for (const auto& [first, rows, C, p] :
         {std::tuple{0, 19, 24, 0.5}, {3, 9, 8, 0.25}, {18, 1, 576, 0.1}, {5, 2, 960, 0.05}, {2, 2, 2048, 0.999}}) {
        const size_t n = static_cast<size_t>(batch.N) * C;
        const auto x = rounded<T>(random_values(n, 1)), dx = rounded<T>(random_values(n, 2));
        std::vector<double> y(n, NAN), sum = dx;
        reference.dropout(batch, first, rows, C, p, 9, x.data(), y.data());
        reference.dropout_add(batch, first, rows, C, p, 9, x.data(), sum.data());
        const auto within = [&, first = first, rows = rows, C = C](const std::vector<double>& all) {
            return std::vector<double>(all.begin() + int64_t{first} * C, all.begin() + int64_t{first + rows} * C);
        };
        const simt::Guarded<T> gx(stored<T>(x));
        under_every_schedule([&, first = first, rows = rows, C = C, p = p] {
            simt::Guarded<T> gy(n), gsum(stored<T>(dx));
            cuda::dropout<T>(nullptr, first, rows, C, p, 9, scalars.data(), mask_pair.data(), positions.data(),
                             gx.data(), gy.data());
            const auto got = widened(gy.values());
            CHECK(worst(within(got), within(y)) <= element_tolerance<T>());
            bool right = true;  // dropped exactly where the reference drops, NaN left where no row was asked for
            for (size_t i = 0; i < n; ++i)
                right &= (got[i] == 0) == (y[i] == 0) && std::isnan(got[i]) == std::isnan(y[i]);
            CHECK(right);
            CHECK(gy.intact());
            cuda::dropout_add<T>(nullptr, first, rows, C, p, 9, scalars.data(), mask_pair.data(), positions.data(),
                                 gx.data(), gsum.data());
            check_elements(gsum, sum);
        });
    }
}
