// The program as users meet it: help, usage errors, precedence of settings, bad input; always the exit code, and a
// message that names the place and the remedy.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "base/io.h"
#include "src/config.h"
#include "src/metrics_log.h"
#include "tests/program.h"
#include "tests/temp_dir.h"
#include "tests/tiny_model_dir.h"

using namespace orpo;
using test::Ran;
using Words = std::vector<std::string>;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Place {
    TempDir dir;
    std::string model = dir / "model", data = dir / "pairs.jsonl";

    Place() {
        REQUIRE_MESSAGE(!test::program().empty(), "ORPO_TEST_BINARY names the program");
        test::write_tiny_model(model);
        io::write_file_atomic(data, test::tiny_pairs(12));
    }
    Ran run(Words words, const std::map<std::string, std::string>& environment = {}) const {
        return test::run(words, dir / "log", environment);
    }
    std::string file(const std::string& name, const std::string& bytes) const {
        io::write_file_atomic(dir / name, bytes);
        return dir / name;
    }
    // Fails with `code`; the message holds every part; nothing on standard output, no bug.
    void refused(const Words& words, int code, const Words& parts,
                 const std::map<std::string, std::string>& env = {}) const {
        const Ran ran = run(words, env);
        std::string line;
        for (const std::string& word : words) line += word + " ";
        CHECK_MESSAGE(ran.code == code, line, "\n", ran.err);
        for (const std::string& part : parts)
            CHECK_MESSAGE(contains(ran.err, part), line, " lacks ", part, "\n", ran.err);
        CHECK_MESSAGE(contains(ran.err, "error: "), line, "\n", ran.err);
        CHECK_MESSAGE(!contains(ran.err, "internal error"), line, "\n", ran.err);
    }
    Json object(const Words& words, const std::map<std::string, std::string>& env = {}) const {
        const Ran ran = run(words, env);
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        return Json::parse(ran.out);
    }
};

}  // namespace

TEST_CASE("every command has help with examples, every flag of train is in it") {
    const Place place;
    for (const char* name : {"train", "eval", "data", "tokenize", "generate", "plan", "inspect"}) {
        const Ran ran = place.run({name, "--help"});
        CHECK(ran.code == 0);
        CHECK_MESSAGE(contains(ran.out, "Examples:\n  orpo " + std::string(name)), name);
        for (const char* flag : {"--quiet", "--json", "--threads", "--device", "--config", "--no-color"})
            CHECK_MESSAGE(contains(ran.out, flag), name, " ", flag);
        CHECK_MESSAGE(!contains(ran.out, "not there yet"), name);
    }
    const std::string help = place.run({"train", "-h"}).out;
    for (const char* flag : {"--eval",
                             "--map",
                             "--model",
                             "--adapter",
                             "--out",
                             "--lr",
                             "--beta",
                             "--epochs",
                             "--max-steps",
                             "--batch-size",
                             "--micro-batch-tokens",
                             "--max-length",
                             "--lora-rank",
                             "--lora-alpha",
                             "--lora-targets",
                             "--lora-dropout",
                             "--rslora",
                             "--schedule",
                             "--warmup",
                             "--weight-decay",
                             "--clip",
                             "--seed",
                             "--shuffle",
                             "--no-shuffle",
                             "--dtype",
                             "--nll-scope",
                             "--semantics",
                             "--template",
                             "--special",
                             "--truncation",
                             "--on-bad-row",
                             "--eval-every",
                             "--save-every",
                             "--keep",
                             "--best-metric",
                             "--early-stop",
                             "--max-time",
                             "--memory-limit",
                             "--resume",
                             "--dry-run",
                             "--print-config"})
        CHECK_MESSAGE((contains(help, std::string(flag) + " ") || contains(help, std::string(flag) + ",")), flag);
    CHECK(place.run({"--help"}).code == 0);
    CHECK(place.run({}).code == 2);
    const Ran version = place.run({"--version"});
    CHECK(version.code == 0);
    for (const char* word : {"orpo ", "build", "cpu", "oneDNN", "Unicode", "cuda"}) CHECK(contains(version.out, word));
}

