#include "base/hash.h"

#include <doctest/doctest.h>

#include "base/io.h"
#include "tests/temp_dir.h"

using namespace orpo;

TEST_CASE("SHA-256: the examples of FIPS 180-4, and lengths around the padding") {
    CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(sha256_hex(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256 in pieces equals SHA-256 at once") {
    std::string bytes;
    for (int i = 0; i < 1000; ++i) bytes.push_back(static_cast<char>(i * 7 + i / 256));
    const std::string whole = sha256_hex(bytes);
    for (size_t piece : {1, 3, 55, 56, 63, 64, 65, 128, 999}) {
        Sha256 hash;
        for (size_t at = 0; at < bytes.size(); at += piece) hash.update(std::string_view(bytes).substr(at, piece));
        CHECK(hash.hex() == whole);
    }
    const TempDir dir;
    io::write_file_atomic(dir / "f", bytes);
    CHECK(sha256_file(dir / "f") == whole);
}

TEST_CASE("CRC-32C: the check value, RFC 3720's examples, and streaming") {
    CHECK(crc32c("123456789") == 0xe3069283u);
    CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);
    CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
    std::string up;
    for (int i = 0; i < 32; ++i) up.push_back(static_cast<char>(i));
    CHECK(crc32c(up) == 0x46dd794eu);
    for (size_t cut = 0; cut <= up.size(); ++cut) {
        const std::string_view all = up;
        CHECK(crc32c(all.substr(cut), crc32c(all.substr(0, cut))) == 0x46dd794eu);
    }
}

TEST_CASE("FNV-1a 64") {
    CHECK(fnv1a("") == 0xcbf29ce484222325ull);
    CHECK(fnv1a("a") == 0xaf63dc4c8601ec8cull);
    CHECK(fnv1a("foobar") == 0x85944171f73967e8ull);
}
