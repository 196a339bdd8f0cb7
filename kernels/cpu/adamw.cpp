// The optimizer over flat arenas (slots, n): blocks of a fixed size are shared by the threads.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu.h"

namespace orpo {

namespace {
constexpr int64_t kBlock = 32768;
}

template <class T>
void Cpu<T>::squared_norms(int slots, int64_t n, const float* g, double* out) {
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    std::vector<double> sums(static_cast<size_t>(blocks));
    for (int s = 0; s < slots; ++s) {
        items(blocks, [&](int, int64_t i) {
            sums[i] = isa_.squared_norm(std::min(kBlock, n - i * kBlock), g + s * n + i * kBlock);
        });
        out[s] = 0;
        for (const double part : sums) out[s] += part;
    }
}

template <class T>
void Cpu<T>::adamw(int slots, int64_t n, const AdamwSlot* slot, float* p, const float* g, float* m, float* v) {
    for (int s = 0; s < slots; ++s) {
        const AdamwSlot& a = slot[s];
        if (!a.active) continue;
        const float constants[8] = {
            static_cast<float>(a.grad_scale),       static_cast<float>(1 - a.lr * a.weight_decay),
            static_cast<float>(1 - a.beta1),        static_cast<float>(a.beta2),
            static_cast<float>(1 - a.beta2),        static_cast<float>(a.lr / a.bias1),
            static_cast<float>(std::sqrt(a.bias2)), static_cast<float>(a.eps)};
        items((n + kBlock - 1) / kBlock, [&](int, int64_t i) {
            const int64_t at = s * n + i * kBlock;
            isa_.adamw(std::min(kBlock, n - i * kBlock), constants, p + at, g + at, m + at, v + at);
        });
    }
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