TEST_CASE("every flag of train is read from the command line, in both spellings") {
    const Place place;
    const std::map<std::string, std::string> values = {{"eval", "none"},
                                                       {"map", "prompt=question"},
                                                       {"model", "135M"},
                                                       {"adapter", "a"},
                                                       {"out", "o"},
                                                       {"lr", "0.0005"},
                                                       {"beta", "0.5"},
                                                       {"epochs", "2.5"},
                                                       {"max-steps", "7"},
                                                       {"batch-size", "4"},
                                                       {"micro-batch-tokens", "512"},
                                                       {"max-length", "256"},
                                                       {"lora-rank", "8"},
                                                       {"lora-alpha", "16.5"},
                                                       {"lora-targets", "q_proj,v_proj"},
                                                       {"lora-dropout", "0.1"},
                                                       {"schedule", "cosine"},
                                                       {"warmup", "0.1"},
                                                       {"weight-decay", "0.01"},
                                                       {"clip", "0.5"},
                                                       {"seed", "9"},
                                                       {"dtype", "fp32"},
                                                       {"nll-scope", "response"},
                                                       {"semantics", "trl"},
                                                       {"template", "plain"},
                                                       {"special", "literal"},
                                                       {"truncation", "drop"},
                                                       {"on-bad-row", "skip"},
                                                       {"eval-every", "3"},
                                                       {"save-every", "4"},
                                                       {"keep", "2"},
                                                       {"best-metric", "or_loss"},
                                                       {"early-stop", "5"},
                                                       {"max-time", "90.5"},
                                                       {"memory-limit", "20000000000"},
                                                       {"threads", "2"},
                                                       {"device", "cpu"}};
    Words apart = {"train", "data.jsonl", "--print-config", "--rslora", "--no-shuffle", "--resume"}, together = apart;
    for (const auto& [name, value] : values) {
        apart.insert(apart.end(), {"--" + name, value});
        together.push_back("--" + name + "=" + value);
    }
    for (const TrainField& field : train_fields()) {
        const std::string name = field.name;
        CHECK_MESSAGE((values.count(name) == 1 || name == "data" || field.is_switch()), name);
    }
    const Ran a = place.run(apart), b = place.run(together);
    REQUIRE_MESSAGE(a.code == 0, a.err);
    CHECK(a.out == b.out);
    for (const auto& [key, value] : values) {
        const std::string name = key;
        const size_t at = a.out.find("\n" + name + " ");
        REQUIRE_MESSAGE(at != std::string::npos, name);
        const std::string line = a.out.substr(at + 1, a.out.find('\n', at + 1) - at - 1);
        CHECK_MESSAGE(contains(line, " " + value + " "), line);
        CHECK_MESSAGE(contains(line, "flag"), line);
    }
}

TEST_CASE("flags win over the environment, the environment over --config, that over defaults") {
    const Place place;
    const std::string config = place.file("c.json", R"({ // a comment
        "lr": 0.125, "beta": 0.5, "seed": 3, "lora_rank": 4, "lora-targets": ["q_proj"], "data": "from-file.jsonl", "shuffle": false})");
    const Words words = {"train", "--print-config", "--config", config, "--lr", "0.25"};
    const Ran ran = place.run(words, {{"ORPO_BETA", "0.75"}, {"ORPO_LR", "0.0625"}});
    REQUIRE_MESSAGE(ran.code == 0, ran.err);
    const auto line = [&](const std::string& name) {
        const size_t at = ("\n" + ran.out).find("\n" + name + " ");
        return at == std::string::npos ? "" : ran.out.substr(at, ran.out.find('\n', at) - at);
    };
    CHECK((contains(line("lr"), " 0.25 ") && contains(line("lr"), "flag")));
    CHECK((contains(line("beta"), " 0.75 ") && contains(line("beta"), "ORPO_BETA")));
    CHECK((contains(line("seed"), " 3 ") && contains(line("seed"), "c.json")));
    CHECK(contains(line("lora-rank"), " 4 "));
    CHECK(contains(line("lora-targets"), " q_proj "));
    CHECK(contains(line("data"), "from-file.jsonl"));
    CHECK(contains(line("shuffle"), "false"));
    CHECK(contains(line("epochs"), "default"));

    // --print-config --json is itself a --config, and gives the same again.
    Words as_json = words;
    as_json.push_back("--json");
    const std::string first = place.run(as_json).out;
    const std::string again =
        place.run({"train", "--print-config", "--json", "--config", place.file("d.json", first)}).out;
    CHECK(first == again);

    place.refused({"train", "--print-config", "--config", place.file("e.json", R"({"lorarank": 4})")}, 2,
                  {"e.json", "lora-rank"});
    place.refused({"train", "--print-config", "--config", place.file("f.json", "{\"lr\": 1,\n \"lr\": 2}")}, 2,
                  {"f.json", "twice"});
    place.refused({"train", "--print-config", "--config", place.file("h.json", R"({"lr": 1e999})")}, 2,
                  {"h.json", "too large"});
    place.refused({"train", "--print-config", "--config", place.file("g.json", "{\n\"lr\": 1,\n}")}, 2,
                  {"g.json:3", "JSON"});
    place.refused({"train", "--print-config", "--config", place.file("h.json", R"({"lr": -1})")}, 2,
                  {"h.json", "--lr"});
    place.refused({"train", "--print-config", "--config", place.file("i.json", R"({"lr": null})")}, 2,
                  {"i.json", "lr"});
    place.refused({"train", "--print-config", "--config", place.dir / "missing.json"}, 6, {"missing.json"});
    place.refused({"train", "--print-config"}, 2, {"ORPO_LORA_RANK", "--lora-rank"}, {{"ORPO_LORA_RANK", "0"}});
    place.refused({"tokenize", "x", "--threads", "0"}, 2, {"--threads", "from 1"});
}

