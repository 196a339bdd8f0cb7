// orpo train as a user runs it, on a tiny random model: what it writes, when it stops, and what it refuses.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "model/adapter.h"
#include "tests/train_place.h"

using namespace orpo;
using namespace orpo::test;

TEST_CASE("a run: its files, its lines, its adapter") {
    const TrainPlace place;
    const Ran ran = place.run(place.train("run", {"--epochs", "2", "--lr", "1e-2"}));
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK(ran.out.empty());
    CHECK(contains(ran.err, "orpo generate"));
    CHECK(contains(ran.err, "orpo eval"));

    // 22 pairs by 4: 6 steps an epoch, the last one of 2 pairs.
    const auto steps = place.lines("run", "step");
    REQUIRE(steps.size() == 12);
    for (const char* key : {"step",
                            "epoch",
                            "lr",
                            "loss",
                            "nll_loss",
                            "log_odds_ratio",
                            "log_odds_chosen",
                            "logps/chosen",
                            "logps/rejected",
                            "rewards/chosen",
                            "rewards/rejected",
                            "rewards/margins",
                            "rewards/accuracies",
                            "grad_norm",
                            "pref_share",
                            "pairs",
                            "tokens",
                            "seconds",
                            "tokens_per_second",
                            "gemm_share",
                            "peak_bytes"})
        CHECK_MESSAGE(steps[3].contains(key), key);
    for (size_t i = 0; i < steps.size(); ++i) {
        CHECK(steps[i].at("step") == i + 1);
        CHECK(steps[i].at("pairs") == (i % 6 == 5 ? 2 : 4));
        CHECK(steps[i].at("epoch").get<double>() == doctest::Approx(i / 6 + std::min((i % 6 + 1) * 4.0, 22.0) / 22));
        const double loss = steps[i].at("nll_loss").get<double>() - 0.25 * steps[i].at("log_odds_ratio").get<double>();
        CHECK(steps[i].at("loss").get<double>() == doctest::Approx(loss).epsilon(1e-12));
    }
    CHECK(steps[0].at("lr") == 0);
    CHECK(steps[1].at("lr") == 1e-2);

    const auto evals = place.lines("run", "eval");
    REQUIRE(evals.size() >= 3);
    CHECK(evals.front().at("step") == 0);
    CHECK(evals.back().at("step") == 12);
    for (const char* key : {"pairs", "nll_chosen", "pref_acc", "log_odds", "or_loss", "margin", "nll_chosen_se",
                            "pref_acc_se", "log_odds_se", "or_loss_se", "margin_se", "eval_loss", "eval_nll_loss",
                            "eval_rewards/margins", "eval_log_odds_ratio"})
        CHECK_MESSAGE(evals[0].contains(key), key);
    CHECK(evals.back().at("nll_chosen").get<double>() < evals.front().at("nll_chosen").get<double>());

    const auto header = place.lines("run", "header");
    REQUIRE(header.size() == 1);
    CHECK(header[0].at("data").at("sha256") == sha256_file(place.data));
    const auto end = place.lines("run", "end");
    REQUIRE(end.size() == 1);
    CHECK(end[0].at("reason") == "done");
    CHECK(end[0].at("step") == 12);
    CHECK(end[0].at("best_step").get<int64_t>() > 0);

    const std::string run = place.dir / "run";
    CHECK(io::exists(run + "/adapter/adapter_config.json"));
    CHECK(io::exists(run + "/checkpoints/step-12/adapter/adapter_model.safetensors"));
    int events = 0;
    for (const std::string& name : io::list_dir(run)) events += name.starts_with("events.out.tfevents.");
    CHECK(events == 1);

    SUBCASE("its config.json is a --config that repeats it bit for bit") {
        const Ran again = place.run({"train", "--config", run + "/config.json", "--out", place.dir / "again"});
        REQUIRE_MESSAGE(again.code == 0, again.err);
        CHECK(place.adapter_hash("again") == place.adapter_hash("run"));
    }
    SUBCASE("threads change nothing") {
        const Ran again = place.run(place.train("again", {"--epochs", "2", "--lr", "1e-2", "--threads", "3"}));
        REQUIRE_MESSAGE(again.code == 0, again.err);
        CHECK(place.adapter_hash("again") == place.adapter_hash("run"));
    }
    SUBCASE("it is not overwritten") {
        const Ran again = place.run(place.train("run"));
        CHECK(again.code == 2);
        CHECK(contains(again.err, "--resume --out"));
    }
    SUBCASE("resuming what is done changes nothing") {
        const std::string before = place.adapter_hash("run");
        const Ran again = place.run({"train", "--resume", "--out", run});
        CHECK_MESSAGE(again.code == 0, again.err);
        CHECK(place.adapter_hash("run") == before);
        CHECK(place.lines("run", "step").size() == 12);
        CHECK(place.lines("run", "end").size() == 1);
    }
    SUBCASE("its adapter is a start for another run, and gives its own last metrics") {
        const Ran more = place.run({"train", place.data, "--model", place.model, "--eval", place.held_out, "--adapter",
                                    run + "/checkpoints/step-12/adapter", "--out", place.dir / "more", "--max-steps",
                                    "1", "--batch-size", "4", "--threads", "1"});
        REQUIRE_MESSAGE(more.code == 0, more.err);
        const double start = place.lines("more", "eval")[0].at("nll_chosen").get<double>();
        CHECK(start == evals.back().at("nll_chosen").get<double>());
        const Ran refused = place.run({"train", place.data, "--model", place.model, "--adapter", run + "/adapter",
                                       "--out", place.dir / "refused", "--lora-rank", "8"});
        CHECK(refused.code == 2);
        CHECK(contains(refused.err, "leave the flag out"));
    }
}

