// The CPU backend, in every instruction set that this processor has, against the reference in double; and its promises:
// the same bits for any number of threads, and for rows in any company.
#include "tests/cpu_kernels.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/rope_table.h"

using namespace orpo;

namespace {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> all;
    for (const char* name : {"sse2", "avx2", "avx512"}) {
        try {
            select_isa(name);
            all.push_back(name);
        } catch (const Error&) {
            MESSAGE("skipped: this processor has no " << std::string(name));
        }
    }
    return all;
}

}  // namespace

TEST_CASE("products equal the reference, leave their surroundings alone, and do not depend on threads or rows") {
    const HeadShape shape{3, 1, 64};
    for (const std::string& isa : instruction_sets())
        for (const auto& [M0, N0, K0] :
             {std::array{1, 64, 48}, {7, 100, 33}, {45, 17, 700}, {130, 96, 1300}, {33, 48, 576}}) {
            const int M = M0, N = N0, K = K0;
            CAPTURE(isa);
            CAPTURE(M);
            CAPTURE(N);
            CAPTURE(K);
            const Floats x = noise(M * K, 1), w = noise(N * K, 2), dy = noise(M * N, 3), c0 = noise(M * N, 4);
            const Floats wt = noise(K * N, 5), xt = noise(K * M, 6);
            Oracle ref;
            Doubles y(M * N), dx(M * K), nt = wide(c0), nn = wide(c0), tn = wide(c0);
            ref.linear(M, wide(x).data(), {N, K, wide(w).data()}, y.data());
            ref.linear_backward(M, wide(dy).data(), {N, K, wide(w).data()}, dx.data());
            ref.gemm_nt(M, N, K, 0.5, wide(x).data(), K, wide(w).data(), K, nt.data(), N, true);
            ref.gemm_nn(M, N, K, 0.5, wide(x).data(), K, wide(wt).data(), N, nn.data(), N, true);
            ref.gemm_tn(M, N, K, wide(xt).data(), M, wide(wt).data(), N, tn.data(), N);
            Floats first_y, first_dx, first_nt, first_tn;
            for (const int threads : {1, 2, 3, 7}) {
                Cpu<float> k({threads, isa});
                k.reserve(limits(M, shape, K, N, 64));
                const Cpu<float>::Weight W = weight(k, N, K, w);
                Floats got_y(M * N + 1, kSentinel), got_dx(M * K + 1, kSentinel);
                k.linear(M, x.data(), W, got_y.data());
                k.linear_backward(M, dy.data(), W, got_dx.data());
                CHECK((got_y.back() == kSentinel && got_dx.back() == kSentinel));
                got_y.pop_back(), got_dx.pop_back();
                Floats got_nt = c0, got_nn = c0, got_tn = c0;
                k.gemm_nt(M, N, K, 0.5, x.data(), K, w.data(), K, got_nt.data(), N, true);
                k.gemm_nn(M, N, K, 0.5, x.data(), K, wt.data(), N, got_nn.data(), N, true);
                k.gemm_tn(M, N, K, xt.data(), M, wt.data(), N, got_tn.data(), N);
                if (threads == 1) {
                    CHECK(error(got_y, y) <= 2e-6);
                    CHECK(error(got_dx, dx) <= 2e-6);
                    CHECK(error(got_nt, nt) <= 2e-6);
                    CHECK(error(got_nn, nn) <= 2e-6);
                    CHECK(error(got_tn, tn) <= 2e-6);
                    first_y = got_y, first_dx = got_dx, first_nt = got_nt, first_tn = got_tn;
                    // The last row alone.
                    Floats alone(N), alone_dx(K);
                    k.linear(1, x.data() + (M - 1) * K, W, alone.data());
                    k.linear_backward(1, dy.data() + (M - 1) * N, W, alone_dx.data());
                    CHECK(std::memcmp(alone.data(), got_y.data() + (M - 1) * N, N * 4) == 0);
                    CHECK(std::memcmp(alone_dx.data(), got_dx.data() + (M - 1) * K, K * 4) == 0);
                    // Tokens in two calls.
                    Floats twice = c0;
                    const int cut = K / 3;
                    k.gemm_tn(M, N, cut, xt.data(), M, wt.data(), N, twice.data(), N);
                    k.gemm_tn(M, N, K - cut, xt.data() + cut * M, M, wt.data() + cut * N, N, twice.data(), N);
                    CHECK(twice == got_tn);
                }
                CHECK(got_y == first_y);
                CHECK(got_dx == first_dx);
                CHECK(got_nt == first_nt);
                CHECK(got_tn == first_tn);
            }
        }
}

