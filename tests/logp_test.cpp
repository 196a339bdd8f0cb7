// Log-probabilities of the real 135M against transformers in fp32 on the same dequantised weights, for every prompt and
// answer of a few pairs of data/samples (tools/make_logp_golden.py): `orpo eval --records`, as a user calls it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/io.h"
#include "model/resolve.h"
#include "tests/program.h"
#include "tests/temp_dir.h"
#include "tests/test_data.h"

using namespace orpo;
using Json = nlohmann::json;

namespace {

std::vector<std::string> lines_of(const std::string& path) {
    std::vector<std::string> lines;
    const std::string text = io::read_file(path, 1 << 26);
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        lines.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return lines;
}

}  // namespace

TEST_CASE("the real model's sums of log-probabilities: within 1e-4 max(1, |sum|) of transformers") {
    try {
        resolve_model("");
    } catch (const std::exception&) {
        MESSAGE("skipped: no model (tools/fetch_model.sh gets one)");
        return;
    }
    const Json golden = Json::parse(io::read_file(test_data("golden/logp.json"), 1 << 20));
    REQUIRE(golden.size() == 8);
    TempDir dir;
    std::string rows;
    for (const Json& row : golden)
        rows += lines_of(test_data("../data/samples/" + row.at("file").get<std::string>() + ".jsonl"))
                    .at(row.at("line").get<size_t>() - 1) +
                "\n";
    io::write_file_atomic(dir / "rows.jsonl", rows);
    const auto ran = test::run({"eval", dir / "rows.jsonl", "--records", dir / "records.jsonl", "--dtype", "fp32",
                                "--device", "cpu", "--quiet"},
                               dir / "log");
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    const auto records = lines_of(dir / "records.jsonl");
    REQUIRE(records.size() == golden.size());
    double worst = 0;
    for (size_t i = 0; i < records.size(); ++i) {
        const Json record = Json::parse(records[i]);
        const Json& want = golden[i];
        CAPTURE(want.at("file").get<std::string>());
        CAPTURE(want.at("line").get<int>());
        for (const char* key : {"prompt_tokens", "chosen_tokens", "rejected_tokens"}) CHECK(record[key] == want[key]);
        for (const char* key : {"prompt_logp", "chosen_logp", "rejected_logp"}) {
            const double got = record.at(key), reference = want.at("fp32").at(key), exact = want.at("fp64").at(key);
            const double error = std::abs(got - reference) / std::max(1.0, std::abs(reference));
            CHECK_MESSAGE(error <= 1e-4, key << ": " << got << ", transformers has " << reference);
            // fp32 itself, not the reference's rounding: against the same model in double.
            CHECK(std::abs(got - exact) <= 1e-4 * std::max(1.0, std::abs(exact)));
            worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
        }
    }
    MESSAGE("largest error " << worst << " of max(1, |sum|)");
}
