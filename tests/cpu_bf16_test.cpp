// The CPU backend on bf16 storage, in every instruction set that this processor has and on emulated tiles, against the
// reference in double: what is summed in fp32 to fp32's precision, what is stored as bf16 to its rounding.
#include <cstring>
#include <string>

#include "kernels/rope_table.h"
#include "model/dequant.h"
#include "tests/cpu_kernels.h"

namespace orpo::cpu {
const Isa& emulated_amx_isa();  // tests/emulated_amx.cpp
}

using namespace orpo;

namespace {

using Halves = std::vector<bf16>;

Halves halves(const Floats& x) {
    Halves out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i].bits = float_to_bf16(x[i]);
    return out;
}
Floats floats(const Halves& x) {
    Floats out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = bf16_to_float(x[i].bits);
    return out;
}
Floats exact_noise(int64_t n, uint64_t key, double scale = 1) { return floats(halves(noise(n, key, scale))); }
const bf16 kNan{0x7fc0};
constexpr double kRounding = 2.5e-3;  // of numbers stored as bf16: at most 2^-9 = 2e-3 each

bool same(const Halves& a, const Halves& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 2) == 0;
}

// Empty where the processor has no bf16 products at all: the emulated tiles need AVX512-BF16 around them.
std::vector<CpuOptions> bf16_backends() {
    std::vector<CpuOptions> all;
    for (const char* name : {"avx512_bf16", "emulated amx", "amx"}) {
        CpuOptions options;
        try {
            if (std::string(name) == "emulated amx") {
                select_isa("avx512_bf16");
                options.table = &cpu::emulated_amx_isa();
            } else {
                select_isa(name);
                options.isa = name;
            }
            all.push_back(options);
        } catch (const Error&) {
            MESSAGE("skipped: this processor has no " << std::string(name));
        }
    }
    return all;
}

}  // namespace

TEST_CASE("bf16 products equal the reference, for any threads and rows") {
    const std::vector<std::array<int, 3>> shapes = {{1, 64, 48},
                                                    {7, 100, 33},
                                                    {45, 17, 700},
                                                    {130, 96, 1300},
                                                    {33, 48, 576},
                                                    {20, 70, 3001},
                                                    {40, 1400, 1300},  // sums of K wait for 640 columns at a time
                                                    // few features, where C is walked along its rows
                                                    {70, 1300, 16},
                                                    {33, 2500, 48},
                                                    {16, 40, 64},
                                                    {48, 100, 65}};
    for (CpuOptions options : bf16_backends())
        for (const auto& shape : shapes) {
            const int M = shape[0], N = shape[1], K = shape[2];
            CAPTURE(options.isa);
            CAPTURE(M);
            CAPTURE(N);
            CAPTURE(K);
            const Floats x = exact_noise(M * K, 1), w = exact_noise(N * K, 2), dy = exact_noise(M * N, 3);
            const Floats c0 = exact_noise(M * N, 4), wt = exact_noise(K * N, 5), xt = exact_noise(K * M, 6);
            const Floats sums0 = noise(M * N, 7);
            Oracle ref;
            Doubles y(M * N), dx(M * K), nt = wide(c0), nn = wide(c0), tn = wide(sums0);
            ref.linear(M, wide(x).data(), {N, K, wide(w).data()}, y.data());
            ref.linear_backward(M, wide(dy).data(), {N, K, wide(w).data()}, dx.data());
            ref.gemm_nt(M, N, K, 0.5, wide(x).data(), K, wide(w).data(), K, nt.data(), N, true);
            ref.gemm_nn(M, N, K, 0.5, wide(x).data(), K, wide(wt).data(), N, nn.data(), N, true);
            ref.gemm_tn(M, N, K, wide(xt).data(), M, wide(wt).data(), N, tn.data(), N);
            const Halves xh = halves(x), wh = halves(w), dyh = halves(dy), wth = halves(wt), xth = halves(xt);
            MicroBatch rows;  // logits: the same product, in fp32
            rows.ids.assign(M, 0), rows.positions.assign(M, 0), rows.heads.resize(M);
            PairSpan span;
            span.chosen = 0, span.rejected = span.end = M, span.heads = M;
            rows.pairs = {span};
            for (int i = 0; i < M; ++i) rows.heads[i].row = i;
            Halves first_y, first_dx;
            Floats first_tn;
            for (const int threads : {1, 2, 3}) {
                options.threads = threads;
                Cpu<bf16> k(options);
                k.reserve(limits(M, {3, 1, 64}, std::max(K, N), N, 64));
                const Cpu<bf16>::Weight W = weight(k, N, K, w);
                Halves got_y(M * N + 1, kNan), got_dx(M * K + 1, kNan), got_nt = halves(c0), got_nn = halves(c0);
                Floats got_tn = sums0, full(M * N);
                k.linear(M, xh.data(), W, got_y.data());
                k.linear_backward(M, dyh.data(), W, got_dx.data());
                CHECK((got_y.back().bits == kNan.bits && got_dx.back().bits == kNan.bits));
                got_y.pop_back(), got_dx.pop_back();
                k.gemm_nt(M, N, K, 0.5, xh.data(), K, wh.data(), K, got_nt.data(), N, true);
                k.gemm_nn(M, N, K, 0.5, xh.data(), K, wth.data(), N, got_nn.data(), N, true);
                k.gemm_tn(M, N, K, xth.data(), M, wth.data(), N, got_tn.data(), N);
                k.logits(batch_of(k, rows), K, xh.data(), W, full.data());
                CHECK(error(full, y) <= 3e-6);
                CHECK(error(got_tn, tn) <= 3e-6);
                CHECK(same(got_y, halves(full)));  // rounded once, when the sum is whole
                CHECK(error(floats(got_dx), dx) <= kRounding);
                CHECK(error(floats(got_nt), nt) <= kRounding);
                CHECK(error(floats(got_nn), nn) <= kRounding);
                if (threads == 1) {
                    first_y = got_y, first_dx = got_dx, first_tn = got_tn;
                    Halves alone(K);
                    k.linear_backward(1, dyh.data() + (M - 1) * N, W, alone.data());
                    CHECK(std::memcmp(alone.data(), got_dx.data() + (M - 1) * K, K * 2) == 0);
                }
                CHECK(same(got_y, first_y));
                CHECK(same(got_dx, first_dx));
                CHECK(got_tn == first_tn);
            }
        }
}

