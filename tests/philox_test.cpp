#include "base/philox.h"

#include <doctest/doctest.h>

using namespace orpo;

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST_CASE("Philox4x32-10 gives the published words") {
    CHECK(philox(0, {0, 0, 0, 0}) == PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(philox(~0ull, {~0u, ~0u, ~0u, ~0u}) == PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox(0x299f31d0a4093822ull, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
          PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform words lie in [0, 1)") {
    CHECK(uniform(0) == 0.0);
    CHECK(uniform(~0u) < 1.0);
}