TEST_CASE("a product's element is chains of 96 multiply-adds, added up: AVX2 and AVX-512 agree to the bit") {
    const auto sets = instruction_sets();
    if (sets.size() < 3) {
        MESSAGE("skipped: needs AVX-512");
        return;
    }
    const int M = 37, N = 96, K = 1000;
    const Floats x = noise(M * K, 1), w = noise(N * K, 2);
    Floats expect(M * N);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
            for (int block = 0; block < K; block += 576) {  // 1000 columns are 576 and 424
                const int end = std::min(K, block + 576);
                float sum = 0;
                for (int k0 = block; k0 < end; k0 += 96) {
                    float chain = 0;
                    for (int k = k0; k < std::min(end, k0 + 96); ++k)
                        chain = std::fma(x[m * K + k], w[n * K + k], chain);
                    sum += chain;
                }
                expect[m * N + n] += sum;
            }
    for (const char* isa : {"avx2", "avx512"}) {
        Cpu<float> k({2, isa});
        k.reserve(limits(M, {3, 1, 64}, K, N, 64));
        Floats y(M * N);
        k.linear(M, x.data(), weight(k, N, K, w), y.data());
        CHECK(y == expect);
    }
}

TEST_CASE("layers equal the reference") {
    for (const std::string& isa : instruction_sets())
        for (const int C : {576, 90}) {
            CAPTURE(isa);
            CAPTURE(C);
            const int N = 19;
            const Floats x = noise(N * C, 1), d = noise(N * C, 2), w = noise(C, 3), dy = noise(N * C, 4);
            Oracle ref;
            Cpu<float> k({2, isa});
            Floats x2(N * C), y(N * C), r(N), dx = d, again(N * C);
            Doubles x2d(N * C), yd(N * C), rd(N), dxd = wide(d);
            ref.add_rmsnorm(N, C, 1e-5, wide(x).data(), wide(d).data(), wide(w).data(), x2d.data(), yd.data(), C,
                            rd.data());
            ref.rmsnorm_backward(N, C, wide(dy).data(), wide(x).data(), wide(w).data(), rd.data(), dxd.data(), C, true);
            k.add_rmsnorm(N, C, 1e-5, x.data(), d.data(), w.data(), x2.data(), y.data(), C, r.data());
            CHECK(error(x2, x2d) <= 1e-6);
            CHECK(error(y, yd) <= 1e-6);
            CHECK(error(r, rd) <= 1e-6);
            k.normalize(N, C, x2.data(), w.data(), r.data(), again.data(), C);
            CHECK(again == y);
            Floats apart(N * (C + 3), 7);  // rows further apart, and nothing between them
            k.normalize(N, C, x2.data(), w.data(), r.data(), apart.data(), C + 3);
            for (int i = 0; i < N * (C + 3); ++i)
                CHECK(apart[i] == (i % (C + 3) < C ? y[i / (C + 3) * C + i % (C + 3)] : 7));
            Floats rf(rd.begin(), rd.end());
            k.rmsnorm_backward(N, C, dy.data(), x.data(), w.data(), rf.data(), dx.data(), C, true);
            CHECK(error(dx, dxd) <= 1e-6);
            Floats fresh(N * C, NAN);
            Doubles fresh_want(N * C);
            k.rmsnorm_backward(N, C, dy.data(), x.data(), w.data(), rf.data(), fresh.data(), C, false);
            ref.rmsnorm_backward(N, C, wide(dy).data(), wide(x).data(), wide(w).data(), rd.data(), fresh_want.data(), C,
                                 false);
            CHECK(error(fresh, fresh_want) <= 1e-6);
            // In place, as the model calls it.
            Floats px = x, pd = d;
            k.add_rmsnorm(N, C, 1e-5, px.data(), pd.data(), w.data(), px.data(), pd.data(), C, r.data());
            CHECK((px == x2 && pd == y));

            const Floats gu = noise(N * 2 * C, 5, 4);
            Floats h(N * C), dgu = gu;
            Doubles hd(N * C), dgud = wide(gu);
            k.swiglu(N, C, gu.data(), h.data());
            k.swiglu_backward(N, C, dy.data(), dgu.data(), nullptr);
            ref.swiglu(N, C, wide(gu).data(), hd.data());
            ref.swiglu_backward(N, C, wide(dy).data(), dgud.data(), nullptr);
            CHECK(error(h, hd) <= 1e-6);
            Floats again_gu = gu, h_over_dh = dy;
            k.swiglu_backward(N, C, h_over_dh.data(), again_gu.data(), h_over_dh.data());
            CHECK((again_gu == dgu && h_over_dh == h));
            CHECK(error(dgu, dgud) <= 1e-6);
        }
}

