// The table of `orpo train`'s flags, config.json and its round trip.
#include "src/config.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "base/error.h"

using namespace orpo;

namespace {

// The message of the usage error that f must throw.
template <class F>
std::string usage_error(F f) {
    try {
        f();
    } catch (const Error& e) {
        CHECK(e.exit() == Exit::kUsage);
        return e.what();
    }
    return "nothing was thrown";
}

std::string refused(const std::string& name, const std::string& text) {
    TrainConfig config;
    return usage_error([&] { set_train_field(config, name, text); });
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TrainConfig random_config(std::mt19937_64& rng) {
    const auto real = [&](double low, double high) {
        return low + (high - low) * std::uniform_real_distribution<double>()(rng);
    };
    const auto whole = [&](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(rng);
    };
    const auto one_of = [&](std::vector<std::string> words) {
        return words[size_t(whole(0, int64_t(words.size()) - 1))];
    };
    TrainConfig c;
    c.data = one_of({"a.jsonl", "dir with space/\xc3\xa4\"quoted\".jsonl", "-", "C:\\x,y=z"});
    c.eval = one_of({"auto", "none", "eval.jsonl"});
    c.map = one_of({"", "prompt=question", "prompt=q,chosen=a,rejected=b"});
    c.semantics = one_of({"orpo", "trl", "paper", "llamafactory"});
    c.chat_template = one_of({"auto", "chatml", "plain"});
    c.special = one_of({"parse", "literal", "error"});
    c.truncation = one_of({"fit", "drop", "error"});
    c.on_bad_row = one_of({"fail", "skip"});
    c.max_length = whole(16, 8192);
    c.model = one_of({"", "135M", "x/y.gguf"});
    c.adapter = one_of({"", "some/adapter"});
    c.dtype = one_of({"auto", "fp32", "bf16"});
    c.lora_rank = whole(1, 256);
    c.lora_alpha = real(0.001, 500);
    set_train_field(c, "lora-targets", one_of({"all", "q_proj", "v_proj,q_proj", "down_proj,up_proj,o_proj"}));
    c.lora_dropout = real(0, 0.9);
    c.rslora = whole(0, 1);
    c.lr = whole(0, 3) ? std::exp(real(std::log(1e-300), 0)) : 0;
    c.beta = real(0, 3);
    c.epochs = whole(0, 3) ? real(0.001, 20) : 0;
    c.max_steps = whole(0, 1000);
    c.batch_size = whole(0, 512);
    c.micro_batch_tokens = whole(0, 1) ? 0 : whole(16, 100000);
    c.schedule = one_of({"linear", "cosine", "constant", "inverse-sqrt", "wsd"});
    c.warmup = whole(0, 1) ? real(0, 1) : static_cast<double>(whole(0, 1000));
    c.weight_decay = real(0, 1);
    c.clip = whole(0, 3) ? real(1e-6, 100) : 0;
    c.seed = rng();
    c.shuffle = whole(0, 1);
    c.nll_scope = one_of({"full", "response"});
    c.eval_every = whole(0, 100);
    c.save_every = whole(0, 100);
    c.keep = whole(1, 9);
    set_train_field(c, "best-metric", one_of({"nll_chosen", "-2 pref_acc+1e0 or_loss", "nll_chosen + 0.25 or_loss"}));
    c.early_stop = whole(0, 5);
    c.max_time = whole(0, 1) ? real(0.001, 1e6) : 0;
    c.threads = whole(0, 64);
    c.device = one_of({"auto", "cpu", "cuda", "cuda:3"});
    return c;
}

void check_same_bits(const TrainConfig& a, const TrainConfig& b) {
    CHECK(config_differences(a, b).empty());
    for (double TrainConfig::*member : {&TrainConfig::lora_alpha, &TrainConfig::lora_dropout, &TrainConfig::lr,
                                        &TrainConfig::beta, &TrainConfig::epochs, &TrainConfig::warmup,
                                        &TrainConfig::weight_decay, &TrainConfig::clip, &TrainConfig::max_time})
        CHECK(std::bit_cast<uint64_t>(a.*member) == std::bit_cast<uint64_t>(b.*member));
    CHECK(a.seed == b.seed);
    CHECK(a.data == b.data);
    CHECK(a.lora_targets == b.lora_targets);
}

}  // namespace

TEST_CASE("config.json reads back with the same bits, whatever the values") {
    std::mt19937_64 rng(1);
    for (int i = 0; i < 500; ++i) {
        const TrainConfig config = random_config(rng);
        const std::string text = train_config_json(config).dump(2);
        const TrainConfig back = train_config_from_json(nlohmann::json::parse(text), "config.json");
        check_same_bits(config, back);
        CHECK(train_config_json(back).dump(2) == text);
    }
}

TEST_CASE("config.json holds every field but out and resume") {
    const auto json = train_config_json(TrainConfig{});
    std::set<std::string> keys;
    for (const auto& [key, value] : json.items()) keys.insert(key);
    for (const TrainField& field : train_fields()) {
        const std::string name = field.name;
        CHECK_MESSAGE((keys.count(name) == 1) == (name != "out" && name != "resume"), name);
    }
    CHECK(json["lr"] == "auto");
    CHECK(json["max-steps"] == "none");
    CHECK(json["beta"] == 0.25);
}

TEST_CASE("a difference of one bit in any number is seen") {
    TrainConfig a, b;
    a.lr = 1e-3;
    b.lr = std::nextafter(1e-3, 1.0);
    const auto differences = config_differences(a, b);
    REQUIRE(differences.size() == 1);
    CHECK(differences[0].name == "lr");
    CHECK(differences[0].mathematics);
    b = a;
    b.threads = 4, b.keep = 9, b.out = "elsewhere";
    for (const auto& difference : config_differences(a, b)) CHECK_FALSE(difference.mathematics);
    CHECK(config_differences(a, b).size() == 2);
}

TEST_CASE("impossible values are refused with the flag and what is allowed") {
    struct Case {
        const char *name, *text, *allowed;
    };
    for (const Case& c : std::initializer_list<Case>{{"lr", "0", "above 0"},
                                                     {"lr", "-1e-3", "above 0"},
                                                     {"lr", "nan", "above 0"},
                                                     {"lr", "inf", "at most 1"},
                                                     {"lr", "1.5", "at most 1"},
                                                     {"lr", "1e-3x", "above 0"},
                                                     {"lr", "", "above 0"},
                                                     {"lr", "0x1p-3", "above 0"},
                                                     {"beta", "-0.1", "from 0"},
                                                     {"beta", "nan", "from 0"},
                                                     {"beta", "inf", "from 0"},
                                                     {"epochs", "0", "above 0"},
                                                     {"epochs", "-1", "above 0"},
                                                     {"max-steps", "0", "from 1"},
                                                     {"max-steps", "1.5", "whole number"},
                                                     {"max-steps", "99999999999999999999", "whole"},
                                                     {"batch-size", "0", "from 1"},
                                                     {"batch-size", "-8", "from 1"},
                                                     {"batch-size", "8.0", "whole number"},
                                                     {"micro-batch-tokens", "1", "from 16"},
                                                     {"max-length", "2", "from 16"},
                                                     {"max-length", "1e3", "whole number"},
                                                     {"lora-rank", "0", "from 1"},
                                                     {"lora-rank", "-4", "from 1"},
                                                     {"lora-rank", "100000", "1024"},
                                                     {"lora-alpha", "0", "above 0"},
                                                     {"lora-alpha", "inf", "above 0"},
                                                     {"lora-dropout", "1", "0.95"},
                                                     {"lora-dropout", "-0.1", "from 0"},
                                                     {"lora-targets", "q_prj", "q_proj"},
                                                     {"lora-targets", "", "q_proj"},
                                                     {"lora-targets", "q_proj,,v_proj", "allowed"},
                                                     {"warmup", "-1", "whole number of steps"},
                                                     {"warmup", "1.5", "whole number of steps"},
                                                     {"warmup", "nan", "whole number of steps"},
                                                     {"weight-decay", "-1", "from 0"},
                                                     {"clip", "0", "none"},
                                                     {"clip", "-1", "above 0"},
                                                     {"seed", "-1", "whole number"},
                                                     {"seed", "18446744073709551616", "whole number"},
                                                     {"schedule", "cosin", "did you mean cosine"},
                                                     {"dtype", "fp16", "fp32"},
                                                     {"nll-scope", "all", "full"},
                                                     {"semantics", "TRL2", "trl"},
                                                     {"template", "llama", "chatml"},
                                                     {"special", "drop", "parse"},
                                                     {"truncation", "left", "fit"},
                                                     {"on-bad-row", "ignore", "skip"},
                                                     {"map", "question", "prompt=question"},
                                                     {"map", "question=prompt", "none of prompt"},
                                                     {"map", "prompt=", "prompt=question"},
                                                     {"eval-every", "0", "from 1"},
                                                     {"save-every", "-1", "from 1"},
                                                     {"keep", "0", "from 1"},
                                                     {"early-stop", "0", "from 1"},
                                                     {"max-time", "0", "above 0"},
                                                     {"max-time", "1y", "1h30m"},
                                                     {"max-time", "-5", "above 0"},
                                                     {"max-time", "inf", "above 0"},
                                                     {"max-time", "", "above 0"},
                                                     {"best-metric", "loss", "nll_chosen"},
                                                     {"best-metric", "", "missing"},
                                                     {"best-metric", "nll_chosen or_loss", "+ or -"},
                                                     {"best-metric", "nll_chosen +", "missing"},
                                                     {"threads", "0", "from 1"},
                                                     {"device", "gpu", "cuda"},
                                                     {"device", "cuda:x", "cuda:INDEX"},
                                                     {"shuffle", "maybe", "true or false"}}) {
        const std::string message = refused(c.name, c.text);
        CHECK_MESSAGE(contains(message, std::string("--") + c.name), c.name, " ", c.text, ": ", message);
        CHECK_MESSAGE(contains(message, c.allowed), c.name, " ", c.text, ": ", message);
    }
}

TEST_CASE("values as people write them") {
    TrainConfig c;
    set_train_field(c, "max-time", "1h30m");
    CHECK(c.max_time == 5400);
    set_train_field(c, "max-time", "90");
    CHECK(c.max_time == 90);
    set_train_field(c, "lr", "auto");
    CHECK(c.lr == 0);
    set_train_field(c, "lr", "5e-4");
    CHECK(c.lr == 5e-4);
    set_train_field(c, "lora-targets", "v_proj,q_proj,v_proj");
    CHECK(c.lora_targets == std::vector<std::string>{"q_proj", "v_proj"});
    CHECK(c.lora().targets == std::array<bool, kLinears>{true, false, true, false, false, false, false});
    set_train_field(c, "beta", "0");
    CHECK(c.beta == 0);
    set_train_field(c, "warmup", "0.1");
    CHECK(c.warmup_steps(100) == 10);
    CHECK(c.warmup_steps(3) == 1);
    set_train_field(c, "warmup", "7");
    CHECK(c.warmup_steps(100) == 7);
    set_train_field(c, "warmup", "0");
    CHECK(c.warmup_steps(100) == 0);
    set_train_field(c, "seed", "18446744073709551615");
    CHECK(c.seed == UINT64_MAX);
}

TEST_CASE("steps of a run") {
    TrainConfig c;
    c.batch_size = 8, c.epochs = 1;
    CHECK(c.total_steps(224) == 28);
    CHECK(c.total_steps(225) == 29);
    c.epochs = 2.5;
    CHECK(c.total_steps(16) == 5);
    c.max_steps = 3;
    CHECK(c.total_steps(16) == 3);
}

TEST_CASE("defaults by model size and number of pairs") {
    ModelConfig model;
    model.tie_embeddings = true;
    const auto resolved = [&](const char* size, int64_t pairs) {
        REQUIRE(official_config(size, &model));
        TrainConfig c;
        const auto lines = resolve_defaults(c, model, pairs, 50);
        CHECK(lines.size() >= 5);
        CHECK(contains(lines[0], "batch-size"));
        CHECK(contains(lines[1], "epochs"));
        CHECK(c.eval_every >= 1);
        CHECK(c.save_every >= 1);
        return c;
    };
    CHECK(resolved("135M", 500).lr == 5e-4);
    CHECK(resolved("135M", 150).lr == 1e-3);  // 38 steps
    CHECK(resolved("135M", 500).epochs == 2);
    CHECK(resolved("135M", 20000).epochs == 1);
    CHECK(resolved("135M", 500).batch_size == 8);
    CHECK(resolved("135M", 20000).lr == 5e-4);
    CHECK(resolved("135M", 20000).batch_size == 32);
    CHECK(resolved("360M", 500).lr == 4e-4);
    CHECK(resolved("1.7B", 500).lr == 2e-4);

    TrainConfig c;
    c.lr = 3e-5, c.batch_size = 4, c.epochs = 3, c.eval_every = 7, c.save_every = 9;
    CHECK(resolve_defaults(c, model, 500, 50).empty());
    CHECK(c.lr == 3e-5);
    c.max_length = 100000;
    CHECK(contains(usage_error([&] { resolve_defaults(c, model, 500, 50); }), "--max-length"));
}

TEST_CASE("best-metric expressions") {
    const auto value = [](const char* text) {
        return MetricExpression(text).value([](const std::string& name) { return name == "nll_chosen" ? 2.0 : 0.5; });
    };
    CHECK(value("nll_chosen + 0.25 or_loss") == 2.125);
    CHECK(value("nll_chosen - 2*or_loss") == 1.0);
    CHECK(value("pref_acc") == -0.5);
    CHECK(value("-pref_acc") == -0.5);
    CHECK(value("2 pref_acc") == 1.0);
}

TEST_CASE("unknown keys of a configuration are refused with the nearest one") {
    const std::string message =
        usage_error([] { train_config_from_json(nlohmann::json::parse(R"({"lorarank": 8})"), "my.json"); });
    CHECK(contains(message, "my.json"));
    CHECK(contains(message, "lora-rank"));
    const std::string value =
        usage_error([] { train_config_from_json(nlohmann::json::parse(R"({"lr": -1})"), "my.json"); });
    CHECK(contains(value, "my.json"));
    CHECK(contains(value, "--lr"));
}
