// `orpo bench` and `orpo profile` through --device cuda, on the stand-in: that everything they launch runs, and that what
// they compare is right. Nothing is asserted of speed.
#include <doctest/doctest.h>

#include <cmath>

#include "src/metrics_log.h"
#include "tests/program.h"
#include "tests/temp_dir.h"
#include "tests/tiny_model_dir.h"

using namespace orpo;
using Words = std::vector<std::string>;

namespace {

struct Place {
    TempDir dir;
    std::string model = dir / "model";
    Place() { test::write_tiny_model(model, 1, test::tiny_gpu_dir_config()); }
    Json object(Words words, const std::string& device = "cuda") const {
        for (const std::string& word : {std::string("--device"), device, std::string("--json"), std::string("--model"), model})
            words.push_back(word);
        const test::Ran ran = test::run(words, dir / "log");
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return Json::parse(ran.out);
    }
};
const Words kSmall = {"--repeats", "1", "--gemm-size", "64", "--copy-bytes", "1048576"};
const Words kPair = {"--prompt-tokens", "9", "--response-tokens", "5", "--lora-rank", "8"};
Words joined(Words words, const Words& a, const Words& b = {}) {
    words.insert(words.end(), a.begin(), a.end());
    words.insert(words.end(), b.begin(), b.end());
    return words;
}
bool positive(const Json& value) { return value.is_number() && std::isfinite(double(value)) && double(value) > 0; }

}  // namespace

TEST_CASE("bench progress on the device: every version agrees with the reference") {
    const Place place;
    const Json r = place.object(joined({"bench", "progress"}, kPair, kSmall));
    int versions = 0;
    std::string before;
    for (const Json& row : r["operations"]) {
        CAPTURE(row.dump());
        CHECK(row["sound"] == true);
        CHECK(double(row["error"]) <= double(row["tolerance"]));
        CHECK((positive(row["seconds"]) && positive(row["share"])));
        // From 1 on, and ours last.
        const std::string name = row["name"];
        if (row["operation"] != before) CHECK(name.substr(0, 2) == "1 ");
        before = row["operation"];
        ++versions;
    }
    CHECK(versions == 5 + 4 + 4);
}

TEST_CASE("bench kernels on the device: the same list as on a CPU, in both types") {
    const Place place;
    const Words words = joined({"bench", "kernels", "--cached", "7"}, kPair, kSmall);
    const Json cpu = place.object(joined(words, {"--dtype", "fp32"}), "cpu");
    for (const char* dtype : {"fp32", "bf16"}) {
        const Json r = place.object(joined(words, {"--dtype", dtype}));
        CHECK((positive(r["copy_bytes_per_second"]) && positive(r["gemm_ceiling_flops"])));
        REQUIRE(r["operations"].size() == cpu["operations"].size());
        for (size_t i = 0; i < r["operations"].size(); ++i) {
            const Json &row = r["operations"][i], &same = cpu["operations"][i];
            CAPTURE(row.dump());
            CHECK(row["operation"] == same["operation"]);
            CHECK((positive(row["seconds"]) && positive(row["bytes"])));
            // The device rounds the batch up: at least the work that the CPU counts.
            CHECK(double(row["flops"]) >= double(same["flops"]));
        }
    }
}

TEST_CASE("bench train and decode on the device: the CPU's loss, and the card's bytes") {
    const Place place;
    const Words train = joined({"bench", "train", "--pairs", "2", "--steps", "1", "--dtype", "fp32"}, kPair,
                               {"--gemm-size", "64", "--copy-bytes", "1048576"});
    const Json cpu = place.object(train, "cpu"), gpu = place.object(train);
    CHECK(double(gpu["base_loss"]) == doctest::Approx(double(cpu["base_loss"])).epsilon(1e-5));
    CHECK(gpu["useful_flops_per_pair"] == cpu["useful_flops_per_pair"]);
    CHECK(positive(gpu["planned_bytes"]));
    const Json capped = place.object(joined(train, {"--memory-limit", std::to_string(int64_t(gpu["planned_bytes"]))}));
    CHECK(int64_t(capped["planned_bytes"]) <= int64_t(gpu["planned_bytes"]));

    const Words decode = {"bench", "decode", "--cached", "9", "--new-tokens", "3", "--gemm-size", "64", "--copy-bytes",
                          "1048576", "--repeats", "1"};
    const Json d = place.object(joined(decode, {"--dtype", "bf16"})), e = place.object(joined(decode, {"--dtype", "fp32"}));
    CHECK((positive(d["tokens_per_second"]) && positive(d["copy_share"])));
    CHECK(2 * double(d["bytes_per_token"]) == double(e["bytes_per_token"]));
}

TEST_CASE("bench train: a file of lengths") {
    const Place place;
    io::write_file_atomic(place.dir / "lengths", "9 5 5\n3 7 4\n");
    const Json r = place.object({"bench", "train", "--lengths", place.dir / "lengths", "--pairs", "2", "--steps", "1",
                                 "--gemm-size", "64", "--copy-bytes", "1048576"},
                                "cpu");
    CHECK(r["tokens"] == 9 + 5 + 5 + 3 + 7 + 4);
    io::write_file_atomic(place.dir / "lengths", "9 5 5\n3 0 4\n");
    const test::Ran bad = test::run({"bench", "train", "--model", place.model, "--device", "cpu", "--lengths",
                                     place.dir / "lengths", "--pairs", "2"},
                                    place.dir / "log");
    CHECK(bad.code == 3);
    CHECK(bad.err.find("lengths:2") != std::string::npos);
}

TEST_CASE("profile on the device: one step") {
    const Place place;
    const Json r = place.object(joined({"profile", "--layers", "1"}, kPair));
    CHECK(r["layers"] == 1);
    CHECK(positive(r["seconds"]));
}