TEST_CASE("swiglu at the ends of the range, and a NaN that stays one") {
    for (const std::string& isa : instruction_sets()) {
        Cpu<float> k({1, isa});
        const float inf = INFINITY, nan = NAN;
        const Floats gu = {-200, 200, -88.5f, 0, nan, 1, 1, -inf, 1, 1, 1, 1, 1, nan, inf, 1};
        Floats h(8);
        k.swiglu(1, 8, gu.data(), h.data());
        CHECK(h[0] == doctest::Approx(0));
        CHECK(h[1] == 200);
        CHECK(std::abs(h[2]) <= 1e-30);
        CHECK(h[3] == 0);
        CHECK(std::isnan(h[4]));
        CHECK(std::isnan(h[5]));
        CHECK(h[6] == inf);
    }
}

TEST_CASE("rope, dropout, embedding and decoding equal the reference") {
    const HeadShape shape{6, 2, 64};
    const int V = 70, C = 80, capacity = 60;
    const MicroBatch mb = pairs_of({{5, 7, 9}, {3, 20, 1}}, V);
    const int N = static_cast<int>(mb.ids.size()), W = shape.width();
    const Floats qkv = noise(N * W, 1), E = noise(V * C, 2), x = noise(N * C, 3), y0 = noise(N * C, 4);
    const Floats cache = noise(4LL * capacity * 2 * shape.KV * shape.HS, 8);
    for (const std::string& isa : instruction_sets()) {
        CAPTURE(isa);
        Oracle ref;
        Cpu<float> k({2, isa});
        k.reserve(limits(N, shape, C, C, V));
        const auto rb = batch_of(ref, mb);
        const auto b = batch_of(k, mb);
        for (const int sign : {1, -1}) {
            Floats got = qkv;
            Doubles want = wide(qkv);
            k.rope(b, shape, rope_table<float>(64, 64, 10000).data(), sign, got.data());
            ref.rope(rb, shape, rope_table<double>(64, 64, 10000).data(), sign, want.data());
            CHECK(error(got, want) <= 1e-6);
        }
        Floats got(N * C, kSentinel), added = y0;
        Doubles want(N * C, kSentinel), added_want = wide(y0);
        k.dropout(b, 2, N - 3, C, 0.3, 9, x.data(), got.data());
        k.dropout_add(b, 2, N - 3, C, 0.3, 9, x.data(), added.data());
        ref.dropout(rb, 2, N - 3, C, 0.3, 9, wide(x).data(), want.data());
        ref.dropout_add(rb, 2, N - 3, C, 0.3, 9, wide(x).data(), added_want.data());
        CHECK(error(got, want) <= 1e-6);
        CHECK(error(added, added_want) <= 1e-6);

        Floats rows(N * C);
        k.embed(b, weight(k, V, C, E), rows.data());
        for (int n = 0; n < N; ++n) CHECK(std::memcmp(&rows[n * C], &E[mb.ids[n] * C], C * 4) == 0);

        // One new row for each of the two sequences of the batch: rows 11 and 24 are alone in a batch of their own.
        MicroBatch step = pairs_of({{1, 0, 0}, {1, 0, 0}}, V);
        step.heads.clear();
        for (auto& p : step.pairs) p.first_head = 0, p.heads = 0;
        step.positions = {41, 7};
        const auto sb = batch_of(k, step);
        const auto rsb = batch_of(ref, step);
        Floats kept = cache, o(2 * shape.H * shape.HS);
        Doubles kept_want = wide(cache), o_want(o.size());
        k.cache_append(sb, shape, capacity, qkv.data(), kept.data());
        ref.cache_append(rsb, shape, capacity, wide(qkv).data(), kept_want.data());
        CHECK(error(kept, kept_want) == 0);
        // The same rows with rope and append, into the cache as it was.
        Floats turned = qkv;
        Doubles turned_want = wide(qkv);
        kept = cache, kept_want = wide(cache);
        k.decode_attention(sb, shape, capacity, rope_table<float>(64, shape.HS, 10000).data(), turned.data(),
                           kept.data(), o.data());
        ref.decode_attention(rsb, shape, capacity, rope_table<double>(64, shape.HS, 10000).data(), turned_want.data(),
                             kept_want.data(), o_want.data());
        CHECK(error(kept, kept_want) <= 1e-6);
        CHECK(error(o, o_want) <= 2e-6);
    }
}