TEST_CASE("wrong usage: exit code 2 and the nearest right word") {
    const Place place;
    place.refused({"trian", place.data}, 2, {"trian", "orpo train"});
    place.refused({place.data}, 2, {"orpo train " + place.data});
    place.refused({"train", place.data, "--learning-rate", "1e-3"}, 2, {"--learning-rate", "--lr"});
    place.refused({"train", place.data, "--lora-rnk", "8"}, 2, {"--lora-rnk", "--lora-rank"});
    place.refused({"train", place.data, "--lr"}, 2, {"--lr"});
    place.refused({"train", place.data, "--lr", "1e-3", "--lr", "1e-4"}, 2, {"--lr is given 2 times"});
    place.refused({"train", place.data, place.data}, 2, {"one word too many"});
    place.refused({"train"}, 2, {"DATA"});
    place.refused({"eval"}, 2, {"DATA"});
    place.refused({"generate", "--model", place.model}, 2, {"--prompt"});
    place.refused({"generate", "--model", place.model, "--prompt", "x", "--temperature", "-1"}, 2, {"--temperature"});
    place.refused({"generate", "--model", place.model, "--prompt", "x", "--temperature", "nan"}, 2, {"--temperature"});
    place.refused({"generate", "--model", place.model, "--prompt", "x", "--top-p", "0"}, 2, {"--top-p"});
    place.refused({"generate", "--model", place.model, "--prompt", "x", "--max-tokens", "0"}, 2, {"--max-tokens"});
    place.refused({"plan", "--model", "135M", "--memory", "lots"}, 2, {"--memory", "24G"});
    place.refused({"train", place.data, "--device", "gpu"}, 2, {"--device", "cuda"});
    for (const Words& flags : std::vector<Words>{{"--lr", "0"},
                                                 {"--lr", "nan"},
                                                 {"--lr", "inf"},
                                                 {"--beta", "-1"},
                                                 {"--lora-rank", "0"},
                                                 {"--max-length", "3"},
                                                 {"--warmup", "1.5"},
                                                 {"--lora-targets", "q"},
                                                 {"--clip", "-1"},
                                                 {"--epochs", "0"},
                                                 {"--keep", "0"},
                                                 {"--best-metric", "loss"}}) {
        Words words = {"train", place.data, "--model", place.model, "--out", place.dir / "never"};
        words.insert(words.end(), flags.begin(), flags.end());
        place.refused(words, 2, {flags[0]});
    }
    CHECK_FALSE(io::exists(place.dir / "never"));
    place.refused({"eval", place.data, "--model", place.model, "--device", "cuda"}, 9,
                  {"--device cuda", "--device cpu"});
}

