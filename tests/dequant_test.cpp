#include "model/dequant.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/io.h"
#include "tests/test_data.h"

using namespace orpo;

namespace {

std::vector<uint8_t> from_hex(const std::string& hex) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
}

}  // namespace

TEST_CASE("every block format gives the bits of the gguf package") {
    const auto rows = nlohmann::json::parse(io::read_file(test_data("golden/formats/dequant.json"), 1 << 20));
    CHECK(rows.size() == 10);
    for (const auto& row : rows) {
        const std::string type = row["type"];
        CAPTURE(type);
        const uint32_t id = row["id"];
        CHECK(ggml_type_name(id) == type);
        const BlockFormat* format = block_format(id);
        REQUIRE(format != nullptr);
        std::vector<uint8_t> blocks = from_hex(row["blocks"]), wanted = from_hex(row["values"]);
        const int64_t n = static_cast<int64_t>(wanted.size() / 4);
        REQUIRE(static_cast<int64_t>(blocks.size()) == n / format->elements * format->bytes);
        // At an odd address, with a sentinel behind the output.
        blocks.insert(blocks.begin(), 0xff);
        std::vector<float> values(static_cast<size_t>(n) + 1, 12345.0f);
        dequantise(static_cast<GgmlType>(id), blocks.data() + 1, n, values.data());
        CHECK(std::memcmp(values.data(), wanted.data(), wanted.size()) == 0);
        CHECK(values.back() == 12345.0f);
    }
}

TEST_CASE("half precision: every value comes back, and rounding goes to even") {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
        const float value = half_to_float(static_cast<uint16_t>(bits));
        const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
        if (exponent == 31 && mantissa != 0) {
            CHECK(std::isnan(value));
            CHECK(std::isnan(half_to_float(float_to_half(value))));
            continue;
        }
        // The definition: (-1)^s 2^(e - 15) (1 + m / 1024), subnormals 2^-14 m / 1024.
        double wanted =
            exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
        if (exponent == 31) wanted = std::numeric_limits<double>::infinity();
        if (bits & 0x8000) wanted = -wanted;
        if (static_cast<double>(value) != wanted || float_to_half(value) != bits) FAIL_CHECK("half ", bits);
    }
    CHECK(float_to_half(1 + 0x1p-11f) == 0x3c00);      // a tie: down to even
    CHECK(float_to_half(1 + 3 * 0x1p-11f) == 0x3c02);  // a tie: up to even
    CHECK(float_to_half(1 + 0x1.002p-11f) == 0x3c01);  // more than half
    CHECK(float_to_half(65519.996f) == 0x7bff);        // the largest
    CHECK(float_to_half(65520.0f) == 0x7c00);          // infinity
    CHECK(float_to_half(0x1p-25f) == 0);               // half of the smallest: to even
    CHECK(float_to_half(0x1.002p-25f) == 1);
    CHECK(float_to_half(-0x1p-24f) == 0x8001);
}

TEST_CASE("bfloat16: rounding to even, NaN stays NaN") {
    CHECK(float_to_bf16(1.0f) == 0x3f80);
    CHECK(float_to_bf16(1 + 0x1p-8f) == 0x3f80);      // a tie: down to even
    CHECK(float_to_bf16(1 + 3 * 0x1p-8f) == 0x3f82);  // a tie: up to even
    CHECK(float_to_bf16(1 + 0x1.02p-8f) == 0x3f81);
    CHECK(float_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
    CHECK(std::isnan(bf16_to_float(float_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
    const float odd_nan = std::bit_cast<float>(0x7f800001u);  // its mantissa lies in the bits that are cut off
    CHECK(std::isnan(bf16_to_float(float_to_bf16(odd_nan))));
}

TEST_CASE("names of types that are not supported") {
    CHECK(ggml_type_name(20) == "IQ4_NL");
    CHECK(block_format(20) == nullptr);
    CHECK(stored_format(20)->bytes == 18);
    CHECK(ggml_type_name(77) == "type 77");
    CHECK(stored_format(77) == nullptr);
}