TEST_CASE("attention equals the reference, for any threads and in any company") {
    const std::vector<std::array<int, 3>> lengths = {{40, 75, 90}, {1, 1, 1}, {33, 31, 0}, {0, 20, 0}, {64, 3, 130}};
    for (const HeadShape& shape : {HeadShape{6, 2, 64}, HeadShape{2, 2, 48}})
        for (const std::string& isa : instruction_sets()) {
            CAPTURE(isa);
            CAPTURE(shape.HS);
            const MicroBatch mb = pairs_of(lengths, 50);
            const int N = static_cast<int>(mb.ids.size()), W = shape.width(), O = shape.H * shape.HS;
            const Floats qkv = noise(int64_t{N} * W, 1, 1.5), d_o = noise(int64_t{N} * O, 2);
            Oracle ref;
            const auto rb = batch_of(ref, mb);
            Doubles od(N * O), lsed(N * shape.H), dqkvd(N * W);
            ref.attention(rb, shape, wide(qkv).data(), od.data(), lsed.data());
            ref.attention_backward(rb, shape, wide(qkv).data(), od.data(), lsed.data(), wide(d_o).data(), dqkvd.data());
            Floats first_o, first_dqkv;
            for (const int threads : {1, 2, 3}) {
                Cpu<float> k({threads, isa});
                k.reserve(limits(N, shape, 64, 64, 64));
                const auto b = batch_of(k, mb);
                Floats o(N * O, NAN), lse(N * shape.H, NAN), dqkv(N * W, NAN);
                k.attention(b, shape, qkv.data(), o.data(), lse.data());
                k.attention_backward(b, shape, qkv.data(), o.data(), lse.data(), d_o.data(), dqkv.data());
                CHECK(error(o, od) <= 1e-6);
                CHECK(error(lse, lsed) <= 1e-6);
                CHECK(error(dqkv, dqkvd) <= 2e-6);
                if (threads == 1) first_o = o, first_dqkv = dqkv;
                CHECK(o == first_o);
                CHECK(dqkv == first_dqkv);
            }
            // The last pair alone.
            Cpu<float> k({2, isa});
            const PairSpan& p = mb.pairs.back();
            const int rows = p.end - p.begin;
            k.reserve(limits(rows, shape, 64, 64, 64));
            const MicroBatch one = pairs_of({lengths.back()}, 50);
            const auto b = batch_of(k, one);
            Floats o(rows * O), lse(rows * shape.H), dqkv(rows * W);
            k.attention(b, shape, qkv.data() + p.begin * W, o.data(), lse.data());
            k.attention_backward(b, shape, qkv.data() + p.begin * W, o.data(), lse.data(), d_o.data() + p.begin * O,
                                 dqkv.data());
            CHECK(std::memcmp(o.data(), first_o.data() + p.begin * O, o.size() * 4) == 0);
            CHECK(std::memcmp(dqkv.data(), first_dqkv.data() + p.begin * W, dqkv.size() * 4) == 0);
        }
}