TEST_CASE("no shuffle is file order, and --max-steps stops") {
    const TrainPlace place;
    const Ran ran = place.run(place.train("run", {"--max-steps", "3", "--eval", "none", "--no-shuffle"}));
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK(place.lines("run", "step").size() == 3);
    CHECK(place.lines("run", "eval").empty());
    CHECK(place.lines("run", "end")[0].at("best_step").is_null());
    CHECK(sha256_file(place.dir / "run/adapter/adapter_model.safetensors") ==
          sha256_file(place.dir / "run/checkpoints/step-3/adapter/adapter_model.safetensors"));
}

TEST_CASE("how the batch is cut into micro-batches does not matter") {
    const TrainPlace place;
    const Words common = {"--max-steps", "4", "--eval", "none", "--schedule", "constant", "--warmup", "0"};
    std::vector<std::vector<Json>> all;
    for (const std::string tokens : {"60", "100", "4000"}) {
        Words flags = {"--micro-batch-tokens", tokens};
        flags.insert(flags.end(), common.begin(), common.end());
        const Ran ran = place.run(place.train("run-" + tokens, flags));
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        all.push_back(place.lines("run-" + tokens, "step"));
    }
    for (size_t i = 0; i < 4; ++i)
        for (const char* key : {"loss", "nll_loss", "log_odds_chosen", "grad_norm"})
            for (int other : {0, 1}) {
                const double a = all[other][i].at(key), b = all[2][i].at(key);
                CHECK(std::abs(a - b) <= 1e-5 * std::max(1.0, std::abs(b)));
            }
}

TEST_CASE("the dry run writes nothing, and promises the memory that the run takes") {
    const TrainPlace place;
    auto words = place.train("run", {"--json"});
    words.push_back("--dry-run");
    const Ran ran = place.run(words);
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK_FALSE(io::exists(place.dir / "run"));
    const Json plan = Json::parse(ran.out);
    CHECK(plan.at("steps") == 12);  // a small set: two epochs
    CHECK(plan.at("pairs") == 22);
    CHECK(plan.at("seconds").get<double>() > 0);
    words.pop_back();
    REQUIRE(place.run(words).code == 0);
    const double peak = place.lines("run", "step").back().at("peak_bytes"), promised = plan.at("peak_bytes");
    // The model is so small that the program itself is most of it.
    CHECK(std::abs(promised - peak) <= 0.1 * peak + 2e6);
}

TEST_CASE("early stop, and a warning for an adapter that is no better") {
    // Chosen answers are lower-case; held out, chosen and rejected are swapped: whatever is learned is wrong there.
    const TrainPlace place;
    std::string swapped = tiny_pairs(6, 9);
    for (const auto& [from, to] : {std::pair{"chosen", "others"}, {"rejected", "chosen"}, {"others", "rejected"}})
        for (size_t at = 0; (at = swapped.find(from, at)) != std::string::npos;)
            swapped.replace(at, std::strlen(from), to), at += std::strlen(to);
    io::write_file_atomic(place.held_out, swapped);
    const Ran ran = place.run(place.train("run", {"--epochs", "50", "--eval-every", "1", "--early-stop", "2", "--lr",
                                                  "1e-2", "--warmup", "0", "--beta", "5", "--best-metric", "or_loss"}));
    CHECK(ran.code == 0);
    CHECK(place.lines("run", "end")[0].at("reason") == "early stop");
    CHECK(place.lines("run", "step").size() < 50);
    CHECK(contains(ran.err, "NO BETTER"));
}

