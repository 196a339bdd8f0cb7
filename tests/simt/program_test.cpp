// The program itself on the stand-in for a GPU, loaded as the CUDA library of a user's machine would be: training,
// evaluation, generation and plans through --device cuda, beside --device cpu.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>

#include "model/peft_adapter.h"
#include "src/checkpoint.h"
#include "tests/train_place.h"

using namespace orpo;
using namespace orpo::test;

namespace {

struct Place : TrainPlace {
    Place() : TrainPlace({"--dtype", "fp32", "--lr", "1e-2", "--max-steps", "8", "--eval-every", "4"}) {
        write_tiny_model(model, 1, tiny_gpu_dir_config());
    }
    void train_on(const std::string& device, const std::string& out, Words flags = {}) const {
        flags.insert(flags.begin(), {"--device", device});
        const Ran ran = run(train(out, flags));
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        // Nobody fell back to another device.
        const std::string on = lines(out, "header").at(0).at("cpu");
        CHECK_MESSAGE(contains(on, "stand-in") == (device == "cuda"), on);
    }
    std::vector<float> adapter(const std::string& out) const {
        return load_checkpoint(checkpoint_path(dir / out, list_checkpoints(dir / out).back())).masters;
    }
    // Forgets what a run did after `step`.
    void back_to(const std::string& out, int64_t step) const {
        for (const int64_t s : list_checkpoints(dir / out))
            if (s > step) std::filesystem::remove_all(checkpoint_path(dir / out, s));
        REQUIRE(list_checkpoints(dir / out).back() == step);
    }
};

// |a - b| relative to b; NaN fails every comparison.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = double{a[i]} - b[i];
        difference += d * d, norm += double{b[i]} * b[i];
    }
    return std::sqrt(difference / norm);
}
double cosine(const std::vector<float>& a, const std::vector<float>& b) {
    REQUIRE(a.size() == b.size());
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) ab += double{a[i]} * b[i], aa += double{a[i]} * a[i], bb += double{b[i]} * b[i];
    return ab / std::sqrt(aa * bb);
}

// Every number of two objects with the same keys, but for times, speeds and memory.
void check_close(const Json& a, const Json& b, double tolerance) {
    REQUIRE(a.size() == b.size());
    for (const auto& item : b.items()) {
        const std::string key = item.key();
        const Json& value = item.value();
        if (!value.is_number() || key == "seconds" || key == "tokens_per_second" || key == "peak_bytes" ||
            key == "gemm_share")
            continue;
        const double got = a.at(key), want = value;
        CHECK_MESSAGE(std::abs(got - want) <= tolerance * (1 + std::abs(want)), key, ": ", got, ", expected ", want);
    }
}
void check_close(const std::vector<Json>& a, const std::vector<Json>& b, double tolerance) {
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) check_close(a[i], b[i], tolerance);
}

}  // namespace

TEST_CASE("train on the GPU in fp32: the CPU's losses, evaluations and adapter") {
    const Place place;
    for (const Words& flags : {Words{}, Words{"--lora-dropout", "0.2", "--micro-batch-tokens", "64"}}) {
        const std::string at = std::to_string(flags.size());
        place.train_on("cpu", "cpu" + at, flags), place.train_on("cuda", "cuda" + at, flags);
        for (const char* type : {"step", "eval"})
            check_close(place.lines("cuda" + at, type), place.lines("cpu" + at, type), 1e-5);
        const double apart = distance(place.adapter("cuda" + at), place.adapter("cpu" + at));
        MESSAGE("adapters differ by ", apart);
        CHECK(apart <= 1e-5);
    }
}

