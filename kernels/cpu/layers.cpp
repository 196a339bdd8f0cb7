// The operations between the products: rows are shared by the threads.
#include "kernels/cpu/cpu.h"

namespace orpo {

namespace {
// Rows that make a thread worth waking: about 16 K elements.
int64_t least_rows(int64_t width) { return 16384 / width + 1; }
}  // namespace

void Cpu::embed(const Batch& b, const Weight& E, float* x) {
    shares(b.N, 8, [&](int, int64_t first, int64_t count) {
        for (int64_t n = first; n < first + count; ++n)
            (bf16_ ? isa_.unpack_weight_row_bf16 : isa_.unpack_weight_row)(E.rows, E.cols, E.packed, b.ids[n], 1.0f,
                                                                           x + n * E.cols);
    });
}

void Cpu::rmsnorm(int N, int C, double eps, const float* x, const float* w, float* y, float* r) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        isa_.rmsnorm(static_cast<int>(rows), C, static_cast<float>(eps), x + n * C, w, y + n * C, r + n);
    });
}
void Cpu::add_rmsnorm(int N, int C, double eps, const float* x, const float* d, const float* w, float* x2, float* y,
                      float* r) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        isa_.add_rmsnorm(static_cast<int>(rows), C, static_cast<float>(eps), x + n * C, d + n * C, w, x2 + n * C,
                         y + n * C, r + n);
    });
}
void Cpu::normalize(int N, int C, const float* x, const float* w, const float* r, float* y) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        isa_.normalize(static_cast<int>(rows), C, x + n * C, w, r + n, y + n * C);
    });
}
void Cpu::rmsnorm_backward(int N, int C, const float* dy, const float* x, const float* w, const float* r, float* dx,
                           bool accumulate) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        isa_.rmsnorm_backward(static_cast<int>(rows), C, dy + n * C, x + n * C, w, r + n, dx + n * C, accumulate);
    });
}
void Cpu::rope(const Batch& b, const HeadShape& shape, const float* table, int sign, float* qkv) {
    const int width = shape.width();
    shares(b.N, least_rows(width), [&](int, int64_t n, int64_t rows) {
        isa_.rope(static_cast<int>(rows), shape.H + shape.KV, shape.HS, width, b.positions.data() + n, table,
                  static_cast<float>(sign), qkv + n * width);
    });
}
void Cpu::swiglu(int N, int I, const float* gu, float* h) {
    shares(N, least_rows(I),
           [&](int, int64_t n, int64_t rows) { isa_.swiglu(static_cast<int>(rows), I, gu + n * 2 * I, h + n * I); });
}
void Cpu::swiglu_backward(int N, int I, const float* dh, float* gu) {
    shares(N, least_rows(I), [&](int, int64_t n, int64_t rows) {
        isa_.swiglu_backward(static_cast<int>(rows), I, dh + n * I, gu + n * 2 * I);
    });
}
void Cpu::dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const float* x, float* y) {
    shares(rows, least_rows(C), [&](int, int64_t n, int64_t count) {
        n += first;
        isa_.dropout(static_cast<int>(count), C, p, b.dropout_key, b.step, tensor, b.mask_pair.data() + n,
                     b.positions.data() + n, x + n * C, y + n * C, false);
    });
}
void Cpu::dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const float* d,
                      float* dx) {
    shares(rows, least_rows(C), [&](int, int64_t n, int64_t count) {
        n += first;
        isa_.dropout(static_cast<int>(count), C, p, b.dropout_key, b.step, tensor, b.mask_pair.data() + n,
                     b.positions.data() + n, d + n * C, dx + n * C, true);
    });
}

}  // namespace orpo
