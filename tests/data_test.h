// What the data tests share: a small tokenizer, and the real one where it is there.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/dataset.h"
#include "model/gguf.h"
#include "model/resolve.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "tests/small_tokenizer.h"

namespace orpo {

// The fields of the real model's tokenizer, or null with a loud word.
inline std::shared_ptr<GgufTokenizerFields> real_tokenizer_fields() {
    try {
        const ResolvedModel model = resolve_model("");
        if (model.is_gguf)
            return std::make_shared<GgufTokenizerFields>(gguf_tokenizer_fields(GgufFile::open(model.path)));
    } catch (const Error&) {
    }
    MESSAGE("skipped: no model (a .gguf in the cache, or ORPO_MODEL)");
    return nullptr;
}

inline std::string test_file(const std::string& name) {
    const char* root = std::getenv("ORPO_TEST_DATA");
    return (std::filesystem::path(root == nullptr ? "tests" : root) / name).string();
}

// Real data that is not part of the project: ORPO_TEST_SHARED, else ../shared/data beside the repository.
inline std::optional<std::string> shared_file(const std::string& name) {
    const char* set = std::getenv("ORPO_TEST_SHARED");
    const char* root = std::getenv("ORPO_TEST_DATA");
    std::filesystem::path folder = set != nullptr ? set : "";
    if (set == nullptr) folder = std::filesystem::path(root == nullptr ? "tests" : root) / "../../shared/data";
    if (!std::filesystem::exists(folder / name)) return std::nullopt;
    return (folder / name).string();
}

// The message of the Error that `run` throws; checks its exit code.
template <class Run>
std::string message_of(Exit exit, Run run) {
    try {
        run();
    } catch (const Error& e) {
        CHECK(static_cast<int>(e.exit()) == static_cast<int>(exit));
        return e.what();
    }
    FAIL("nothing was thrown");
    return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace orpo
