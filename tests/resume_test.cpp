// A run that is killed, stopped, starved of disk or damaged goes on to the same bits, or says why it cannot.
#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "base/philox.h"
#include "src/checkpoint.h"
#include "tests/train_place.h"

using namespace orpo;
using namespace orpo::test;

namespace {

using Clock = std::chrono::steady_clock;

void nap() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

// Dropout and shuffling on, checkpoints inside epochs, evaluations between them.
struct Place : TrainPlace {
    Place()
        : TrainPlace(
              {"--epochs", "5", "--lr", "1e-2", "--lora-dropout", "0.1", "--save-every", "2", "--eval-every", "3"}) {}
    // A run that was killed after some steps.
    void half(const std::string& out) const {
        Process process(train(out, {"--save-every", "1"}), dir / "half");
        while (process.running() && list_checkpoints(dir / out).size() < 3) nap();
        process.kill(SIGKILL);
        process.wait();
        REQUIRE(list_checkpoints(dir / out).size() >= 2);
    }
};

}  // namespace

TEST_CASE("kill -9 at random moments, again and again: the same adapter and the same history") {
    const Place place;
    const auto begin = Clock::now();
    REQUIRE(place.run(place.train("whole")).code == 0);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const std::string hash = place.adapter_hash("whole"), history = place.history("whole");
    int kills = 0, chains = 0;
    uint32_t draw = 0;
    while (kills < 40 && chains < 40) {
        const std::string out = "killed-" + std::to_string(chains);
        const Words words = place.resume(out);
        // Every chain is killed three times, while it starts, trains, saves or resumes, then left alone. Other numbers
        // of threads on the way.
        for (int kill = 0; kill < 3; ++kill) {
            Process process(place.resume(out, {"--threads", std::to_string(1 + draw % 3)}), place.dir / "log");
            const double wait = seconds * 0.9 * uniform(philox(11, {draw++, 0, 0, 0})[0]);
            std::this_thread::sleep_for(std::chrono::duration<double>(wait));
            process.kill(SIGKILL);
            kills += process.wait() == 128 + SIGKILL;
        }
        const Ran last = place.run(words);
        REQUIRE_MESSAGE(last.code == 0, last.err);
        CHECK(place.adapter_hash(out) == hash);
        CHECK(place.history(out) == history);
        ++chains;
    }
    MESSAGE(kills, " kills in ", chains, " runs, each of ", seconds, " s");
    CHECK(kills >= 20);
}

TEST_CASE("SIGINT and SIGTERM finish the step, save, and say so in the exit code") {
    const Place place;
    REQUIRE(place.run(place.train("whole")).code == 0);
    for (const int signal : {SIGINT, SIGTERM}) {
        const std::string out = "stopped-" + std::to_string(signal);
        // Nothing is saved but by the signal.
        auto words = place.train(out, {"--save-every", "1000"});
        Process process(words, place.dir / "log");
        while (process.running() &&
               !(io::exists(place.dir / (out + "/metrics.jsonl")) &&
                 contains(io::read_file(place.dir / (out + "/metrics.jsonl"), 1 << 26), "\"step\":4")))
            nap();
        process.kill(signal);
        REQUIRE_MESSAGE(process.wait() == 128 + signal, process.err());
        CHECK(contains(process.err(), "--resume --out"));
        CHECK(list_checkpoints(place.dir / out).size() == 1);
        CHECK(io::exists(place.dir / (out + "/adapter/adapter_model.safetensors")));
        const Ran more = place.run({"train", "--resume", "--out", place.dir / out});
        REQUIRE_MESSAGE(more.code == 0, more.err);
        CHECK(place.adapter_hash(out) == place.adapter_hash("whole"));
        CHECK(place.history(out) == place.history("whole"));
    }
}

