// TensorBoard events against bytes that TensorBoard's own writer makes.
#include "src/tensorboard.h"

#include <doctest/doctest.h>

#include <cmath>

#include "base/io.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

std::string hex(std::string_view bytes) {
    static const char* digits = "0123456789abcdef";
    std::string out;
    for (const unsigned char c : bytes) {
        out += digits[c >> 4];
        out += digits[c & 15];
    }
    return out;
}

}  // namespace

TEST_CASE("the version record has the reference's bytes") {
    CHECK(hex(tensorboard_record(tensorboard_version_event(0))) ==
          "1800000000000000a37f4b220900000000000000001a0d627261696e2e4576656e743a32eedf28a3");
}

TEST_CASE("a scalar record has the reference's bytes") {
    const Scalar loss[] = {{"loss", 2.5}};
    CHECK(hex(tensorboard_record(tensorboard_scalars_event(1.0, 1, loss))) ==
          "1a00000000000000129bd82d09000000000000f03f10012a0d0a0b0a046c6f73731500002040269910bb");
}

TEST_CASE("a log is the version record and one record a step; what is not finite is left out") {
    TempDir dir;
    TensorboardLog log(dir.path());
    const Scalar first[] = {{"loss", 1.5}, {"rewards/margins", -0.25}};
    const Scalar second[] = {{"loss", NAN}, {"lr", 1e-3}};
    log.write(1, first);
    log.write(300, second);
    const std::string bytes = io::read_file(log.path(), 1 << 20);
    CHECK(io::base_name(log.path()).starts_with("events.out.tfevents."));
    size_t at = 0, records = 0;
    std::string last;
    while (at < bytes.size()) {
        uint64_t length = 0;
        for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(bytes[at + i]);
        REQUIRE(at + 16 + length <= bytes.size());
        last = bytes.substr(at + 12, length);
        CHECK(tensorboard_record(last) == bytes.substr(at, 16 + length));
        at += 16 + length;
        ++records;
    }
    CHECK(records == 3);
    CHECK(last.find("loss") == std::string::npos);
    CHECK(last.find("lr") != std::string::npos);
    CHECK(hex(last.substr(9, 3)) == "10ac02");  // step 300 as a varint

    SUBCASE("a second log of the same second gets a file of its own") {
        TensorboardLog other(dir.path());
        CHECK(other.path() != log.path());
    }
}
