#include "model/dequant.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace orpo {

namespace {

struct TypeRow {
    uint32_t id;
    bool supported;
    BlockFormat format;
};

// Every type of ggml.h that a file can hold: the sizes of those that are not supported let a file still be listed.
constexpr TypeRow kTypes[] = {
    {0, true, {"F32", 1, 4}},          {1, true, {"F16", 1, 2}},          {2, true, {"Q4_0", 32, 18}},
    {3, true, {"Q4_1", 32, 20}},       {6, true, {"Q5_0", 32, 22}},       {7, true, {"Q5_1", 32, 24}},
    {8, true, {"Q8_0", 32, 34}},       {9, false, {"Q8_1", 32, 36}},      {10, false, {"Q2_K", 256, 84}},
    {11, false, {"Q3_K", 256, 110}},   {12, true, {"Q4_K", 256, 144}},    {13, true, {"Q5_K", 256, 176}},
    {14, true, {"Q6_K", 256, 210}},    {15, false, {"Q8_K", 256, 292}},   {16, false, {"IQ2_XXS", 256, 66}},
    {17, false, {"IQ2_XS", 256, 74}},  {18, false, {"IQ3_XXS", 256, 98}}, {19, false, {"IQ1_S", 256, 50}},
    {20, false, {"IQ4_NL", 32, 18}},   {21, false, {"IQ3_S", 256, 110}},  {22, false, {"IQ2_S", 256, 82}},
    {23, false, {"IQ4_XS", 256, 136}}, {24, false, {"I8", 1, 1}},         {25, false, {"I16", 1, 2}},
    {26, false, {"I32", 1, 4}},        {27, false, {"I64", 1, 8}},        {28, false, {"F64", 1, 8}},
    {29, false, {"IQ1_M", 256, 56}},   {30, true, {"BF16", 1, 2}},        {34, false, {"TQ1_0", 256, 54}},
    {35, false, {"TQ2_0", 256, 66}},   {39, false, {"MXFP4", 32, 17}},
};

const TypeRow* find_type(uint32_t type) {
    for (const TypeRow& row : kTypes)
        if (row.id == type) return &row;
    return nullptr;
}

uint16_t load16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint32_t load32(const uint8_t* p) { return load16(p) | static_cast<uint32_t>(load16(p + 2)) << 16; }
float load_half(const uint8_t* p) { return half_to_float(load16(p)); }

// Below: b is one block as stored, y its elements. d and m are halfs at the block's start; j-th nibbles: low ones are
// the first half of the block, high ones the second.

// { d, qs[16] }: y = (q - 8) d
void block_q4_0(const uint8_t* b, float* y) {
    const float d = load_half(b);
    const uint8_t* qs = b + 2;
    for (int j = 0; j < 16; ++j) {
        y[j] = static_cast<float>((qs[j] & 15) - 8) * d;
        y[j + 16] = static_cast<float>((qs[j] >> 4) - 8) * d;
    }
}

// { d, m, qs[16] }: y = q d + m
void block_q4_1(const uint8_t* b, float* y) {
    const float d = load_half(b), m = load_half(b + 2);
    const uint8_t* qs = b + 4;
    for (int j = 0; j < 16; ++j) {
        y[j] = static_cast<float>(qs[j] & 15) * d + m;
        y[j + 16] = static_cast<float>(qs[j] >> 4) * d + m;
    }
}

// { d, qh u32, qs[16] }: bit j of qh is the fifth bit of q[j]; y = (q - 16) d
void block_q5_0(const uint8_t* b, float* y) {
    const float d = load_half(b);
    const uint32_t qh = load32(b + 2);
    const uint8_t* qs = b + 6;
    for (int j = 0; j < 16; ++j) {
        const int low = (qs[j] & 15) | (qh >> j & 1) << 4;
        const int high = (qs[j] >> 4) | (qh >> (j + 16) & 1) << 4;
        y[j] = static_cast<float>(low - 16) * d;
        y[j + 16] = static_cast<float>(high - 16) * d;
    }
}

// { d, m, qh u32, qs[16] }: y = q d + m
void block_q5_1(const uint8_t* b, float* y) {
    const float d = load_half(b), m = load_half(b + 2);
    const uint32_t qh = load32(b + 4);
    const uint8_t* qs = b + 8;
    for (int j = 0; j < 16; ++j) {
        const int low = (qs[j] & 15) | (qh >> j & 1) << 4;
        const int high = (qs[j] >> 4) | (qh >> (j + 16) & 1) << 4;
        y[j] = static_cast<float>(low) * d + m;
        y[j + 16] = static_cast<float>(high) * d + m;
    }
}

// { d, int8 qs[32] }: y = q d
void block_q8_0(const uint8_t* b, float* y) {
    const float d = load_half(b);
    for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
}

// Eight sub-blocks of 32 have a scale and a minimum of 6 bits each, packed into 12 bytes.
void unpack_scales(const uint8_t* s, int j, int* scale, int* minimum) {
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *minimum = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

// { d, dmin, scales[12], qs[128] }: y = d scale q - dmin minimum; 32 bytes hold sub-block 2k (low) and 2k + 1 (high)
void block_q4_k(const uint8_t* b, float* y) {
    const float d = load_half(b), dmin = load_half(b + 2);
    const uint8_t *scales = b + 4, *qs = b + 16;
    for (int j = 0; j < 8; ++j) {
        int scale, minimum;
        unpack_scales(scales, j, &scale, &minimum);
        const float a = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
        const int shift = 4 * (j % 2);
        for (int l = 0; l < 32; ++l) y[32 * j + l] = a * static_cast<float>(qs[32 * (j / 2) + l] >> shift & 15) - m;
    }
}

// { d, dmin, scales[12], qh[32], qs[128] }: as Q4_K; bit j of qh[l] is the fifth bit of sub-block j's l-th element
void block_q5_k(const uint8_t* b, float* y) {
    const float d = load_half(b), dmin = load_half(b + 2);
    const uint8_t *scales = b + 4, *qh = b + 16, *qs = b + 48;
    for (int j = 0; j < 8; ++j) {
        int scale, minimum;
        unpack_scales(scales, j, &scale, &minimum);
        const float a = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
        const int shift = 4 * (j % 2);
        for (int l = 0; l < 32; ++l) {
            const int q = (qs[32 * (j / 2) + l] >> shift & 15) | (qh[l] >> j & 1) << 4;
            y[32 * j + l] = a * static_cast<float>(q) - m;
        }
    }
}

// { ql[128], qh[64], int8 scales[16], d }: y = d scale (q - 32), a scale for every 16 elements. Each half of the block
// (128 elements, 4 runs of 32) has 64 bytes of low nibbles and 32 bytes of high bit pairs, one pair a run.
void block_q6_k(const uint8_t* b, float* y) {
    const uint8_t* scales = b + 192;
    const float d = load_half(b + 208);
    for (int half = 0; half < 2; ++half) {
        const uint8_t *ql = b + 64 * half, *qh = b + 128 + 32 * half;
        for (int run = 0; run < 4; ++run) {
            for (int l = 0; l < 32; ++l) {
                const int low = ql[32 * (run % 2) + l] >> 4 * (run / 2) & 15;
                const int q = (low | (qh[l] >> 2 * run & 3) << 4) - 32;
                const int scale = static_cast<int8_t>(scales[8 * half + 2 * run + l / 16]);
                y[128 * half + 32 * run + l] = d * static_cast<float>(scale) * static_cast<float>(q);
            }
        }
    }
}

template <int kElements, int kBytes, void (*kBlock)(const uint8_t*, float*)>
void blocks_to_float(const uint8_t* b, int64_t n, float* out) {
    ORPO_CHECK(n % kElements == 0);
    for (int64_t i = 0; i < n / kElements; ++i) kBlock(b + i * kBytes, out + i * kElements);
}

}  // namespace

std::string ggml_type_name(uint32_t type) {
    const TypeRow* row = find_type(type);
    return row != nullptr ? row->format.name : "type " + std::to_string(type);
}

const BlockFormat* block_format(uint32_t type) {
    const TypeRow* row = find_type(type);
    return row != nullptr && row->supported ? &row->format : nullptr;
}

const BlockFormat* stored_format(uint32_t type) {
    const TypeRow* row = find_type(type);
    return row != nullptr ? &row->format : nullptr;
}

void dequantise(GgmlType type, const void* blocks, int64_t n, float* out) {
    const uint8_t* b = static_cast<const uint8_t*>(blocks);
    switch (type) {
        case GgmlType::kF32:
            std::memcpy(out, b, static_cast<size_t>(n) * 4);
            return;
        case GgmlType::kF16:
            for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(load16(b + 2 * i));
            return;
        case GgmlType::kBF16:
            for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(load16(b + 2 * i));
            return;
        case GgmlType::kQ4_0:
            return blocks_to_float<32, 18, block_q4_0>(b, n, out);
        case GgmlType::kQ4_1:
            return blocks_to_float<32, 20, block_q4_1>(b, n, out);
        case GgmlType::kQ5_0:
            return blocks_to_float<32, 22, block_q5_0>(b, n, out);
        case GgmlType::kQ5_1:
            return blocks_to_float<32, 24, block_q5_1>(b, n, out);
        case GgmlType::kQ8_0:
            return blocks_to_float<32, 34, block_q8_0>(b, n, out);
        case GgmlType::kQ4_K:
            return blocks_to_float<256, 144, block_q4_k>(b, n, out);
        case GgmlType::kQ5_K:
            return blocks_to_float<256, 176, block_q5_k>(b, n, out);
        case GgmlType::kQ6_K:
            return blocks_to_float<256, 210, block_q6_k>(b, n, out);
    }
    ORPO_CHECK(!"a supported block format");
}

float half_to_float(uint16_t bits) {
    // Moves exponent and mantissa into place; the product corrects the bias and makes subnormals exact.
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
    const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) * 0x1p112f);
    const uint32_t special = rest | 0x7f800000;  // infinity and NaN: exponent of all ones
    return std::bit_cast<float>(sign | ((bits & 0x7c00) == 0x7c00 ? special : scaled));
}

uint16_t float_to_half(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
    if (magnitude < 0x38800000) {                       // subnormal: units of 2^-24, rounded by the addition
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

uint16_t float_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace orpo
