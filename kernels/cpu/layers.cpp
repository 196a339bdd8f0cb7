// The operations between the products: rows are shared by the threads.
#include "kernels/cpu/cpu.h"

namespace orpo {

namespace {
// Rows that make a thread worth waking: about 16 K elements.
int64_t least_rows(int64_t width) { return 16384 / width + 1; }
}  // namespace

template <class T>
void Cpu<T>::embed(const Batch& b, const Weight& E, T* x) {
    shares(b.N, 8, [&](int, int64_t first, int64_t count) {
        for (int64_t n = first; n < first + count; ++n)
            ops_.unpack_weight_row(E.rows, E.cols, E.packed, b.ids[n], x + n * E.cols);
    });
}

template <class T>
void Cpu<T>::rmsnorm(int N, int C, double eps, const T* x, const float* w, T* y, int ldy, float* r) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        ops_.rmsnorm(static_cast<int>(rows), C, static_cast<float>(eps), x + n * C, w, y + n * ldy, ldy, r + n);
    });
}
template <class T>
void Cpu<T>::add_rmsnorm(int N, int C, double eps, const T* x, const T* d, const float* w, T* x2, T* y, int ldy,
                         float* r, const T* x_low, T* x2_low) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        ops_.add_rmsnorm(static_cast<int>(rows), C, static_cast<float>(eps), x + n * C, d + n * C, w, x2 + n * C,
                         y + n * ldy, ldy, r + n, x_low ? x_low + n * C : nullptr, x2_low ? x2_low + n * C : nullptr);
    });
}
template <class T>
void Cpu<T>::normalize(int N, int C, const T* x, const float* w, const float* r, T* y, int ldy) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        ops_.normalize(static_cast<int>(rows), C, x + n * C, w, r + n, y + n * ldy, ldy);
    });
}
template <class T>
void Cpu<T>::rmsnorm_backward(int N, int C, const T* dy, const T* x, const float* w, const float* r, T* dx, int lddx,
                              bool accumulate) {
    shares(N, least_rows(C), [&](int, int64_t n, int64_t rows) {
        ops_.rmsnorm_backward(static_cast<int>(rows), C, dy + n * C, x + n * C, w, r + n, dx + n * lddx, lddx,
                              accumulate);
    });
}
template <class T>
void Cpu<T>::rope(const Batch& b, const HeadShape& shape, const float* table, int sign, T* qkv) {
    const int width = shape.width();
    shares(b.N, least_rows(width), [&](int, int64_t n, int64_t rows) {
        ops_.rope(static_cast<int>(rows), shape.H + shape.KV, shape.HS, width, b.positions.data() + n, table,
                  static_cast<float>(sign), qkv + n * width);
    });
}
template <class T>
void Cpu<T>::swiglu(int N, int I, const T* gu, T* h) {
    shares(N, least_rows(I),
           [&](int, int64_t n, int64_t rows) { ops_.swiglu(static_cast<int>(rows), I, gu + n * 2 * I, h + n * I); });
}
template <class T>
void Cpu<T>::swiglu_backward(int N, int I, const T* dh, T* gu, T* h) {
    shares(N, least_rows(I), [&](int, int64_t n, int64_t rows) {
        ops_.swiglu_backward(static_cast<int>(rows), I, dh + n * I, gu + n * 2 * I, h ? h + n * I : nullptr);
    });
}
template <class T>
void Cpu<T>::dropout(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* x, T* y) {
    shares(rows, least_rows(C), [&](int, int64_t n, int64_t count) {
        n += first;
        ops_.dropout(static_cast<int>(count), C, p, b.dropout_key, b.step, tensor, b.mask_pair.data() + n,
                     b.positions.data() + n, x + n * C, y + n * C, false);
    });
}
template <class T>
void Cpu<T>::dropout_add(const Batch& b, int first, int rows, int C, double p, uint32_t tensor, const T* d, T* dx) {
    shares(rows, least_rows(C), [&](int, int64_t n, int64_t count) {
        n += first;
        ops_.dropout(static_cast<int>(count), C, p, b.dropout_key, b.step, tensor, b.mask_pair.data() + n,
                     b.positions.data() + n, d + n * C, dx + n * C, true);
    });
}

template class Cpu<float>;
template class Cpu<bf16>;

}  // namespace orpo