TEST_CASE("train on the GPU in bf16, the usual number format there: close to fp32") {
    const Place place;
    place.train_on("cpu", "cpu", {"--max-steps", "2"});
    place.train_on("cuda", "cuda", {"--max-steps", "2", "--dtype", "auto"});
    CHECK(place.lines("cuda", "header").at(0).at("dtype") == "bf16");
    const Json got = place.lines("cuda", "step").at(0), want = place.lines("cpu", "step").at(0);
    for (const char* key : {"loss", "nll_loss"})
        CHECK(std::abs(got.at(key).get<double>() - want.at(key).get<double>()) <= 5e-3 * want.at(key).get<double>());
    // Adam's first moments are made of the gradients.
    const auto moments = [&](const char* out) { return load_checkpoint(checkpoint_path(place.dir / out, 2)).m; };
    const double along = cosine(moments("cuda"), moments("cpu"));
    MESSAGE("cosine ", along);
    CHECK(along >= 0.995);
}

TEST_CASE("two runs on the GPU give the same bits") {
    const Place place;
    place.train_on("cuda", "one", {"--dtype", "bf16"}), place.train_on("cuda", "two", {"--dtype", "bf16"});
    CHECK(place.adapter_hash("one") == place.adapter_hash("two"));
    CHECK(place.history("one") == place.history("two"));
}

TEST_CASE("a checkpoint of one device goes on on the other, both ways; on its own device to the same bits") {
    const Place place;
    const Words often = {"--save-every", "1", "--keep", "100"};
    place.train_on("cpu", "whole-cpu", often), place.train_on("cuda", "whole-cuda", often);
    for (const auto& [from, to] : {std::pair{"cpu", "cuda"}, {"cuda", "cpu"}, {"cuda", "cuda"}}) {
        const std::string out = std::string(from) + "-" + to;
        place.train_on(from, out, often);
        place.back_to(out, 3);
        const Ran ran = place.run({"train", "--resume", "--out", place.dir / out, "--device", to});
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        CHECK(contains(ran.err, "going on from step 3"));
        CHECK(contains(ran.err, "may differ in its last bits") == (std::string(from) != to));
        CHECK(distance(place.adapter(out), place.adapter("whole-cpu")) <= 1e-5);
        if (std::string(from) == to) CHECK(place.adapter_hash(out) == place.adapter_hash("whole-cuda"));
    }
}

TEST_CASE("eval and generate on the GPU say what they say on the CPU") {
    const Place place;
    place.train_on("cpu", "run");
    const std::string adapter = place.dir / "run/adapter";
    const auto eval = [&](const std::string& device) {
        const std::string records = place.dir / ("records-" + device);
        const Ran ran = place.run({"eval", place.held_out, "--model", place.model, "--adapter", adapter, "--dtype",
                                   "fp32", "--json", "--records", records, "--device", device});
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        std::vector<Json> all = {Json::parse(ran.out)};
        const std::string text = io::read_file(records, 1 << 20);
        for (size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1)
            all.push_back(Json::parse(text.substr(begin, text.find('\n', begin) - begin)));
        return all;
    };
    const auto got = eval("cuda");
    CHECK(got.size() == 7);
    check_close(got, eval("cpu"), 1e-5);

    io::write_file_atomic(place.dir / "prompts", "\"a\"\n\"some words\"\n\"0123456789\"\n");
    const auto generate = [&](const std::string& device, const std::string& dtype) {
        const Ran ran = place.run({"generate", "--prompts", place.dir / "prompts", "--model", place.model, "--adapter",
                                   adapter, "--dtype", dtype, "--max-tokens", "12", "--json", "--device", device});
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return ran.out;
    };
    CHECK(generate("cuda", "fp32") == generate("cpu", "fp32"));
    CHECK(!generate("cuda", "bf16").empty());
}

TEST_CASE("what a machine has decides the device") {
    const Place place;
    const auto device = [&](const std::string& wanted, const std::map<std::string, std::string>& environment) {
        const Ran ran = place.run({"plan", "--model", "135M", "--max-length", "64", "--json", "--device", wanted},
                                  environment);
        return ran.code == 0 ? Json::parse(ran.out).at("device").get<std::string>() : std::to_string(ran.code);
    };
    CHECK(device("auto", {}) == "cuda:0");
    CHECK(device("auto", {{"ORPO_CUDA_LIBRARY", place.dir / "none.so"}}) == "cpu");
    const Ran none = place.run(place.train("none", {"--device", "cuda"}), {{"ORPO_CUDA_LIBRARY", place.dir / "none.so"}});
    CHECK(none.code == 9);
    CHECK(contains(none.err, "--device cpu"));
    CHECK(place.run(place.train("far", {"--device", "cuda:3"})).code == 9);
}

