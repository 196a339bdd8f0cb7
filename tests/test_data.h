// Where the tests' own files are.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

inline std::string test_data(const std::string& name) {
    const char* folder = std::getenv("ORPO_TEST_DATA");
    if (folder == nullptr) throw std::runtime_error("ORPO_TEST_DATA is not set: run the tests through ctest");
    return std::string(folder) + "/" + name;
}