TEST_CASE("the head equals the reference, also for confident tokens; scatter, orpo and logits") {
    const HeadShape shape{2, 1, 64};
    const int V = 1000, C = 70;
    const MicroBatch mb = pairs_of({{9, 12, 15}, {4, 3, 8}}, V);
    const int N = static_cast<int>(mb.ids.size()), rows = static_cast<int>(mb.heads.size());
    Floats w = noise(V * C, 1, 0.3), n = noise(N * C, 2);
    // Row 3 is all but sure of its target, row 5 all but sure of another token.
    for (int c = 0; c < C; ++c) n[mb.heads[3].row * C + c] = 4 * w[mb.heads[3].target * C + c];
    for (int c = 0; c < C; ++c) n[mb.heads[5].row * C + c] = 6 * w[(mb.heads[5].target + 1) % V * C + c];
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    ref.reserve(limits(N, shape, C, C, V));
    Doubles logp_want(rows), U_want(rows * C), c_want(rows), dn_want(N * C), z_want(int64_t{rows} * V);
    const Doubles wd = wide(w), nd = wide(n);
    ref.head(rb, C, nd.data(), {V, C, wd.data()}, logp_want.data(), U_want.data());
    ref.orpo(rb, logp_want.data(), c_want.data());
    ref.scatter_scaled(rb, C, U_want.data(), c_want.data(), dn_want.data());
    ref.logits(rb, C, nd.data(), {V, C, wd.data()}, z_want.data());
    CHECK(logp_want[3] > -1e-3);  // the case is what it says
    for (const std::string& isa : instruction_sets()) {
        CAPTURE(isa);
        Doubles first;
        for (const int threads : {1, 2, 3}) {
            Cpu<float> k({threads, isa});
            k.reserve(limits(N, shape, C, C, V));
            const auto b = batch_of(k, mb);
            const auto W = weight(k, V, C, w);
            Doubles logp(rows), eval(rows), c(rows);
            Floats U(rows * C, NAN), dn(N * C), z(int64_t{rows} * V);
            k.head(b, C, n.data(), W, logp.data(), U.data());
            k.head(b, C, n.data(), W, eval.data(), nullptr);
            CHECK(eval == logp);
            for (int i = 0; i < rows; ++i) {
                CAPTURE(i);
                CHECK(std::abs(logp[i] - logp_want[i]) <= 1e-5 * std::abs(logp_want[i]) + 1e-12);
                const Floats row(U.begin() + i * C, U.begin() + (i + 1) * C);
                CHECK(error(row, Doubles(U_want.begin() + i * C, U_want.begin() + (i + 1) * C)) <= 2e-5);
            }
            CHECK(error(U, U_want) <= 2e-6);
            k.orpo(b, logp.data(), c.data());
            k.scatter_scaled(b, C, U.data(), c.data(), dn.data());
            k.logits(b, C, n.data(), W, z.data());
            CHECK(error(c, c_want) <= 1e-5);
            CHECK(error(dn, dn_want) <= 1e-5);
            CHECK(error(z, z_want) <= 1e-6);
            if (threads == 1) first = logp;
            CHECK(logp == first);
        }
    }
}

TEST_CASE("the head over a vocabulary of several parts") {
    const HeadShape shape{2, 1, 64};
    const int V = 2 * int{cpu::kHeadPart} + 6, C = 38;
    const MicroBatch mb = pairs_of({{9, 12, 15}, {4, 3, 8}}, V);
    const int N = static_cast<int>(mb.ids.size()), rows = static_cast<int>(mb.heads.size());
    const Floats w = noise(int64_t{V} * C, 1, 0.3);
    Floats n = noise(N * C, 2);
    for (int c = 0; c < C; ++c) n[mb.heads[3].row * C + c] = 9 * w[int64_t{mb.heads[3].target} * C + c];
    for (int c = 0; c < C; ++c) n[mb.heads[5].row * C + c] = 20 * w[int64_t{V - 2} * C + c];
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    ref.reserve(limits(N, shape, C, C, V));
    Doubles logp_want(rows), U_want(rows * C);
    const Doubles wd = wide(w), nd = wide(n);
    ref.head(rb, C, nd.data(), {V, C, wd.data()}, logp_want.data(), U_want.data());
    for (const std::string& isa : instruction_sets()) {
        CAPTURE(isa);
        Doubles first;
        Floats first_U;
        for (const int threads : {1, 3}) {
            Cpu<float> k({threads, isa});
            k.reserve(limits(N, shape, C, C, V));
            const auto b = batch_of(k, mb);
            const auto W = weight(k, V, C, w);
            Doubles logp(rows);
            Floats U(rows * C, NAN);
            k.head(b, C, n.data(), W, logp.data(), U.data());
            for (int i = 0; i < rows; ++i) {
                CAPTURE(i);
                CHECK(std::abs(logp[i] - logp_want[i]) <= 1e-5 * std::abs(logp_want[i]) + 1e-12);
                const Floats row(U.begin() + i * C, U.begin() + (i + 1) * C);
                CHECK(error(row, Doubles(U_want.begin() + i * C, U_want.begin() + (i + 1) * C)) <= 2e-5);
            }
            if (threads == 1) first = logp, first_U = U;
            CHECK(logp == first);
            CHECK(std::memcmp(U.data(), first_U.data(), U.size() * 4) == 0);
        }
    }
}

