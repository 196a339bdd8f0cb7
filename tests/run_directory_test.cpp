// Run directories: names, and that nothing is ever overwritten or shared.
#include "src/run_directory.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "base/io.h"
#include "tests/temp_dir.h"

using namespace orpo;

TEST_CASE("default names") {
    TempDir dir;
    const std::string parent = dir / "runs";
    const auto make = [&] {
        return RunDirectory::create_default(parent, "2026-11-24", "/data/my pairs (1).jsonl",
                                            "SmolLM2-135M-Instruct Q4_1");
    };
    const RunDirectory first = make();
    CHECK(first.path() == parent + "/2026-11-24-my-pairs-1-SmolLM2-135M-Instruct-Q4_1");
    const RunDirectory second = make();
    CHECK(second.path() == first.path() + "-2");
    CHECK(make().path() == first.path() + "-3");
    CHECK(RunDirectory::create_default(parent, "d", "-", "../..").path() == parent + "/d-stdin");
}

TEST_CASE("an existing run is refused, an empty directory is not") {
    TempDir dir;
    const std::string path = dir / "run";
    { CHECK(RunDirectory::create(path).path() == path); }
    { RunDirectory again = RunDirectory::create(path); }
    io::write_file_atomic(path + "/config.json", "{}");
    try {
        RunDirectory run = RunDirectory::create(path);
        FAIL("not refused");
    } catch (const Error& error) {
        CHECK(error.exit() == Exit::kUsage);
        CHECK(std::string(error.what()).find("--resume --out " + path) != std::string::npos);
    }
    CHECK(RunDirectory::open(path).config() == path + "/config.json");
    io::write_file_atomic(dir / "file", "x");
    CHECK_THROWS_AS(RunDirectory::create(dir / "file"), Error);
    CHECK_THROWS_AS(RunDirectory::open(dir / "missing"), Error);
}

TEST_CASE("one process at a time") {
    TempDir dir;
    const std::string path = dir / "run";
    {
        const RunDirectory run = RunDirectory::create(path);
        CHECK_THROWS_WITH_AS(RunDirectory::open(path), doctest::Contains("another orpo is training in it"), Error);
    }
    CHECK(RunDirectory::open(path).path() == path);
}
