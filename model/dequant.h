// GGUF block formats -> fp32. A tensor's rows are made of whole blocks; a row dequantises on its own.
// Formulas: docs of ggml's block formats (ggml-common.h, ggml-quants.c); written out beside each case in dequant.cpp.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

namespace orpo {

// Ids as stored in a GGUF tensor info.
enum class GgmlType : uint32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kBF16 = 30,
};

struct BlockFormat {
    const char* name = nullptr;  // "Q4_1"
    int elements = 0;            // per block
    int bytes = 0;               // per block
};

// Name of any ggml type id, also of those that are not supported ("IQ4_NL"), or "type 77".
std::string ggml_type_name(uint32_t type);
// Null when the type is not supported.
const BlockFormat* block_format(uint32_t type);
// The same for every type that ggml knows; null only for an id that it does not.
const BlockFormat* stored_format(uint32_t type);

// blocks: n / elements blocks as stored, any alignment. out: n floats. n is a multiple of the block's elements.
void dequantise(GgmlType type, const void* blocks, int64_t n, float* out);

// IEEE half and bfloat16, also used by safetensors.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);  // round to nearest even
inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
uint16_t float_to_bf16(float value);  // round to nearest even; NaN stays NaN

}  // namespace orpo