TEST_CASE("--tune: every product's algorithm is chosen once, kept with the run, and taken again") {
    const Place place;
    place.train_on("cuda", "plain", {"--save-every", "1", "--keep", "100"});
    place.train_on("cuda", "tuned", {"--save-every", "1", "--keep", "100", "--tune"});
    // Timing leaves no trace in the numbers (the stand-in's algorithms compute the same).
    CHECK(place.history("tuned") == place.history("plain"));
    CHECK(place.adapter_hash("tuned") == place.adapter_hash("plain"));
    CHECK(!io::exists(place.dir / "plain/tuning.json"));
    const std::string file = place.dir / "tuned/tuning.json", text = io::read_file(file, 1 << 20);
    const Json tuning = Json::parse(text);
    CHECK(tuning.at("products").size() > 20);
    for (const auto& item : tuning.at("products").items()) CHECK_MESSAGE(item.value() == "second", item.key());

    // Going on takes the choices from the file, whatever would be the fastest today, and keeps them.
    std::string other = text;
    for (size_t at = 0; (at = other.find("\"second\"", at)) != std::string::npos;) other.replace(at, 8, "\"third\"");
    io::write_file_atomic(file, other);
    place.back_to("tuned", 3);
    const Ran ran = place.run({"train", "--resume", "--out", place.dir / "tuned"});
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK(place.adapter_hash("tuned") == place.adapter_hash("plain"));
    CHECK(io::read_file(file, 1 << 20) == other);
}

TEST_CASE("memory: a GPU's plan depends on the card alone, is kept on resume, and what does not fit says what mends it") {
    const Place place;
    const auto plan = [&](const Words& more, const std::map<std::string, std::string>& environment = {}) {
        Words words = {"plan", "--model", "135M", "--json", "--device", "cuda"};
        words.insert(words.end(), more.begin(), more.end());
        const Ran ran = place.run(words, environment);
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        Json json = Json::parse(ran.out);
        json.erase("host_bytes"), json.erase("device");  // the program's own size; cuda or cuda:0
        return json;
    };
    // What others use of the card changes nothing.
    const Json all = plan({}), busy = plan({}, {{"ORPO_STANDIN_TAKEN", "20000000000"}});
    CHECK(all == busy);
    CHECK(all.at("micro_batch_tokens") == 16384);
    CHECK(all.at("keep") == "everything");
    CHECK(plan({"--memory", "24GiB"}) == all);
    const Json small = plan({"--memory", "4GB"});
    CHECK(small.at("peak_bytes") < 4000000000);
    CHECK(small.at("micro_batch_tokens") < 16384);
    const Json capped = plan({"--memory-limit", "2GB"});
    CHECK(capped.at("peak_bytes").get<int64_t>() - capped.at("context_bytes").get<int64_t>() <= 2000000000);
    CHECK(capped.at("micro_batch_tokens") < 16384);

    // A run under a limit: its micro-batch stays when it goes on without one.
    const Words little = {"--memory-limit", "82MB", "--save-every", "1", "--keep", "100"};
    place.train_on("cuda", "run", little);
    const auto tokens = [&] {
        return Json::parse(io::read_file(place.dir / "run/config.json", 1 << 20)).at("micro-batch-tokens");
    };
    const Json planned = tokens();
    CHECK(planned.get<int>() > 0);
    place.back_to("run", 2);
    const Ran ran = place.run({"train", "--resume", "--out", place.dir / "run", "--memory-limit", "none"});
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK(tokens() == planned);

    const auto refused = [&](const Ran& failed, const Words& parts) {
        CHECK_MESSAGE(failed.code == 5, failed.err);
        CHECK(!contains(failed.err, "internal error"));
        for (const std::string& part : parts) CHECK_MESSAGE(contains(failed.err, part), failed.err);
    };
    refused(place.run(place.train("none", {"--device", "cuda", "--memory-limit", "1MB"})), {"--memory-limit"});
    refused(place.run({"plan", "--model", "1.7B", "--device", "cuda", "--memory", "4GB"}), {"--max-length"});
    refused(place.run(place.train("none", {"--device", "cuda"}), {{"ORPO_STANDIN_BYTES", "545000000"}}), {"--max-length"});
    // The card is large enough, but other programs hold most of it.
    refused(place.run(place.train("none", {"--device", "cuda"}), {{"ORPO_STANDIN_TAKEN", "25768000000"}}),
            {"close other programs", "--memory-limit"});
    refused(place.run({"generate", "--model", place.model, "--prompt", "a", "--device", "cuda"},
                      {{"ORPO_STANDIN_BYTES", "545000000"}}),
            {"--device cpu"});
}