TEST_CASE("a changed configuration, data file or model is refused with its differences; the rest is noted") {
    const Place place;
    REQUIRE(place.run(place.train("whole")).code == 0);
    place.half("run");
    const std::string out = place.dir / "run";
    const auto refused = [&](Words more, const std::string& what) {
        Words words = {"train", "--resume", "--out", out};
        words.insert(words.end(), more.begin(), more.end());
        const Ran ran = place.run(words);
        CHECK(ran.code == 8);
        CHECK_MESSAGE(contains(ran.err, what), ran.err);
    };
    refused({"--lr", "1e-3"}, "--lr: was 0.01, is 0.001");
    refused({"--beta", "0.3", "--batch-size", "5"}, "--beta: was 0.25, is 0.3");
    refused({"--beta", "0.3", "--batch-size", "5"}, "--batch-size: was 4, is 5");
    refused({"--lora-rank", "8"}, "--lora-rank");
    refused({"--seed", "1"}, "--seed");
    refused({"--eval", "none"}, "--eval");

    const std::string sound = io::read_file(place.data, 1 << 20);
    io::write_file_atomic(place.data, sound + tiny_pairs(1, 5));
    refused({}, "training data (sha256)");
    io::write_file_atomic(place.data, sound);
    write_tiny_model(place.model, 2);
    refused({}, "model weights (sha256)");
    write_tiny_model(place.model, 1);

    // Somebody edited the run's configuration.
    const std::string config = io::read_file(out + "/config.json", 1 << 20);
    std::string edited = config;
    edited.replace(edited.find("\"beta\": 0.25"), 12, "\"beta\": 0.5");
    io::write_file_atomic(out + "/config.json", edited);
    refused({}, "--beta: was 0.25, is 0.5");
    io::write_file_atomic(out + "/config.json", config);

    // Another place for the same bytes, and another rhythm of saving, are fine.
    io::write_file_atomic(place.dir / "moved.jsonl", sound);
    const Ran ran = place.run(
        {"train", place.dir / "moved.jsonl", "--resume", "--out", out, "--save-every", "7", "--threads", "2"});
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    CHECK(contains(ran.err, "--save-every was 1, is 7"));
    CHECK(place.adapter_hash("run") == place.adapter_hash("whole"));
}

TEST_CASE("a damaged newest checkpoint: a warning, and the one before it") {
    const Place place;
    REQUIRE(place.run(place.train("whole")).code == 0);
    for (const std::string file : {"state.f32", "manifest.json", "adapter/adapter_model.safetensors"}) {
        const std::string out = "run-" + std::to_string(fnv1a(file) % 1000);
        place.half(out);
        const std::string path =
            checkpoint_path(place.dir / out, list_checkpoints(place.dir / out).back()) + "/" + file;
        std::string bytes = io::read_file(path, 1 << 26);
        bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
        io::write_file_atomic(path, bytes);
        const Ran ran = place.run({"train", "--resume", "--out", place.dir / out});
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        CHECK(contains(ran.err, "damaged checkpoint"));
        CHECK(place.adapter_hash(out) == place.adapter_hash("whole"));
        CHECK(place.history(out) == place.history("whole"));
    }
    place.half("all");
    for (const int64_t step : list_checkpoints(place.dir / "all"))
        io::write_file_atomic(checkpoint_path(place.dir / "all", step) + "/state.f32", "");
    CHECK(place.run({"train", "--resume", "--out", place.dir / "all"}).code == 8);
}

TEST_CASE("a failing disk: exit 6, sound checkpoints, and the same adapter once it is mended") {
    const Place place;
    REQUIRE(place.run(place.train("whole")).code == 0);
    int failed = 0;
    for (const std::string op : {"write", "fsync", "rename", "mkdir"})
        for (const int nth : {1, 2, 3, 5, 8, 13, 21, 34, 55}) {
            const std::string out = "fault-" + op + std::to_string(nth);
            const Words words = place.resume(out);
            const Ran ran = place.run(words, {{"ORPO_IO_FAULT", op + ":" + std::to_string(nth) + ":ENOSPC:forever"}});
            if (ran.code == 0) continue;
            CHECK_MESSAGE(ran.code == 6, ran.err);
            ++failed;
            for (const int64_t step : list_checkpoints(place.dir / out))
                CHECK_NOTHROW(load_checkpoint(checkpoint_path(place.dir / out, step)));
            const Ran mended = place.run(words);
            REQUIRE_MESSAGE(mended.code == 0, mended.err);
            CHECK(place.adapter_hash(out) == place.adapter_hash("whole"));
            CHECK(place.history(out) == place.history("whole"));
        }
    CHECK(failed >= 20);
}

TEST_CASE("two programs never train in one run") {
    const Place place;
    Process first(place.train("run", {"--epochs", "2000"}), place.dir / "first");
    while (first.running() && list_checkpoints(place.dir / "run").empty()) nap();
    const Ran second = place.run({"train", "--resume", "--out", place.dir / "run"});
    CHECK(second.code == 2);
    CHECK(contains(second.err, "another orpo is training in it"));
    first.kill(SIGKILL);
}
