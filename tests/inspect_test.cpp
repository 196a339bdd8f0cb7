#include "src/inspect.h"

#include <doctest/doctest.h>

#include <filesystem>

#include "base/io.h"
#include "tests/expect_error.h"
#include "tests/temp_dir.h"
#include "tests/test_data.h"

using namespace orpo;

TEST_CASE("an adapter beside its base, and one whose base is not here") {
    TempDir dir;
    std::filesystem::copy(test_data("golden/formats/tiny"), dir / "tiny");
    io::write_file_atomic(dir / "tiny/tokenizer.json", "{}");
    const std::string adapter = test_data("golden/formats/peft-patterns");
    const Inspection found = inspect(adapter, dir / "tiny");
    CHECK(found.kind == "adapter");
    CHECK(found.facts["rank"] == 6);
    CHECK(found.facts["targets"] == "q_proj o_proj up_proj");
    CHECK(found.faults.empty());
    CHECK(found.notes.size() == 1);  // ranks differ

    const Inspection alone = inspect(adapter, "");
    CHECK(alone.kind == "adapter");
    CHECK(alone.facts["tensors"] == 12);
    CHECK(alone.notes.at(0).find("--model") != std::string::npos);
    expect_error(Exit::kBadModel, {"shape"}, [&] {
        std::filesystem::copy(adapter, dir / "adapter");
        std::string json = io::read_file(dir / "adapter/adapter_config.json", 1 << 20);
        json.replace(json.find("\"o_proj\": 6"), 11, "\"o_proj\": 3");
        io::write_file_atomic(dir / "adapter/adapter_config.json", json);
        inspect(dir / "adapter", dir / "tiny");
    });
}

TEST_CASE("a safetensors file, sound and with a NaN") {
    TempDir dir;
    const std::string path = test_data("golden/formats/tiny/model.safetensors");
    Inspection found = inspect(path, "");
    CHECK(found.kind == "safetensors file");
    CHECK(found.facts["tensors"] == 20);
    CHECK(found.faults.empty());
    std::string bytes = io::read_file(path, 1 << 20);
    bytes[bytes.size() - 1] = bytes[bytes.size() - 2] = '\xff';
    io::write_file_atomic(dir / "m.safetensors", bytes);
    found = inspect(dir / "m.safetensors", "");
    REQUIRE(found.faults.size() == 1);
    CHECK(found.faults[0].find("NaN") != std::string::npos);
}

TEST_CASE("what is nothing that we know") {
    TempDir dir;
    expect_error(Exit::kBadModel, {"no such file"}, [&] { inspect(dir / "missing", ""); });
    expect_error(Exit::kBadModel, {"no config.json"}, [&] { inspect(dir.path(), ""); });
    io::write_file_atomic(dir / "study.db", "SQLite format 3");
    expect_error(Exit::kUsage, {"study.db", "search report"}, [&] { inspect(dir / "study.db", ""); });
}