TEST_CASE("bf16: low-rank terms are added before a linear is rounded") {
    constexpr int N = LowRankCase::N, in = LowRankCase::in, out = LowRankCase::out;
    for (CpuOptions options : bf16_backends())
        for (const int R : {1, 16, 700}) {
            CAPTURE(options.isa);
            CAPTURE(R);
            const LowRankCase c(R, exact_noise);
            const Halves Sh = halves(c.S), Bh = halves(c.B);
            Halves first_y, first_dx;
            for (const int threads : {1, 3}) {
                options.threads = threads;
                Cpu<bf16> k(options);
                k.reserve(limits(N, {3, 1, 64}, in, out, 64));
                const auto W = weight(k, out, in, c.w);
                Halves got_y(N * out, kNan), got_dx(N * in, kNan);
                k.linear(N, halves(c.x).data(), W, got_y.data(), some_terms(N, out, R, Sh.data(), Bh.data(), false));
                k.linear_backward(N, halves(c.dy).data(), W, got_dx.data(),
                                  some_terms(N, in, R, Sh.data(), Bh.data(), true));
                CHECK(error(floats(got_y), c.y) <= kRounding);
                CHECK(error(floats(got_dx), c.dx) <= kRounding);
                if (threads == 1) first_y = got_y, first_dx = got_dx;
                CHECK(same(got_y, first_y));
                CHECK(same(got_dx, first_dx));
            }
        }
}

TEST_CASE("bf16: the head, the embedding and what follows from them") {
    const int V = 1000, C = 70;
    const MicroBatch mb = pairs_of({{9, 12, 15}, {4, 3, 8}}, V);
    const int N = static_cast<int>(mb.ids.size()), rows = static_cast<int>(mb.heads.size());
    const Floats w = exact_noise(V * C, 1, 0.3), n = exact_noise(N * C, 2);
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    ref.reserve(limits(N, {2, 1, 64}, C, C, V));
    Doubles logp_want(rows), U_want(rows * C), dn_want(N * C), factors(rows);
    const Doubles wd = wide(w);
    ref.head(rb, C, wide(n).data(), {V, C, wd.data()}, logp_want.data(), U_want.data());
    for (int i = 0; i < rows; ++i) factors[i] = 0.01 * (i + 1);
    ref.scatter_scaled(rb, C, U_want.data(), factors.data(), dn_want.data());
    for (CpuOptions options : bf16_backends()) {
        CAPTURE(options.isa);
        options.threads = 2;
        Cpu<bf16> k(options);
        k.reserve(limits(N, {2, 1, 64}, C, C, V));
        const auto b = batch_of(k, mb);
        const auto W = weight(k, V, C, w);
        Doubles logp(rows), eval(rows);
        Halves U(rows * C, kNan), x(N * C, kNan), dn(N * C, kNan);
        k.head(b, C, halves(n).data(), W, logp.data(), U.data());
        k.head(b, C, halves(n).data(), W, eval.data(), nullptr);
        CHECK(eval == logp);
        CHECK(error(logp, logp_want) <= 1e-6);
        CHECK(error(floats(U), U_want) <= 4e-3);
        k.scatter_scaled(b, C, U.data(), factors.data(), dn.data());
        CHECK(error(floats(dn), dn_want) <= 6e-3);
        k.embed(b, W, x.data());
        const Halves table = halves(w);
        for (int i = 0; i < N; ++i) CHECK(std::memcmp(&x[i * C], &table[mb.ids[i] * C], C * 2) == 0);
    }
}