TEST_CASE("a learning rate too small to change anything is an error") {
    const TrainPlace place;
    const Ran ran = place.run(place.train("run", {"--lr", "1e-60"}));
    CHECK(ran.code == 7);
    CHECK(contains(ran.err, "changed nothing"));
}

TEST_CASE("a number that is not finite stops the run: step, lines, last checkpoint") {
    const TrainPlace place;
    // An adapter whose products overflow fp32.
    const LoraLayout layout(tiny_dir_config(), LoraConfig{.R = 4});
    std::vector<float> values = initial_adapter(layout, 1);
    for (float& value : values) value = value == 0 ? 3e38f : value;
    write_peft_adapter(place.dir / "huge", to_peft(layout, LoraConfig{.R = 4}, values));
    Words words = place.train("run", {"--adapter", place.dir / "huge", "--eval", "none"});
    const Ran ran = place.run(words);
    CHECK(ran.code == 7);
    CHECK_MESSAGE(contains(ran.err, "step 1: the loss is not a finite number"), ran.err);
    CHECK(contains(ran.err, "from the pairs of lines "));
    CHECK(contains(ran.err, "Last good checkpoint: none yet"));
    const auto steps = place.lines("run", "step"), end = place.lines("run", "end");
    REQUIRE(steps.size() == 1);
    CHECK(steps[0].at("loss").is_null());
    CHECK(steps[0].at("nonfinite")[0] == "loss");
    REQUIRE(end.size() == 1);
    CHECK(end[0].at("reason") == "non-finite");
    CHECK(end[0].at("step") == 0);
    CHECK_FALSE(io::exists(place.dir / "run/adapter"));
}

TEST_CASE("a gradient that is not finite stops the run, though the loss is finite: its own words, and the checkpoint") {
    const TrainPlace place;
    // With B zero the adapter changes nothing, so the loss is finite; the gradient of B is a product with what A makes,
    // which is as large as fp32 has numbers, and beta takes it beyond.
    const LoraConfig lora{.R = 4, .alpha = 8};
    const LoraLayout layout(tiny_dir_config(), lora);
    std::vector<float> values = initial_adapter(layout, 1);
    for (float& value : values) value *= 1e37f;  // B stays zero
    write_peft_adapter(place.dir / "large", to_peft(layout, lora, values));
    const Ran ran =
        place.run(place.train("run", {"--adapter", place.dir / "large", "--eval", "none", "--beta", "1000"}));
    CHECK(ran.code == 7);
    CHECK_MESSAGE(contains(ran.err, "step 1: the gradient is not a finite number"), ran.err);
    CHECK(contains(ran.err, "from the pairs of lines "));
    CHECK(contains(ran.err, "Last good checkpoint: none yet"));
    const auto steps = place.lines("run", "step");
    REQUIRE(steps.size() == 1);
    CHECK(steps[0].at("loss").is_number());
    CHECK(steps[0].at("grad_norm").is_null());
    CHECK(steps[0].at("nonfinite")[0] == "grad_norm");
}

TEST_CASE("what is odd about an adapter to go on from, and in the environment, is said") {
    const TrainPlace place;
    const std::string other = place.dir / "other";
    write_tiny_model(other, 2);
    REQUIRE(place.run(place.train("first", {"--max-steps", "1", "--eval", "none"})).code == 0);
    const Words more = {"--max-steps", "1", "--eval", "none", "--adapter", place.dir / "first/adapter"};
    Ran ran = place.run(place.train("same", more));
    CHECK(ran.code == 0);
    CHECK_FALSE(contains(ran.err, "another base"));
    CHECK_FALSE(contains(ran.err, "no setting"));
    Words words = more;
    words.insert(words.end(), {"--model", other});
    ran = place.run(place.train("moved", words));
    CHECK(ran.code == 0);
    CHECK_MESSAGE(contains(ran.err, "first/adapter: trained on another base than " + other), ran.err);
    CHECK(contains(place.run({"eval", place.data, "--model", other, "--adapter", place.dir / "first/adapter"}).err,
                   "trained on another base"));

    // Ranks that differ by module.
    std::string json = io::read_file(place.dir / "first/adapter/adapter_config.json", 1 << 20);
    nlohmann::json config = nlohmann::json::parse(json);
    config["alpha_pattern"] = {{"q_proj", 3}};
    io::write_file_atomic(place.dir / "first/adapter/adapter_config.json", config.dump());
    ran = place.run(place.train("folded", more), {{"ORPO_LAERNING_RATE", "1"}, {"ORPO_BATCHSIZE", "2"}});
    CHECK(ran.code == 0);
    CHECK_MESSAGE(contains(ran.err, "ranks or alphas differ by module"), ran.err);
    CHECK(contains(ran.err, "every module is trained with that rank"));
    CHECK(contains(ran.err, "the environment has ORPO_LAERNING_RATE, which is no setting of orpo"));
    CHECK(contains(ran.err, "ORPO_BATCHSIZE, which is no setting of orpo (did you mean ORPO_BATCH_SIZE?)"));
}