TEST_CASE("bad data: exit code 3, file and line, nothing written") {
    const Place place;
    const std::string good = test::tiny_pairs(2);
    struct Case {
        const char* name;
        std::string bytes;
        Words parts;
    };
    for (const Case& c : std::vector<Case>{
             {"empty.jsonl", "", {"empty.jsonl"}},
             {"blank.jsonl", "\n\n", {"blank.jsonl"}},
             {"gzip.jsonl", std::string("\x1f\x8b\x08\x00\x00\x00\x00\x00", 8), {"gzip.jsonl", "gz"}},
             {"table.jsonl", std::string("PAR1\x15\x04\x00\x00PAR1", 12), {"table.jsonl", "arquet"}},
             {"binary.jsonl", std::string("\x00\x01\x02\xff\xfe\x00", 6), {"binary.jsonl"}},
             {"json.jsonl", good + "{\"prompt\": \"a\", \"chosen\": }\n", {"json.jsonl:3"}},
             {"cut.jsonl", good + "{\"prompt\": \"a\"", {"cut.jsonl:3"}},
             {"utf8.jsonl",
              good + "{\"prompt\": \"\xff\", \"chosen\": \"b\", \"rejected\": \"c\"}\n",
              {"utf8.jsonl:3", "UTF-8"}},
             {"surrogate.jsonl",
              good + R"({"prompt": "\ud800", "chosen": "b", "rejected": "c"})",
              {"surrogate.jsonl:3"}},
             {"type.jsonl", good + R"({"prompt": 1, "chosen": "b", "rejected": "c"})", {"type.jsonl:3", "prompt"}},
             {"field.jsonl", good + R"({"prompt": "a", "chosen": "b"})", {"field.jsonl:3", "rejected"}}}) {
        const std::string path = place.file(c.name, c.bytes);
        place.refused({"train", path, "--model", place.model, "--out", place.dir / "never"}, 3, c.parts);
        place.refused({"eval", path, "--model", place.model, "--records", place.dir / "records"}, 3, c.parts);
    }
    CHECK_FALSE(io::exists(place.dir / "never"));
    CHECK_FALSE(io::exists(place.dir / "records"));
    place.refused({"eval", place.dir / "none.jsonl", "--model", place.model}, 6, {"none.jsonl"});
    place.refused(
        {"generate", "--model", place.model, "--prompts", place.file("n.jsonl", "\"a\"\n{\"prompt\": 1e999}\n")}, 3,
        {"n.jsonl:2"});
    place.refused({"generate", "--model", place.model, "--prompts", place.file("p.jsonl", "\"a\"\n{\"promt\": 1}\n")},
                  3, {"p.jsonl:2", "prompt"});
}

TEST_CASE("bad models and adapters: exit code 4, what is wrong and where") {
    const Place place;
    place.refused({"eval", place.data, "--model", place.dir / "nothing"}, 4, {"nothing"});
    place.refused({"eval", place.data, "--model", place.file("m.gguf", "GGUF")}, 4, {"m.gguf"});
    const std::string broken = place.dir / "broken";
    test::write_tiny_model(broken);
    io::write_file_atomic(broken + "/config.json", R"({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})");
    place.refused({"eval", place.data, "--model", broken}, 4, {"config.json"});
    const std::string cut = place.dir / "cut";
    test::write_tiny_model(cut);
    const std::string weights = io::read_file(cut + "/model.safetensors", 1 << 24);
    io::write_file_atomic(cut + "/model.safetensors", weights.substr(0, weights.size() / 2));
    place.refused({"eval", place.data, "--model", cut}, 4, {"model.safetensors"});
    io::make_dirs(place.dir / "adapter");
    io::write_file_atomic(place.dir / "adapter/adapter_config.json", R"({"peft_type": "IA3"})");
    io::write_file_atomic(place.dir / "adapter/adapter_model.safetensors", weights);
    place.refused({"eval", place.data, "--model", place.model, "--adapter", place.dir / "adapter"}, 4,
                  {"adapter_config.json"});
}

TEST_CASE("files that cannot be written: exit code 6, before the work where that can be known") {
    const Place place;
    place.refused({"eval", place.data, "--model", place.model, "--records", place.dir / "no/such/dir/r.jsonl"}, 6,
                  {"r.jsonl"});
    place.refused({"eval", place.data, "--model", place.model, "--records", place.dir / "r.jsonl"}, 6,
                  {"r.jsonl", "space"}, {{"ORPO_IO_FAULT", "write:1:ENOSPC:forever"}});
    CHECK_FALSE(io::exists(place.dir / "r.jsonl"));
    place.refused({"eval", place.data, "--model", place.model, "--json"}, 6, {"standard output"},
                  {{"ORPO_IO_FAULT", "write:1:ENOSPC"}});
    place.refused({"train", place.data, "--model", place.model, "--out", place.dir / "full"}, 6, {"full"},
                  {{"ORPO_IO_FAULT", "write:1:ENOSPC:forever"}});
    place.refused({"train", place.data, "--model", place.model, "--out", "/proc/never"}, 6, {"/proc/never"});
}

