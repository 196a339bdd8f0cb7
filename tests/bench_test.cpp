// `orpo bench` and `orpo profile` as programs read them: fields, finite numbers, and what must hold of any machine.
// Nothing is asserted of speed.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

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
    Place() { test::write_tiny_model(model); }
    test::Ran run(Words words) const { return test::run(words, dir / "log"); }
    Json object(Words words) const {
        for (const char* word : {"--device", "cpu", "--json", "--threads", "1"}) words.push_back(word);
        const test::Ran ran = run(words);
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return Json::parse(ran.out);
    }
};
const Words kSmallCeilings = {"--repeats", "1", "--gemm-size", "64", "--copy-bytes", "1048576"};
Words with(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

void positive(const Json& object, const Words& names) {
    for (const std::string& name : names) {
        CAPTURE(name);
        REQUIRE(object.contains(name));
        const double value = object[name];
        CHECK((std::isfinite(value) && value > 0));
    }
}

}  // namespace

TEST_CASE("bench train: what it prints") {
    const Place place;
    const Json r = place.object(with({"bench", "train", "--model", place.model, "--pairs", "2", "--prompt-tokens", "7",
                                      "--response-tokens", "5", "--steps", "1"},
                                     kSmallCeilings));
    positive(r, {"pairs_per_second", "tokens_per_second", "useful_flops_per_pair", "gemm_ceiling_flops", "gemm_share",
                 "peak_bytes", "planned_bytes", "base_loss"});
    CHECK(r["pairs"] == 2);
    CHECK((r["dtype"] == "fp32" || r["dtype"] == "bf16"));
    // Random weights predict nothing: the loss is near log V, and the odds' part near beta log 2.
    CHECK(double(r["base_loss"]) > 3);
    CHECK(double(r["base_loss"]) < 9);
}

TEST_CASE("bench kernels: every operation of the contract, with its counts") {
    const Place place;
    const Json r = place.object(with({"bench", "kernels", "--model", place.model, "--prompt-tokens", "7",
                                      "--response-tokens", "5", "--cached", "9", "--lora-rank", "4"},
                                     kSmallCeilings));
    positive(r, {"copy_bytes_per_second", "gemm_ceiling_flops", "tokens"});
    std::set<std::string> operations;
    for (const Json& row : r["operations"]) {
        CAPTURE(row.dump());
        operations.insert(row["operation"]);
        positive(row, {"seconds", "bytes", "share"});
        CHECK((row["bound"] == "memory" || row["bound"] == "products"));
        // One layer of 17 tokens, 32 channels, two heads: no operation has a million FLOPs but the head.
        CHECK(double(row["flops"]) < 4e6);
    }
    for (const char* name : {"linear",
                             "linear_backward",
                             "gemm_nt",
                             "gemm_nn",
                             "gemm_tn",
                             "low_rank_backward",
                             "embed",
                             "rmsnorm",
                             "add_rmsnorm",
                             "normalize",
                             "rmsnorm_backward",
                             "rope",
                             "attention",
                             "attention_backward",
                             "swiglu",
                             "swiglu_backward",
                             "dropout",
                             "dropout_add",
                             "head",
                             "orpo",
                             "scatter_scaled",
                             "squared_norms",
                             "adamw",
                             "cast",
                             "cache_append",
                             "decode_attention",
                             "logits"}) {
        CAPTURE(name);
        CHECK(operations.count(name) == 1);
    }
    // 17 rows of [7 prompt | 5 chosen | 5 rejected]: 4 * 16 * 2 heads * (12 * 13 / 2 + 5 * 7 + 5 * 6 / 2).
    for (const Json& row : r["operations"])
        if (row["operation"] == "attention") CHECK(double(row["flops"]) == 4.0 * 16 * 2 * (78 + 35 + 15));
}

TEST_CASE("bench decode: what it prints") {
    const Place place;
    const Json r = place.object(
        with({"bench", "decode", "--model", place.model, "--dtype", "fp32", "--cached", "9", "--new-tokens", "4"},
             kSmallCeilings));
    positive(r, {"tokens_per_second", "prefill_tokens_per_second", "bytes_per_token", "bytes_per_second",
                 "copy_bytes_per_second", "copy_share"});
    // 2 layers of 32 channels, 2 heads over 1 of 16, 48 wide; a vocabulary of 259; 9 + 2 + 2 rows of K and V; fp32.
    const double parameters = 2 * (32.0 * (2 * 32 + 2 * 16) + 3 * 32 * 48) + 259 * 32;
    CHECK(double(r["bytes_per_token"]) == 4 * (parameters + 2 * 2 * 16 * 13.0));
    const test::Ran far = place.run({"bench", "decode", "--model", place.model, "--cached", "3000", "--device", "cpu"});
    CHECK(far.code == 2);
    CHECK(far.err.find("--cached 3000") != std::string::npos);
}

TEST_CASE("bench progress: without a GPU it says so") {
    const Place place;
    for (const Words& device : {Words{}, Words{"--device", "cpu"}}) {
        const test::Ran ran = test::run(with({"bench", "progress", "--model", place.model}, device), place.dir / "log",
                                        {{"ORPO_CUDA_LIBRARY", place.dir / "none.so"}});
        CHECK(ran.code == 9);
        CHECK(ran.out.empty());
        CHECK(ran.err.find("needs a GPU") != std::string::npos);
    }
}

TEST_CASE("profile: the time of a step on a CPU, operation by operation") {
    const Place place;
    const Json r = place.object({"profile", "--model", place.model, "--prompt-tokens", "7", "--response-tokens", "5",
                                 "--layers", "1", "--steps", "2"});
    CHECK(r["layers"] == 1);
    CHECK(r["tokens"] == 17);
    double sum = 0;
    for (const Json& row : r["operations"]) sum += double(row["seconds"]);
    CHECK(sum > 0);
    CHECK(sum <= double(r["seconds"]));
}

TEST_CASE("bench: a word that is no benchmark") {
    const Place place;
    CHECK(place.run({"bench"}).code == 2);
    CHECK(place.run({"bench", "trian"}).code == 2);
}
