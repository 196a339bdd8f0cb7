// The optimizer's kernels against the reference in double.
#include "kernels/reference/reference.h"
#include "tests/simt/kernel_case.h"

using namespace orpo;
using namespace orpo::cuda;

TEST_CASE("squared_norms: exact to double, the same bits under every schedule") {
    for (const auto& [slots, n] : {std::pair{2, 255}, {1, 65537}, {1, 140001}}) {
        const auto g = rounded<float>(random_values(static_cast<size_t>(slots) * n, 1));
        std::vector<double> expected(slots);
        Reference<double> reference;
        reference.squared_norms(slots, n, g.data(), expected.data());
        const simt::Guarded<float> gg(stored<float>(g));
        std::vector<double> first;
        under_every_schedule([&, slots = slots, n = n] {
            simt::Guarded<double> partial(static_cast<size_t>(slots) * kNormBlocks), out(slots);
            cuda::squared_norms(nullptr, slots, n, gg.data(), partial.data(), out.data());
            check_elements(out, expected, 1e-12);
            CHECK(partial.intact());
            if (first.empty()) first = out.values();
            CHECK(out.values() == first);
        });
    }
}

TEST_CASE("adamw: slots of their own, one of them at rest") {
    for (const int n : {1, 255, 257, 3000}) {
        std::vector<AdamwSlot> slots(3);
        slots[0].lr = 1e-3, slots[0].weight_decay = 0.1;
        slots[1].active = false;
        slots[2].lr = 5e-2, slots[2].beta1 = 0.8, slots[2].beta2 = 0.95, slots[2].eps = 1e-6, slots[2].grad_scale = 0.3;
        slots[2].bias1 = 1 - 0.8 * 0.8, slots[2].bias2 = 1 - 0.95 * 0.95;
        std::vector<AdamwStep> steps;  // as Cuda::adamw makes them
        for (const AdamwSlot& a : slots)
            steps.push_back({static_cast<float>(a.lr / a.bias1), static_cast<float>(1 - a.lr * a.weight_decay),
                             static_cast<float>(a.beta1), static_cast<float>(a.beta2),
                             static_cast<float>(1 / std::sqrt(a.bias2)), static_cast<float>(a.eps),
                             static_cast<float>(a.grad_scale), a.active});
        const size_t all = 3 * static_cast<size_t>(n);
        const auto p0 = rounded<float>(random_values(all, 1)), g = rounded<float>(random_values(all, 2)),
                   m0 = rounded<float>(random_values(all, 3, 0.1));
        auto v0 = rounded<float>(random_values(all, 4, 0.1));
        for (double& v : v0) v *= v;
        v0 = rounded<float>(v0);
        auto p = p0, m = m0, v = v0;
        Reference<double> reference;
        reference.adamw(3, n, slots.data(), p.data(), g.data(), m.data(), v.data());
        const simt::Guarded<AdamwStep> gsteps(steps);
        const simt::Guarded<float> gg(stored<float>(g));
        under_every_schedule([&] {
            simt::Guarded<float> gp(stored<float>(p0)), gm(stored<float>(m0)), gv(stored<float>(v0));
            cuda::adamw(nullptr, 3, n, gsteps.data(), gp.data(), gg.data(), gm.data(), gv.data());
            check_elements(gp, p);
            check_elements(gm, m);
            check_elements(gv, v);
        });
    }
}
