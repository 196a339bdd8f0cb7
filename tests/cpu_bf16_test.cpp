// bf16 products of the CPU backend: with operands that bf16 holds exactly they equal the reference as fp32 does.
#include <cstring>
#include <string>

#include "tests/cpu_kernels.h"

namespace orpo::cpu {
const Isa& emulated_amx_isa();  // tests/emulated_amx.cpp
}

using namespace orpo;

namespace {

Floats exact_noise(int64_t n, uint64_t key, double scale = 1) {
    Floats x = noise(n, key, scale);
    for (float& v : x) {
        uint32_t bits;
        std::memcpy(&bits, &v, 4);
        bits &= 0xFFFF0000u;
        std::memcpy(&v, &bits, 4);
    }
    return x;
}

// Empty where the processor has no bf16 products at all: the emulated tiles need AVX512-BF16 around them.
std::vector<CpuOptions> bf16_backends() {
    std::vector<CpuOptions> all;
    for (const char* name : {"avx512_bf16", "emulated amx", "amx"}) {
        CpuOptions options;
        options.dtype = CpuDtype::kBf16;
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

TEST_CASE("bf16 products equal the reference on operands that bf16 holds, for any threads and rows") {
    const std::vector<std::array<int, 3>> shapes = {{1, 64, 48},
                                                    {7, 100, 33},
                                                    {45, 17, 700},
                                                    {130, 96, 1300},
                                                    {33, 48, 576},
                                                    {20, 70, 3001},
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
            const Floats c0 = noise(M * N, 4), wt = exact_noise(K * N, 5), xt = exact_noise(K * M, 6);
            Oracle ref;
            Doubles y(M * N), dx(M * K), nt = wide(c0), nn = wide(c0), tn = wide(c0);
            ref.linear(M, wide(x).data(), {N, K, wide(w).data()}, y.data());
            ref.linear_backward(M, wide(dy).data(), {N, K, wide(w).data()}, dx.data());
            ref.gemm_nt(M, N, K, 0.5, wide(x).data(), K, wide(w).data(), K, nt.data(), N, true);
            ref.gemm_nn(M, N, K, 0.5, wide(x).data(), K, wide(wt).data(), N, nn.data(), N, true);
            ref.gemm_tn(M, N, K, wide(xt).data(), M, wide(wt).data(), N, tn.data(), N);
            Floats first_y, first_dx, first_tn;
            for (const int threads : {1, 2, 3}) {
                options.threads = threads;
                Cpu k(options);
                k.reserve(limits(M, {3, 1, 64}, std::max(K, N), N, 64));
                const Cpu::Weight W = weight(k, N, K, w);
                Floats got_y(M * N + 1, kSentinel), got_dx(M * K + 1, kSentinel);
                Floats got_nt = c0, got_nn = c0, got_tn = c0;
                k.linear(M, x.data(), W, got_y.data());
                k.linear_backward(M, dy.data(), W, got_dx.data());
                CHECK((got_y.back() == kSentinel && got_dx.back() == kSentinel));
                got_y.pop_back(), got_dx.pop_back();
                k.gemm_nt(M, N, K, 0.5, x.data(), K, w.data(), K, got_nt.data(), N, true);
                k.gemm_nn(M, N, K, 0.5, x.data(), K, wt.data(), N, got_nn.data(), N, true);
                k.gemm_tn(M, N, K, xt.data(), M, wt.data(), N, got_tn.data(), N);
                CHECK(error(got_y, y) <= 3e-6);
                CHECK(error(got_dx, dx) <= 3e-6);
                CHECK(error(got_nt, nt) <= 3e-6);
                CHECK(error(got_nn, nn) <= 3e-6);
                CHECK(error(got_tn, tn) <= 3e-6);
                if (threads == 1) {
                    first_y = got_y, first_dx = got_dx, first_tn = got_tn;
                    Floats alone(N), alone_dx(K);
                    k.linear(1, x.data() + (M - 1) * K, W, alone.data());
                    k.linear_backward(1, dy.data() + (M - 1) * N, W, alone_dx.data());
                    CHECK(std::memcmp(alone.data(), got_y.data() + (M - 1) * N, N * 4) == 0);
                    CHECK(std::memcmp(alone_dx.data(), got_dx.data() + (M - 1) * K, K * 4) == 0);
                }
                CHECK(got_y == first_y);
                CHECK(got_dx == first_dx);
                CHECK(got_tn == first_tn);
            }
        }
}

TEST_CASE("the bf16 head, embedding and plain rounding of fp32 operands") {
    const int V = 1000, C = 70;
    const MicroBatch mb = pairs_of({{9, 12, 15}, {4, 3, 8}}, V);
    const int N = static_cast<int>(mb.ids.size()), rows = static_cast<int>(mb.heads.size());
    const Floats w = exact_noise(V * C, 1, 0.3), n = exact_noise(N * C, 2), rough = noise(N * C, 3);
    Oracle ref;
    const auto rb = batch_of(ref, mb);
    ref.reserve(limits(N, {2, 1, 64}, C, C, V));
    Doubles logp_want(rows), U_want(rows * C), y_want(int64_t{N} * V);
    const Doubles wd = wide(w);
    ref.head(rb, C, wide(n).data(), {V, C, wd.data()}, logp_want.data(), U_want.data());
    ref.linear(N, wide(rough).data(), {V, C, wd.data()}, y_want.data());
    for (CpuOptions options : bf16_backends()) {
        CAPTURE(options.isa);
        options.threads = 2;
        Cpu k(options);
        k.reserve(limits(N, {2, 1, 64}, C, C, V));
        const auto b = batch_of(k, mb);
        const auto W = weight(k, V, C, w);
        Doubles logp(rows), eval(rows);
        Floats U(rows * C, NAN), y(int64_t{N} * V), x(N * C);
        k.head(b, C, n.data(), W, logp.data(), U.data());
        k.head(b, C, n.data(), W, eval.data(), nullptr);
        CHECK(eval == logp);
        CHECK(error(logp, logp_want) <= 1e-6);
        CHECK(error(U, U_want) <= 4e-3);
        k.linear(N, rough.data(), W, y.data());
        const double rounding = error(y, y_want);
        CHECK(rounding <= 4e-3);
        CHECK(rounding >= 1e-4);  // it is bf16 indeed
        k.embed(b, W, x.data());
        for (int i = 0; i < N; ++i) CHECK(std::memcmp(&x[i * C], &w[mb.ids[i] * C], C * 4) == 0);
    }
}

TEST_CASE("bf16 attention follows the reference, for any threads and in any company") {
    const std::vector<std::array<int, 3>> lengths = {{40, 75, 90}, {1, 1, 1}, {33, 31, 0}, {0, 20, 0}, {64, 3, 130}};
    for (const HeadShape& shape : {HeadShape{6, 2, 64}, HeadShape{2, 2, 48}})
        for (CpuOptions options : bf16_backends()) {
            CAPTURE(shape.HS);
            const MicroBatch mb = pairs_of(lengths, 50);
            const int N = static_cast<int>(mb.ids.size()), W = shape.width(), O = shape.H * shape.HS;
            const Floats qkv = exact_noise(int64_t{N} * W, 1, 1.5), d_o = exact_noise(int64_t{N} * O, 2);
            Oracle ref;
            const auto rb = batch_of(ref, mb);
            Doubles od(N * O), lsed(N * shape.H), dqkvd(N * W);
            ref.attention(rb, shape, wide(qkv).data(), od.data(), lsed.data());
            ref.attention_backward(rb, shape, wide(qkv).data(), od.data(), lsed.data(), wide(d_o).data(), dqkvd.data());
            Floats first_o, first_dqkv;
            for (const int threads : {1, 2, 3}) {
                options.threads = threads;
                Cpu k(options);
                k.reserve(limits(N, shape, 64, 64, 64));
                const auto b = batch_of(k, mb);
                Floats o(N * O, NAN), lse(N * shape.H, NAN), dqkv(N * W, NAN);
                k.attention(b, shape, qkv.data(), o.data(), lse.data());
                k.attention_backward(b, shape, qkv.data(), o.data(), lse.data(), d_o.data(), dqkv.data());
                CHECK(error(o, od) <= 4e-3);
                CHECK(error(lse, lsed) <= 1e-3);  // 1 / sqrt(48) rounds q; for 64 it is exact
                CHECK(error(dqkv, dqkvd) <= 6e-3);
                // q, k and v apart, for their sizes differ.
                for (const auto& [from, to] : {std::pair{0, shape.H},
                                               {shape.H, shape.H + shape.KV},
                                               {shape.H + shape.KV, shape.H + 2 * shape.KV}}) {
                    Floats got;
                    Doubles want;
                    for (int n = 0; n < N; ++n)
                        for (int c = from * shape.HS; c < to * shape.HS; ++c)
                            got.push_back(dqkv[n * W + c]), want.push_back(dqkvd[n * W + c]);
                    CHECK(error(got, want) <= 8e-3);
                }
                if (threads == 1) first_o = o, first_dqkv = dqkv;
                CHECK(o == first_o);
                CHECK(dqkv == first_dqkv);
            }
            options.threads = 2;
            Cpu k(options);
            const PairSpan& p = mb.pairs.back();
            const int rows = p.end - p.begin;
            k.reserve(limits(rows, shape, 64, 64, 64));
            const auto b = batch_of(k, pairs_of({lengths.back()}, 50));
            Floats o(rows * O), lse(rows * shape.H), dqkv(rows * W);
            k.attention(b, shape, qkv.data() + p.begin * W, o.data(), lse.data());
            k.attention_backward(b, shape, qkv.data() + p.begin * W, o.data(), lse.data(), d_o.data() + p.begin * O,
                                 dqkv.data());
            CHECK(std::memcmp(o.data(), first_o.data() + p.begin * O, o.size() * 4) == 0);
            CHECK(std::memcmp(dqkv.data(), first_dqkv.data() + p.begin * W, dqkv.size() * 4) == 0);
        }
}