TEST_CASE("bf16: a vocabulary of several parts, and scores that rise far above those before them") {
    const int V = 2 * int{cpu::kHeadPart} + 6, C = 70;
    const MicroBatch mb = pairs_of({{9, 12, 15}, {4, 3, 8}}, V);
    const int N = static_cast<int>(mb.ids.size()), rows = static_cast<int>(mb.heads.size());
    const Floats w = exact_noise(int64_t{V} * C, 1, 0.3);
    Floats n = exact_noise(N * C, 2);
    // The scores of these words are about 100 and 190, of others tens at most: a late one of the first part, one of the
    // second, the last word, and a target.
    const std::array<std::pair<int, int>, 4> peaks = {
        {{2, 7000}, {7, int{cpu::kHeadPart} + 600}, {11, V - 1}, {20, mb.heads[20].target}}};
    for (const auto& [row, word] : peaks)
        for (int c = 0; c < C; ++c) n[mb.heads[row].row * C + c] = (row == 7 ? 32 : 16) * w[int64_t{word} * C + c];
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    ref.reserve(limits(N, {2, 1, 64}, C, C, V));
    Doubles logp_want(rows), U_want(rows * C);
    const Doubles wd = wide(w);
    ref.head(rb, C, wide(n).data(), {V, C, wd.data()}, logp_want.data(), U_want.data());
    CHECK(logp_want[2] < -80);
    CHECK(logp_want[20] > -1e-12);
    for (CpuOptions options : bf16_backends()) {
        CAPTURE(options.isa);
        Doubles first;
        Halves first_U;
        for (const int threads : {1, 3}) {
            options.threads = threads;
            Cpu<bf16> k(options);
            k.reserve(limits(N, {2, 1, 64}, C, C, V));
            const auto b = batch_of(k, mb);
            const auto W = weight(k, V, C, w);
            Doubles logp(rows), eval(rows);
            Halves U(rows * C, kNan);
            k.head(b, C, halves(n).data(), W, logp.data(), U.data());
            k.head(b, C, halves(n).data(), W, eval.data(), nullptr);
            CHECK(eval == logp);
            for (int i = 0; i < rows; ++i) {
                CAPTURE(i);
                if (i == 20) continue;  // 1 - p is less than what e^-87 is taken for
                CHECK(std::abs(logp[i] - logp_want[i]) <= 1e-5 * std::abs(logp_want[i]));
                const Halves row(U.begin() + i * C, U.begin() + (i + 1) * C);
                CHECK(error(floats(row), Doubles(U_want.begin() + i * C, U_want.begin() + (i + 1) * C)) <= 6e-3);
            }
            CHECK(logp[20] <= 0);
            CHECK(logp[20] > -1e-12);
            if (threads == 1) first = logp, first_U = U;
            CHECK(logp == first);
            CHECK(same(U, first_U));
        }
    }
}