TEST_CASE("eval: the same numbers in records and in the summary, whatever the micro-batch") {
    const Place place;
    const std::string records = place.dir / "records.jsonl";
    const Words words = {"eval", place.data, "--model", place.model, "--json", "--quiet"};
    Words with_records = words;
    with_records.insert(with_records.end(), {"--records", records});
    const Json summary = place.object(with_records);
    CHECK(summary.at("pairs") == 12);
    for (const char* name : {"nll_chosen", "pref_acc", "log_odds", "or_loss", "margin"}) {
        CHECK(summary.at(name).is_number());
        CHECK(summary.at(std::string(name) + "_se").get<double>() > 0);
    }
    for (const char* name : {"eval_loss", "eval_nll_loss", "eval_log_odds_ratio", "eval_log_odds_chosen",
                             "eval_logps/chosen", "eval_logps/rejected", "eval_rewards/chosen", "eval_rewards/rejected",
                             "eval_rewards/margins", "eval_rewards/accuracies"})
        CHECK_MESSAGE(summary.at(name).is_number(), name);

    std::ifstream file(records);
    double logp = 0, tokens = 0, right = 0, margin = 0;
    int64_t last = 0, count = 0;
    for (std::string line; std::getline(file, line); ++count) {
        const Json r = Json::parse(line);
        CHECK(r.at("line").get<int64_t>() > last);
        last = r.at("line");
        CHECK(r.at("prompt_tokens").get<int64_t>() > 0);
        CHECK(r.at("prompt_logp").get<double>() < 0);
        const double chosen = r.at("chosen_logp"), nc = r.at("chosen_tokens"), rejected = r.at("rejected_logp"),
                     nr = r.at("rejected_tokens");
        logp += chosen, tokens += nc;
        right += chosen / nc > rejected / nr;
        margin += chosen / nc - rejected / nr;
    }
    CHECK(count == 12);
    CHECK(summary.at("nll_chosen").get<double>() == doctest::Approx(-logp / tokens).epsilon(1e-12));
    CHECK(summary.at("pref_acc").get<double>() == doctest::Approx(right / 12).epsilon(1e-12));
    CHECK(summary.at("margin").get<double>() == doctest::Approx(margin / 12).epsilon(1e-9));

    Words small = words;
    small.insert(small.end(), {"--micro-batch-tokens", "64", "--threads", "1"});
    const Json again = place.object(small);
    for (const auto& [key, value] : summary.items()) {
        const std::string name = key;
        CHECK_MESSAGE(again.at(name).get<double>() == doctest::Approx(value.get<double>()).epsilon(1e-6), name);
    }
    CHECK(place.run(words).out == place.run(words).out);
}

TEST_CASE("generate: greedy is the same one by one and side by side, JSON has what the contract says") {
    const Place place;
    const std::string prompts =
        place.file("prompts.jsonl", "\"abc\"\n{\"prompt\": \"de\", \"chosen\": \"x\"}\n\"fghijk\"\n");
    const auto lines = [&](const Words& more) {
        Words words = {"generate", "--model", place.model, "--max-tokens", "12", "--json"};
        words.insert(words.end(), more.begin(), more.end());
        const Ran ran = place.run(words);
        REQUIRE_MESSAGE(ran.code == 0, ran.err);
        std::vector<Json> objects;
        for (size_t begin = 0; begin < ran.out.size();) {
            const size_t end = ran.out.find('\n', begin);
            objects.push_back(Json::parse(ran.out.substr(begin, end - begin)));
            begin = end + 1;
        }
        return objects;
    };
    const auto all = lines({"--prompts", prompts});
    REQUIRE(all.size() == 3);
    for (const Json& object : all) {
        const bool whole =
            object.at("finish") == "stop" || (object.at("finish") == "length" && object.at("ids").size() == 12);
        CHECK(whole);
        CHECK(object.at("text").is_string());
    }
    CHECK(all[1].at("prompt") == "de");
    CHECK(lines({"--prompt", "fghijk"})[0] == all[2]);
    const auto drawn = lines({"--prompts", prompts, "--temperature", "1", "--seed", "5"});
    CHECK(drawn == lines({"--prompts", prompts, "--temperature", "1", "--seed", "5"}));
    CHECK(drawn != lines({"--prompts", prompts, "--temperature", "1", "--seed", "6"}));
}

TEST_CASE("plan: shapes alone are enough, and more tokens cost more") {
    const Place place;
    const auto peak = [&](const char* model, const char* tokens) {
        const Json plan = place.object({"plan", "--model", model, "--json", "--memory", "64GB", "--max-length", "256",
                                        "--micro-batch-tokens", tokens});
        return plan.at("peak_bytes").get<double>();
    };
    const double small = peak("135M", "1024");
    CHECK(small > 4 * 134e6);
    CHECK(peak("135M", "4096") > small);
    CHECK(peak("360M", "1024") > small);
    CHECK(peak("1.7B", "1024") > 4 * 1.7e9);
}
