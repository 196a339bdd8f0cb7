// metrics.jsonl: full precision, nothing that is not JSON, one write a line, and what a resumed run keeps.
#include "src/metrics_log.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/io.h"
#include "tests/temp_dir.h"

using namespace orpo;

TEST_CASE("numbers come back to the last bit") {
    for (const double value : {0.1, 1.0 / 3, 1e-300, 5e-324, 2.0576131687242798, 1e22, -0.0}) {
        const Json line = Json::parse(metrics_line({{"type", "step"}, {"loss", value}}));
        CHECK(line["loss"].get<double>() == value);
    }
}

TEST_CASE("what is not finite becomes null, and is named") {
    const std::string line = metrics_line(
        {{"type", "step"}, {"loss", NAN}, {"lr", 1e-3}, {"grad_norm", std::numeric_limits<double>::infinity()}});
    CHECK(line == R"({"type":"step","loss":null,"lr":0.001,"grad_norm":null,"nonfinite":["loss","grad_norm"]})");
    CHECK(metrics_line({{"loss", 1.5}}) == R"({"loss":1.5})");
}

TEST_CASE("invalid UTF-8 in a path is replaced") {
    const Json line = Json::parse(metrics_line({{"path",
                                                 "a\xff"
                                                 "b"}}));
    CHECK(line["path"] ==
          "a\xEF\xBF\xBD"
          "b");
}

TEST_CASE("every line is one write") {
    TempDir dir;
    MetricsLog log(dir / "metrics.jsonl");
    io::ScopedFaults count({.op = io::Op::kWrite, .nth = 1000000});
    log.write({{"type", "step"}, {"step", 1}});
    log.write({{"type", "step"}, {"step", 2}});
    CHECK(count.calls() == 2);
}

TEST_CASE("rewinding drops what lies beyond the checkpoint, ends and torn lines") {
    TempDir dir;
    const std::string path = dir / "metrics.jsonl";
    const std::string kept =
        "{\"type\":\"header\"}\n{\"type\":\"eval\",\"step\":0}\n{\"type\":\"step\",\"step\":1}\n"
        "{\"type\":\"step\",\"step\":2}\n{\"type\":\"eval\",\"step\":2}\n";
    const std::string beyond = "{\"type\":\"step\",\"step\":3}\n{\"type\":\"end\",\"step\":3}\n{\"type\":\"step\",\"st";
    io::write_file_atomic(path, kept + beyond);
    MetricsLog::rewind(path, 2);
    CHECK(io::read_file(path, 1 << 20) == kept);
    MetricsLog(path).write({{"type", "step"}, {"step", 3}});
    CHECK(io::read_file(path, 1 << 20) == kept + "{\"type\":\"step\",\"step\":3}\n");
    MetricsLog::rewind(path, -1);
    CHECK(io::read_file(path, 1 << 20).empty());
    MetricsLog::rewind(dir / "missing.jsonl", 5);
    CHECK_FALSE(io::exists(dir / "missing.jsonl"));
}

TEST_CASE("a failing disk during rewinding leaves the log as it was") {
    TempDir dir;
    const std::string path = dir / "metrics.jsonl";
    const std::string text = "{\"type\":\"step\",\"step\":1}\n{\"type\":\"step\",\"step\":2}\n";
    io::write_file_atomic(path, text);
    for (const io::Op op : {io::Op::kWrite, io::Op::kFsync, io::Op::kRename}) {
        io::ScopedFaults fault({.op = op});
        CHECK_THROWS_AS(MetricsLog::rewind(path, 1), Error);
    }
    CHECK(io::read_file(path, 1 << 20) == text);
}