TEST_CASE("orpo plan for a GPU that is not here") {
    const Place place;
    const std::map<std::string, std::string> nothing = {{"ORPO_CUDA_LIBRARY", place.dir / "none.so"}};
    const Words words = {"plan", "--model", "1.7B", "--memory", "24GiB", "--device", "cuda"};
    const Ran ran = place.run(words, nothing);
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    for (const char* part : {"weights", "gradients", "optimizer", "workspace", "CUDA context", "expected peak", "tokens"})
        CHECK_MESSAGE(contains(ran.out, part), ran.out);
    Words as_json = words;
    as_json.insert(as_json.end(), {"--json", "--memory-limit", "22.5GiB"});
    const Json plan = Json::parse(place.run(as_json, nothing).out);
    CHECK(plan.at("dtype") == "bf16");
    CHECK(plan.at("keep") == "activations");  // no product is made again
    CHECK(plan.at("micro_batch_tokens") >= 13000);
    CHECK(plan.at("peak_bytes").get<int64_t>() <= int64_t{24} << 30);
    int64_t sum = plan.at("context_bytes");
    for (const char* category : {"weights", "adapters", "gradients", "optimizer", "activations", "workspace", "batch"})
        sum += plan.at(std::string(category) + "_bytes").get<int64_t>();
    CHECK(sum == plan.at("peak_bytes"));
    const Ran small = place.run({"plan", "--model", "1.7B", "--memory", "7GB", "--device", "cuda", "--max-length", "1024"},
                                nothing);
    CHECK_MESSAGE(small.code == 0, small.err);
    // Without a size there is nothing to plan for.
    CHECK(place.run({"plan", "--model", "1.7B", "--device", "cuda"}, nothing).code == 9);
}

TEST_CASE("bench train on the GPU: the CPU's loss, the bytes of the plan") {
    const Place place;
    const auto object = [&](const std::string& what, const std::string& device, const Words& more) {
        Words words = {"bench", what, "--model", place.model, "--dtype", "fp32", "--json", "--prompt-tokens", "7",
                       "--response-tokens", "5", "--pairs", "2", "--device", device};
        words.insert(words.end(), more.begin(), more.end());
        const Ran ran = place.run(words);
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return Json::parse(ran.out);
    };
    const Words small = {"--gemm-size", "64", "--copy-bytes", "65536"};
    Words steps = small;
    steps.insert(steps.end(), {"--steps", "1"});
    const Json gpu = object("train", "cuda", steps), cpu = object("train", "cpu", {"--steps", "1"});
    const double loss = cpu.at("base_loss");
    CHECK(std::abs(gpu.at("base_loss").get<double>() - loss) <= 1e-5 * loss);
    CHECK(gpu.at("peak_bytes") == gpu.at("planned_bytes"));
    CHECK(gpu.at("pairs_per_second") > 0);
}