TEST_CASE("AdamW and the squared norm equal the reference over 20 steps") {
    const int slots = 3;
    const int64_t n = 40001;
    for (const std::string& isa : instruction_sets()) {
        CAPTURE(isa);
        Cpu<float> k({2, isa});
        Oracle ref;
        Floats p = noise(slots * n, 1), m(slots * n), v(slots * n);
        Doubles pd = wide(p), md(slots * n), vd(slots * n);
        const Floats start = p;
        for (int t = 1; t <= 20; ++t) {
            const Floats g = noise(slots * n, 100 + t, 0.01);
            std::vector<AdamwSlot> slot(slots);
            for (int s = 0; s < slots; ++s)
                slot[s] = {1e-3 * (s + 1),         0.9, 0.999, 1e-8, 0.1 * s, 1 - std::pow(0.9, t),
                           1 - std::pow(0.999, t), 0.5, s != 1};
            k.adamw(slots, n, slot.data(), p.data(), g.data(), m.data(), v.data());
            ref.adamw(slots, n, slot.data(), pd.data(), wide(g).data(), md.data(), vd.data());
            Doubles got(slots), want(slots);
            k.squared_norms(slots, n, g.data(), got.data());
            ref.squared_norms(slots, n, wide(g).data(), want.data());
            CHECK(error(got, want) <= 1e-12);
        }
        CHECK(error(p, pd) <= 1e-6);
        CHECK(error(m, md) <= 1e-6);
        CHECK(error(v, vd) <= 1e-6);
        CHECK(std::equal(p.begin() + n, p.begin() + 2 * n, start.begin() + n));  // the slot that rests
    }
}

TEST_CASE("a plan lists what a real run allocates") {
    const auto build = [](bool planning) {
        CpuOptions options;
        options.threads = 2, options.planning = planning;
        Cpu<float> k(options);
        k.reserve(limits(100, {6, 2, 64}, 384, 1024, 5000));
        const Floats w = noise(300 * 20, 1);
        weight(k, 300, 20, w);
        k.allocate<float>(Category::kActivations, "x", 1000);
        k.make_batch(100, 3, 200);
        return k.memory().bytes();
    };
    CHECK(build(true) == build(false));
}

TEST_CASE("low-rank terms are added inside a linear, or behind it when they are too wide") {
    constexpr int N = LowRankCase::N, in = LowRankCase::in, out = LowRankCase::out;
    for (const std::string& isa : instruction_sets())
        for (const int R : {1, 16, 300}) {
            CAPTURE(isa);
            CAPTURE(R);
            const LowRankCase c(R, noise);
            Floats first_y, first_dx;
            for (const int threads : {1, 3}) {
                Cpu<float> k({threads, isa});
                k.reserve(limits(N, {3, 1, 64}, in, out, 64));
                const auto W = weight(k, out, in, c.w);
                Floats got_y(N * out), got_dx(N * in);
                k.linear(N, c.x.data(), W, got_y.data(), some_terms(N, out, R, c.S.data(), c.B.data(), false));
                k.linear_backward(N, c.dy.data(), W, got_dx.data(), some_terms(N, in, R, c.S.data(), c.B.data(), true));
                CHECK(error(got_y, c.y) <= 2e-6);
                CHECK(error(got_dx, c.dx) <= 2e-6);
                if (threads == 1) first_y = got_y, first_dx = got_dx;
                CHECK(got_y == first_y);
                CHECK(got_dx == first_dx);
            }
        }
}

TEST_CASE("an instruction set that does not exist is refused") {
    CHECK_THROWS_AS(select_isa("mmx"), Error);
    CHECK(physical_cores() >= 1);
}
