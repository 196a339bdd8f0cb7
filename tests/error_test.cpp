#include "base/error.h"

#include <doctest/doctest.h>

using namespace orpo;

TEST_CASE("an Error carries its exit code and its words") {
  try {
    throw Error(Exit::kBadData, "rows.jsonl:3: no prompt");
  } catch (const Error& e) {
    CHECK(static_cast<int>(e.exit()) == 3);
    CHECK(std::string(e.what()) == "rows.jsonl:3: no prompt");
  }
}

TEST_CASE("ORPO_CHECK names the expression and the file") {
  try {
    ORPO_CHECK(1 + 1 == 3);
    FAIL("the check passed");
  } catch (const InternalError& e) {
    CHECK(std::string(e.what()).find("1 + 1 == 3") != std::string::npos);
    CHECK(std::string(e.what()).find("error_test.cpp") != std::string::npos);
  }
}
