// Sixteen fp32 lanes on every instruction set: one zmm, two ymm or four xmm registers. Code written over `V` has the
// same order of operations everywhere, so AVX2 and AVX-512 give the same bits (SSE2 has no fused multiply-add).
// Included once per instruction set, inside that set's namespace, by isa_*.cpp. Nothing here may be a template or
// inline function of the standard library that the linker could share with code for older processors.
#if defined(__AVX512F__)

struct V {
    __m512 v;
};
static inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
static inline V set1(float s) { return {_mm512_set1_ps(s)}; }
static inline V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline V sqrt(V a) { return {_mm512_sqrt_ps(a.v)}; }
static inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a b + c
static inline V fnma(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
// c + a0 b0 + a1 b1 for pairs of bf16 in 32 bits.
#if defined(__AVX512BF16__)
static inline V fma_pairs(V a, V b, V c) {
    return {_mm512_dpbf16_ps(c.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
}
#else
static inline V fma_pairs(V, V, V c) { return c; }  // never called
#endif
// The second operand when one of the two is NaN, as the instruction does: write max(bound, x) to keep a NaN in x.
static inline V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
// a where x < y, else b (b too when either is NaN).
static inline V less(V x, V y, V a, V b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
static inline V round(V a) { return {_mm512_cvtepi32_ps(_mm512_cvtps_epi32(a.v))}; }  // |a| < 2^31
static inline V pow2(V n) {                                                           // 2^n for whole n in [-126, 127]
    return {
        _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
static inline V load_n(const float* p, int n) {  // n < 16 lanes, the others 0
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
static inline void store_n(float* p, V a, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v);
}
static inline __m256 low(V a) { return _mm512_castps512_ps256(a.v); }
static inline __m256 high(V a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)); }

#elif defined(__AVX2__)

struct V {
    __m256 a, b;
};
static inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
static inline V set1(float s) { return {_mm256_set1_ps(s), _mm256_set1_ps(s)}; }
static inline V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline V sqrt(V x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline V fnma(V x, V y, V z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
static inline V fma_pairs(V, V, V z) { return z; }  // never called
static inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline V less(V x, V y, V p, V q) {
    return {_mm256_blendv_ps(q.a, p.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(q.b, p.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
static inline V round(V x) {
    return {_mm256_cvtepi32_ps(_mm256_cvtps_epi32(x.a)), _mm256_cvtepi32_ps(_mm256_cvtps_epi32(x.b))};
}
static inline __m256 pow2_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline V pow2(V n) { return {pow2_half(n.a), pow2_half(n.b)}; }
static inline __m256 low(V x) { return x.a; }
static inline __m256 high(V x) { return x.b; }

#else

struct V {
    __m128 a, b, c, d;
};
#define ORPO_EACH(op) \
    { op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d) }
static inline V load(const float* p) {
    return {_mm_loadu_ps(p), _mm_loadu_ps(p + 4), _mm_loadu_ps(p + 8), _mm_loadu_ps(p + 12)};
}
static inline void store(float* p, V x) {
    _mm_storeu_ps(p, x.a), _mm_storeu_ps(p + 4, x.b), _mm_storeu_ps(p + 8, x.c), _mm_storeu_ps(p + 12, x.d);
}
static inline V set1(float s) { return {_mm_set1_ps(s), _mm_set1_ps(s), _mm_set1_ps(s), _mm_set1_ps(s)}; }
static inline V add(V x, V y) { return ORPO_EACH(_mm_add_ps); }
static inline V sub(V x, V y) { return ORPO_EACH(_mm_sub_ps); }
static inline V mul(V x, V y) { return ORPO_EACH(_mm_mul_ps); }
static inline V div(V x, V y) { return ORPO_EACH(_mm_div_ps); }
static inline V sqrt(V x) { return {_mm_sqrt_ps(x.a), _mm_sqrt_ps(x.b), _mm_sqrt_ps(x.c), _mm_sqrt_ps(x.d)}; }
static inline V max(V x, V y) { return ORPO_EACH(_mm_max_ps); }
static inline V min(V x, V y) { return ORPO_EACH(_mm_min_ps); }
#undef ORPO_EACH
static inline V fma(V x, V y, V z) { return add(mul(x, y), z); }
static inline V fnma(V x, V y, V z) { return sub(z, mul(x, y)); }
static inline V fma_pairs(V, V, V z) { return z; }  // never called
static inline __m128 less4(__m128 x, __m128 y, __m128 p, __m128 q) {
    const __m128 m = _mm_cmplt_ps(x, y);
    return _mm_or_ps(_mm_and_ps(m, p), _mm_andnot_ps(m, q));
}
static inline V less(V x, V y, V p, V q) {
    return {less4(x.a, y.a, p.a, q.a), less4(x.b, y.b, p.b, q.b), less4(x.c, y.c, p.c, q.c), less4(x.d, y.d, p.d, q.d)};
}
static inline __m128 round4(__m128 x) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(x)); }
static inline V round(V x) { return {round4(x.a), round4(x.b), round4(x.c), round4(x.d)}; }
static inline __m128 pow2_4(__m128 n) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127)), 23));
}
static inline V pow2(V n) { return {pow2_4(n.a), pow2_4(n.b), pow2_4(n.c), pow2_4(n.d)}; }

#endif

#if !defined(__AVX512F__)
static inline V load_n(const float* p, int n) {
    float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
static inline void store_n(float* p, V a, int n) {
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// bf16 in memory: widened when it is loaded, rounded to the nearest even when it is stored.
#if defined(__AVX512BF16__)
static inline __m512i halves(const bf16* p) {  // in the low halves of 32-bit lanes
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline __m512i halves_n(const bf16* p, int n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
}
static inline V widen(__m512i low_halves) { return {_mm512_castsi512_ps(_mm512_slli_epi32(low_halves, 16))}; }
static inline V load(const bf16* p) { return widen(halves(p)); }
static inline V load_n(const bf16* p, int n) { return widen(halves_n(p, n)); }
static inline __m256i narrow(V a) { return (__m256i)_mm512_cvtneps_pbh(a.v); }
static inline void store(bf16* p, V a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
static inline void store_n(bf16* p, V a, int n) {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), narrow(a));
}
static inline V rounded(V a, bf16) { return widen(_mm512_cvtepu16_epi32(narrow(a))); }
#endif
static inline V rounded(V a, float) { return a; }  // as T stores it

// The first `left` lanes where fewer than 16 are left.
template <class T>
static inline V load_up_to(const T* p, int left) {
    return left >= 16 ? load(p) : load_n(p, left);
}
template <class T>
static inline void store_up_to(T* p, V a, int left) {
    left >= 16 ? store(p, a) : store_n(p, a, left);
}

// Lanes folded by halves, (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1): one tree on every instruction set.
#if defined(__AVX2__)
static inline __m128 fold_add(V x) {
    const __m256 y = _mm256_add_ps(low(x), high(x));
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline __m128 fold_max(V x) {
    const __m256 y = _mm256_max_ps(low(x), high(x));
    return _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
#else
static inline __m128 fold_add(V x) { return _mm_add_ps(_mm_add_ps(x.a, x.c), _mm_add_ps(x.b, x.d)); }
static inline __m128 fold_max(V x) { return _mm_max_ps(_mm_max_ps(x.a, x.c), _mm_max_ps(x.b, x.d)); }
#endif
static inline float sum(V x) {
    __m128 y = fold_add(x);
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
static inline float max_lane(V x) {
    __m128 y = fold_max(x);
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 7 in r (relative error below 2e-7), times 2^n.
// Below -87.3 it is 0, above 88.3 it stays at e^88.3; NaN stays NaN.
static inline V exp(V x) {
    const V bounded = min(set1(88.3f), max(set1(-87.3f), x));
    const V n = round(mul(bounded, set1(1.44269504088896341f)));
    V r = fnma(n, set1(0.693145751953125f), bounded);  // ln 2 in two parts, the first exact in 15 bits
    r = fnma(n, set1(1.42860682030941723212e-6f), r);
    V p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return less(x, set1(-87.3f), set1(0.0f), mul(p, pow2(n)));
}

#if defined(__AVX512BF16__)
// e^x for x <= 88 to 4e-6 (the polynomial is exact at 0 and best for the largest relative error); below -87 it stays at
// e^-87. What is rounded to bf16 needs no more. NaN stays NaN.
static inline V exp_rough(V x) {
    const V magic = set1(12582912.0f);  // 1.5 * 2^23: a sum with it is rounded to whole numbers
    const V bounded = max(set1(-87.0f), x);
    const V n = sub(fma(bounded, set1(1.44269504088896341f), magic), magic);
    const V r = fnma(n, set1(0.693147180559945f), bounded);
    V p = fma(set1(0.0418756865f), r, set1(0.167921677f));
    p = fma(p, r, set1(0.499993712f));
    p = fma(p, r, set1(0.99996227f));
    p = fma(p, r, set1(1.0f));
    return {_mm512_scalef_ps(p.v, n.v)};
}
#endif

// 64-bit lanes for integer generators: products of the low halves.
#if defined(__AVX512F__)
using Lanes64 = __m512i;
static inline Lanes64 set64(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
static inline Lanes64 load64(const uint64_t* p) { return _mm512_loadu_si512(p); }
static inline void store64(uint64_t* p, Lanes64 x) { _mm512_storeu_si512(p, x); }
static inline Lanes64 mul64(Lanes64 x, Lanes64 y) { return _mm512_mul_epu32(x, y); }
static inline Lanes64 xor64(Lanes64 x, Lanes64 y) { return _mm512_xor_si512(x, y); }
static inline Lanes64 high64(Lanes64 x) { return _mm512_srli_epi64(x, 32); }
#elif defined(__AVX2__)
using Lanes64 = __m256i;
static inline Lanes64 set64(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
static inline Lanes64 load64(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline void store64(uint64_t* p, Lanes64 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
static inline Lanes64 mul64(Lanes64 x, Lanes64 y) { return _mm256_mul_epu32(x, y); }
static inline Lanes64 xor64(Lanes64 x, Lanes64 y) { return _mm256_xor_si256(x, y); }
static inline Lanes64 high64(Lanes64 x) { return _mm256_srli_epi64(x, 32); }
#else
using Lanes64 = __m128i;
static inline Lanes64 set64(uint64_t v) { return _mm_set1_epi64x(static_cast<long long>(v)); }
static inline Lanes64 load64(const uint64_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
static inline void store64(uint64_t* p, Lanes64 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }
static inline Lanes64 mul64(Lanes64 x, Lanes64 y) { return _mm_mul_epu32(x, y); }
static inline Lanes64 xor64(Lanes64 x, Lanes64 y) { return _mm_xor_si128(x, y); }
static inline Lanes64 high64(Lanes64 x) { return _mm_srli_epi64(x, 32); }
#endif
static constexpr int kLanes64 = sizeof(Lanes64) / 8;
