// Rows that several warps share (layers_test.cpp has every shape): the barrier between their sums is needed.
#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

TEST_CASE("rmsnorm and its backward: what each warp of a row adds") {
    const int N = 3, C = 2048;
    const size_t n = size_t{N} * C;
    auto x = random_values(n, 1);
    for (size_t i = 0; i < n; ++i) x[i] *= 1 + static_cast<double>(i % C / 128 % 4);  // warps with sums of their own
    x = rounded<float>(x);
    const auto dy = rounded<float>(random_values(n, 2)), w = rounded<float>(random_values(C, 3));
    std::vector<double> y(n), r(N), dx(n);
    Reference<double> reference;
    reference.rmsnorm(N, C, 1e-5, x.data(), w.data(), y.data(), C, r.data());
    const auto r_in = rounded<float>(r);
    reference.rmsnorm_backward(N, C, dy.data(), x.data(), w.data(), r_in.data(), dx.data(), C, false);
    const simt::Guarded<float> gx(stored<float>(x)), gdy(stored<float>(dy)), gw(stored<float>(w)),
        gr_in(stored<float>(r));
    under_every_schedule([&] {
        simt::Guarded<float> gy(n), gr(N), gdx(n);
        cuda::rmsnorm<float>(nullptr, N, C, 1e-5, gx.data(), gw.data(), gy.data(), C, gr.data());
        check_elements(gy, y);
        check_elements(gr, r);
        cuda::rmsnorm_backward<float>(nullptr, N, C, gdy.data(), gx.data(), gw.data(), gr_in.data(), gdx.data(), C,
                                      false);
        check_elements(gdx, dx);
    });
}