TEST_CASE("bf16: norms, rope, swiglu and dropout are the reference's, rounded") {
    const int C = 100, I = 70;
    const HeadShape shape{3, 1, 48};
    const MicroBatch mb = pairs_of({{5, 9, 14}, {3, 1, 8}}, 50);
    const int N = static_cast<int>(mb.ids.size()), W = shape.width();
    const Floats x = exact_noise(N * C, 1), d = exact_noise(N * C, 2), low = exact_noise(N * C, 3, 1e-3);
    const Floats w = noise(C, 4), qkv = exact_noise(N * W, 5), gu = exact_noise(N * 2 * I, 6),
                 dh = exact_noise(N * I, 7);
    const Doubles wd = wide(w);
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    Doubles sum(N * C), y(N * C), r(N), dx = wide(d), h(N * I), dgu = wide(gu), turned = wide(qkv), masked(N * C);
    for (int i = 0; i < N * C; ++i) sum[i] = double(x[i]) + low[i] + d[i];
    ref.rmsnorm(N, C, 1e-5, sum.data(), wd.data(), y.data(), C, r.data());
    ref.rmsnorm_backward(N, C, wide(low).data(), wide(x).data(), wd.data(), r.data(), dx.data(), C, true);
    ref.swiglu(N, I, dgu.data(), h.data());
    ref.swiglu_backward(N, I, wide(dh).data(), dgu.data(), nullptr);
    const auto table = rope_table<float>(64, shape.HS, 1e4);
    const auto table_d = rope_table<double>(64, shape.HS, 1e4);
    ref.rope(rb, shape, table_d.data(), -1, turned.data());
    ref.dropout(rb, 2, N - 3, C, 0.3, 9, wide(x).data(), masked.data());
    for (CpuOptions options : bf16_backends()) {
        CAPTURE(options.isa);
        options.threads = 2;
        Cpu<bf16> k(options);
        const auto b = batch_of(k, mb);
        Halves x2 = halves(x), x_low = halves(low), got_y = halves(d);
        Floats got_r(N);
        k.add_rmsnorm(N, C, 1e-5, x2.data(), got_y.data(), w.data(), x2.data(), got_y.data(), C, got_r.data(),
                      x_low.data(), x_low.data());
        Floats whole(N * C);
        for (int i = 0; i < N * C; ++i) whole[i] = floats(x2)[i] + floats(x_low)[i];
        CHECK(error(whole, sum) <= 1e-5);  // 16 bits of mantissa in two parts
        CHECK(error(floats(x2), sum) <= kRounding);
        CHECK(error(got_r, r) <= 1e-5);
        CHECK(error(floats(got_y), y) <= kRounding);
        Halves plain(N * C), again(N * C), got_dx = halves(d), got_h(N * I), got_gu = halves(gu), got_qkv = halves(qkv);
        k.rmsnorm(N, C, 1e-5, x2.data(), w.data(), plain.data(), C, got_r.data());
        k.normalize(N, C, x2.data(), w.data(), got_r.data(), again.data(), C);
        CHECK(same(plain, again));
        CHECK(error(floats(plain), y) <= 2 * kRounding);
        Floats exact_r(r.begin(), r.end());
        k.rmsnorm_backward(N, C, halves(low).data(), halves(x).data(), w.data(), exact_r.data(), got_dx.data(), C,
                           true);
        CHECK(error(floats(got_dx), dx) <= kRounding);
        k.swiglu(N, I, got_gu.data(), got_h.data());
        Halves h_over_dh = halves(dh);
        k.swiglu_backward(N, I, h_over_dh.data(), got_gu.data(), h_over_dh.data());
        CHECK(error(floats(got_h), h) <= kRounding);
        CHECK(same(h_over_dh, got_h));
        CHECK(error(floats(got_gu), dgu) <= kRounding);
        k.rope(b, shape, table.data(), -1, got_qkv.data());
        CHECK(error(floats(got_qkv), turned) <= kRounding);
        Halves got_masked(N * C, bf16{0});
        k.dropout(b, 2, N - 3, C, 0.3, 9, halves(x).data(), got_masked.data());
        CHECK(error(floats(got_masked), masked) <= kRounding);
    }
}