TEST_CASE("an adapter to go on from brings its dropout, but not to TRL's semantics, which know none") {
    const TrainPlace place;
    REQUIRE(place.run(place.train("first", {"--max-steps", "1", "--eval", "none", "--lora-dropout", "0.25"})).code ==
            0);
    const auto dropout_of = [&](const std::string& run, Words more) {
        more.insert(more.end(), {"--max-steps", "1", "--eval", "none", "--adapter", place.dir / "first/adapter"});
        const Ran ran = place.run(place.train(run, more));
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return nlohmann::json::parse(io::read_file(place.dir / (run + "/config.json"), 1 << 20)).at("lora-dropout");
    };
    CHECK(dropout_of("own", {}) == 0.25);
    CHECK(dropout_of("trl", {"--semantics", "trl"}) == 0);
    CHECK(dropout_of("asked", {"--semantics", "trl", "--lora-dropout", "0.5"}) == 0.5);
}

TEST_CASE("inspect: a run and its checkpoints, sound and damaged") {
    const TrainPlace place;
    REQUIRE(place.run(place.train("run", {"--max-steps", "4", "--save-every", "2", "--eval", "none"})).code == 0);
    const auto inspected = [&](const std::string& path) {
        const Ran ran = place.run({"inspect", path, "--json"});
        return std::pair(ran.code, Json::parse(ran.out));
    };
    auto [code, run] = inspected(place.dir / "run");
    CHECK(code == 0);
    CHECK(run.at("kind") == "run");
    CHECK(run.at("checkpoints") == 2);
    CHECK(run.at("sound_checkpoints") == 2);
    CHECK(run.at("newest_sound_step") == 4);
    CHECK(run.at("adapter") == "yes");
    const std::string step = place.dir / "run/checkpoints/step-4";
    auto [step_code, checkpoint] = inspected(step);
    CHECK(step_code == 0);
    CHECK(checkpoint.at("kind") == "checkpoint");
    CHECK(checkpoint.at("step") == 4);
    CHECK(checkpoint.at("epoch") == 0);
    CHECK(checkpoint.at("pairs_of_the_epoch_done") == 16);

    // One byte of one file.
    for (const auto& entry : std::filesystem::directory_iterator(step)) {
        if (entry.path().extension() == ".json" || entry.is_directory()) continue;
        std::string bytes = io::read_file(entry.path(), 1 << 26);
        bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
        io::write_file_atomic(entry.path(), bytes);
        break;
    }
    const Ran damaged = place.run({"inspect", place.dir / "run", "--json"});
    CHECK(damaged.code != 0);
    const Json report = Json::parse(damaged.out);
    CHECK(report.at("sound_checkpoints") == 1);
    CHECK(report.at("newest_sound_step") == 2);
    REQUIRE(report.at("faults").size() == 1);
    CHECK(contains(report.at("faults")[0], "step-4"));
    CHECK(place.run({"inspect", step}).code == 8);
}

TEST_CASE("mistakes have their exit codes") {
    const TrainPlace place;
    CHECK(place.run({"train"}).code == 2);
    CHECK(place.run({"train", "--resume"}).code == 2);
    CHECK(place.run({"train", "--resume", "--out", place.dir / "none"}).code == 2);
    CHECK(place.run({"train", place.dir / "missing.jsonl", "--model", place.model}).code == 6);
    CHECK(place.run(place.train("x", {"--micro-batch-tokens", "16"})).code == 2);
    CHECK(place.run(place.train("x", {"--best-metric", "loss"})).code == 2);
    CHECK(place.run(place.train("x", {"--adapter", place.dir / "missing"})).code == 4);
    CHECK_FALSE(io::exists(place.dir / "x"));
}
