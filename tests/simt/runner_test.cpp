// The runner itself: right kernels pass under every schedule, wrong ones are caught by at least one.
#include <doctest/doctest.h>

#include "kernels/cuda/device.cuh"

using namespace orpo;
using namespace orpo::cuda;

namespace {

// Sum over a block by a tree in shared memory. Barriers: bit 0 after the writes, bit 1 inside the tree.
template <int Barriers>
void block_sum(const float* x, float* out, int n) {
    struct Shared {
        float part[256];
    };
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x);
    s.part[t] = t < n ? x[t] : 0.0f;
    if (Barriers & 1) __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (t < half) s.part[t] += s.part[t + half];
        if (Barriers & 2) __syncthreads();
    }
    if (t == 0) *out = s.part[0];
}

template <int Barriers>
int schedules_that_agree() {
    simt::Guarded<float> x(std::vector<float>(200, 1.0f)), out(1);
    int right = 0;
    for (const simt::Schedule& schedule : simt::schedules()) {
        simt::machine().schedule = schedule;
        const float* xp = x.data();
        float* op = out.data();
        LAUNCH(block_sum<Barriers>, dim3(1), dim3(256), 256 * sizeof(float), nullptr, xp, op, 200);
        right += out[0] == 200.0f;
    }
    CHECK(x.intact());
    CHECK(out.intact());
    return right;
}

template <bool Wait>
void copy_tile(const float* x, float* y) {
    struct Shared {
        float tile[128];
    };
    Shared& s = shared_memory<Shared>();
    const int t = static_cast<int>(threadIdx.x);
    cp_async_16(&s.tile[4 * t], x + 4 * t);
    cp_async_commit();
    cp_async_wait<Wait ? 0 : 1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) y[4 * t + i] = s.tile[4 * ((t + 7) % 32) + i];
    if (!Wait) cp_async_wait<0>();
}

// c (16, 8) = a (16, 16) b^T, b (8, 16): one mma from shared memory.
void one_mma(const bf16* a, const bf16* b, float* c) {
    struct Shared {
        bf16 a[16][16], b[16][16];
    };
    Shared& s = shared_memory<Shared>();
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 256; i += 32) s.a[i / 16][i % 16] = a[i];
    for (int i = lane; i < 256; i += 32) s.b[i / 16][i % 16] = i < 128 ? b[i] : from_float<bf16>(0);
    __syncwarp();
    const uint4 fa = ldmatrix_x4(&s.a[lane % 16][lane / 16 * 8]);
    const uint4 fb = ldmatrix_x4(&s.b[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
    float sum[4] = {0, 0, 0, 0};
    mma_16x8x16(sum, fa, fb.x, fb.y);
    const int row = lane / 4, column = 2 * (lane % 4);
    c[row * 8 + column] = sum[0], c[row * 8 + column + 1] = sum[1];
    c[(row + 8) * 8 + column] = sum[2], c[(row + 8) * 8 + column + 1] = sum[3];
}

void diverging() {
    if (threadIdx.x < 16) __syncthreads();
    __syncwarp(0xffffffffu);
}

void waits_below(int lanes) {
    if (static_cast<int>(threadIdx.x) < lanes) await_kernels_before();
}
void reads_unwritten(float* y) {
    struct Shared {
        float v[32];
    };
    y[threadIdx.x] = shared_memory<Shared>().v[threadIdx.x];
}

}  // namespace

TEST_CASE("a right reduction is right under every schedule; each missing barrier is seen") {
    const int all = static_cast<int>(simt::schedules().size());
    CHECK(schedules_that_agree<3>() == all);
    CHECK(schedules_that_agree<2>() < all);
    CHECK(schedules_that_agree<1>() < all);
}

TEST_CASE("cp.async: a missing wait is seen, a right one is not") {
    std::vector<float> values(128);
    for (int i = 0; i < 128; ++i) values[i] = static_cast<float>(i);
    simt::Guarded<float> x(values), y(128);
    auto right = [&](auto kernel) {
        int good = 0;
        for (const simt::Schedule& schedule : simt::schedules()) {
            simt::machine().schedule = schedule;
            const float* xp = x.data();
            float* yp = y.data();
            LAUNCH(kernel, dim3(1), dim3(32), 512, nullptr, xp, yp);
            bool same = true;
            for (int i = 0; i < 128; ++i) same &= y[i] == values[4 * ((i / 4 + 7) % 32) + i % 4];
            good += same;
        }
        return good;
    };
    CHECK(right(copy_tile<true>) == static_cast<int>(simt::schedules().size()));
    CHECK(right(copy_tile<false>) < static_cast<int>(simt::schedules().size()));
}

TEST_CASE("ldmatrix and mma follow the documented layouts") {
    std::vector<bf16> a(256), b(128);
    for (int i = 0; i < 256; ++i) a[i] = from_float<bf16>(static_cast<float>((i * 37) % 17 - 8));
    for (int i = 0; i < 128; ++i) b[i] = from_float<bf16>(static_cast<float>((i * 11) % 13 - 6));
    simt::Guarded<bf16> ga(a), gb(b);
    simt::Guarded<float> c(128);
    for (const simt::Schedule& schedule : simt::schedules()) {
        simt::machine().schedule = schedule;
        const bf16 *ap = ga.data(), *bp = gb.data();
        float* cp = c.data();
        LAUNCH(one_mma, dim3(1), dim3(32), 1024, nullptr, ap, bp, cp);
        for (int row = 0; row < 16; ++row)
            for (int column = 0; column < 8; ++column) {
                float sum = 0;
                for (int k = 0; k < 16; ++k)
                    sum += to_float(a[row * 16 + k]) * to_float(b[column * 16 + k]);
                CHECK(c[row * 8 + column] == sum);
            }
    }
    CHECK(c.intact());
}

TEST_CASE("a divergent barrier, too little shared memory and unwritten shared memory are reported") {
    simt::machine().schedule = {};
    CHECK_THROWS_AS(LAUNCH(diverging, dim3(1), dim3(32), 0, nullptr), simt::Fault);
    simt::Guarded<float> y(32);
    float* yp = y.data();
    CHECK_THROWS_AS(LAUNCH(reads_unwritten, dim3(1), dim3(32), 64, nullptr, yp), simt::Fault);
    LAUNCH(reads_unwritten, dim3(1), dim3(32), 128, nullptr, yp);
    for (int i = 0; i < 32; ++i) CHECK(std::isnan(y[i]));
}

TEST_CASE("a kernel that is launched early and does not wait for the kernels before is reported") {
    simt::machine().schedule = {};
    LAUNCH_EARLY(waits_below, dim3(1), dim3(32), 0, nullptr, 32);
    CHECK_THROWS_AS(LAUNCH_EARLY(waits_below, dim3(1), dim3(32), 0, nullptr, 31), simt::Fault);
    LAUNCH(waits_below, dim3(1), dim3(32), 0, nullptr, 0);
}

TEST_CASE("bfloat16 rounds to nearest even and keeps NaN") {
    CHECK(from_float<bf16>(1.0f).bits == 0x3f80);
    CHECK(from_float<bf16>(1.00390625f).bits == 0x3f80);  // half way, even below
    CHECK(from_float<bf16>(1.01171875f).bits == 0x3f82);  // half way, even above
    CHECK(std::isnan(to_float(from_float<bf16>(NAN))));
}
