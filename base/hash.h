// Checksums: SHA-256 for fingerprints (FIPS 180-4), CRC-32C for checkpoints and TensorBoard records (RFC 3720 B.4),
// FNV-1a for hash tables. All streaming, all independent of the host's byte order and instruction set.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace orpo {

class Sha256 {
  public:
    Sha256();
    void update(const void* data, size_t n);
    void update(std::string_view bytes) { update(bytes.data(), bytes.size()); }
    std::array<uint8_t, 32> digest();  // ends the stream
    std::string hex();                 // 64 lower-case digits; ends the stream

  private:
    std::array<uint32_t, 8> state_;
    std::array<uint8_t, 64> block_;
    size_t used_ = 0;     // bytes waiting in block_
    uint64_t bytes_ = 0;  // bytes seen
};

std::string sha256_hex(std::string_view bytes);
// Of a whole file, read in pieces. Error(kIo) when it cannot be read.
std::string sha256_file(const std::string& path);

// crc32c("123456789") == 0xe3069283. Continue a stream by passing the previous value as `crc`.
uint32_t crc32c(const void* data, size_t n, uint32_t crc = 0);
inline uint32_t crc32c(std::string_view bytes, uint32_t crc = 0) { return crc32c(bytes.data(), bytes.size(), crc); }

// FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/
constexpr uint64_t fnv1a(std::string_view bytes, uint64_t hash = 0xcbf29ce484222325ull) {
    for (char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    return hash;
}

}  // namespace orpo