TEST_CASE("bf16 attention follows the reference, for any threads and in any company") {
    const std::vector<std::array<int, 3>> lengths = {{40, 75, 90}, {1, 1, 1},    {33, 31, 0},
                                                     {0, 20, 0},   {64, 3, 130}, {70, 200, 40}};
    for (const HeadShape& shape : {HeadShape{6, 2, 64}, HeadShape{2, 2, 48}, HeadShape{2, 1, 96}})
        for (CpuOptions options : bf16_backends()) {
            CAPTURE(shape.HS);
            const MicroBatch mb = pairs_of(lengths, 50);
            const int N = static_cast<int>(mb.ids.size()), W = shape.width(), O = shape.H * shape.HS;
            const Floats qkv = exact_noise(int64_t{N} * W, 1, 1.5), d_o = exact_noise(int64_t{N} * O, 2);
            const Halves qkv_h = halves(qkv), d_o_h = halves(d_o);
            Oracle ref;
            const auto rb = batch_of(ref, mb);
            Doubles od(N * O), lsed(N * shape.H), dqkvd(N * W);
            ref.attention(rb, shape, wide(qkv).data(), od.data(), lsed.data());
            ref.attention_backward(rb, shape, wide(qkv).data(), od.data(), lsed.data(), wide(d_o).data(), dqkvd.data());
            Halves first_o, first_dqkv;
            for (const int threads : {1, 2, 3}) {
                options.threads = threads;
                Cpu<bf16> k(options);
                k.reserve(limits(N, shape, 64, 64, 64));
                const auto b = batch_of(k, mb);
                Halves o(N * O, kNan), dqkv(N * W, kNan);
                Floats lse(N * shape.H, NAN);
                k.attention(b, shape, qkv_h.data(), o.data(), lse.data());
                k.attention_backward(b, shape, qkv_h.data(), o.data(), lse.data(), d_o_h.data(), dqkv.data());
                CHECK(error(floats(o), od) <= 5e-3);
                CHECK(error(lse, lsed) <= 1e-5);
                // q, k and v apart, for their sizes differ.
                for (const auto& [from, to] : {std::pair{0, shape.H},
                                               {shape.H, shape.H + shape.KV},
                                               {shape.H + shape.KV, shape.H + 2 * shape.KV}}) {
                    Floats got;
                    Doubles want;
                    for (int n = 0; n < N; ++n)
                        for (int c = from * shape.HS; c < to * shape.HS; ++c)
                            got.push_back(bf16_to_float(dqkv[n * W + c].bits)), want.push_back(dqkvd[n * W + c]);
                    CHECK(error(got, want) <= 8e-3);
                }
                if (threads == 1) first_o = o, first_dqkv = dqkv;
                CHECK(same(o, first_o));
                CHECK(same(dqkv, first_dqkv));
            }
            options.threads = 2;
            Cpu<bf16> k(options);
            const PairSpan& p = mb.pairs.back();
            const int rows = p.end - p.begin;
            k.reserve(limits(rows, shape, 64, 64, 64));
            const auto b = batch_of(k, pairs_of({lengths.back()}, 50));
            Halves o(rows * O), dqkv(rows * W);
            Floats lse(rows * shape.H);
            k.attention(b, shape, qkv_h.data() + p.begin * W, o.data(), lse.data());
            k.attention_backward(b, shape, qkv_h.data() + p.begin * W, o.data(), lse.data(), d_o_h.data() + p.begin * O,
                                 dqkv.data());
            CHECK(std::memcmp(o.data(), first_o.data() + p.begin * O, o.size() * 2) == 0);
            CHECK(std::memcmp(dqkv.data(), first_dqkv.data() + p.begin * W, dqkv.size() * 2) == 0);
        }
}

TEST_CASE("bf16: a row over its cache, and casting") {
    const HeadShape shape{4, 2, 64};
    const int capacity = 40, cached = 37;
    MicroBatch mb;
    mb.ids = {1}, mb.positions = {cached - 1};
    PairSpan span;
    span.chosen = span.rejected = span.end = 1;
    mb.pairs = {span};
    const Floats qkv = exact_noise(shape.width(), 1), cache = exact_noise(capacity * 2 * shape.KV * shape.HS, 2);
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    Doubles want(shape.H * shape.HS), cache_want = wide(cache);
    ref.cache_append(rb, shape, capacity, wide(qkv).data(), cache_want.data());
    Doubles turned_want = wide(qkv), kept_want = wide(cache);
    ref.decode_attention(rb, shape, capacity, rope_table<double>(capacity, shape.HS, 10000).data(), turned_want.data(),
                         kept_want.data(), want.data());
    for (CpuOptions options : bf16_backends()) {
        Cpu<bf16> k(options);
        k.reserve(limits(capacity, shape, 64, 64, 64));
        const auto b = batch_of(k, mb);
        Halves kept = halves(cache), o(shape.H * shape.HS, kNan);
        k.cache_append(b, shape, capacity, halves(qkv).data(), kept.data());
        CHECK(error(floats(kept), cache_want) == 0);
        Halves turned = halves(qkv);
        kept = halves(cache);
        k.decode_attention(b, shape, capacity, rope_table<float>(capacity, shape.HS, 10000).data(), turned.data(),
                           kept.data(), o.data());
        CHECK(error(floats(kept), kept_want) <= kRounding);
        CHECK(error(floats(o), want) <= kRounding);
        const Floats rough = noise(1000, 3);
        Halves cast(1000, kNan);
        k.cast(1000, rough.data(), cast.data());
        CHECK(same(cast, halves(rough)));
    }
}
