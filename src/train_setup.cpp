#include "src/train_setup.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "base/io.h"
#include "model/adapter.h"
#include "src/load.h"

namespace orpo {
namespace {

std::string absolute(const std::string& path) { return std::filesystem::absolute(path).lexically_normal().string(); }

bool is_eval_path(const std::string& eval) { return eval != "auto" && eval != "none" && eval != "-"; }

// An adapter to go on from brings its own shape; flags that say otherwise are refused.
void take_shape(TrainConfig& config, const PeftAdapter& adapter, const Call& call) {
    TrainConfig its = config;
    its.lora_rank = adapter.rank;
    its.lora_alpha = adapter.alpha;
    its.rslora = adapter.rslora;
    its.lora_targets = adapter.targets;
    // ORPOTrainer turns every dropout off (disable_dropout), the adapter's too.
    if (!call.given("lora-dropout")) its.lora_dropout = config.semantics == "trl" ? 0 : adapter.dropout;
    for (const ConfigDifference& d : config_differences(config, its))
        if (call.given(d.name) && d.name != "lora-dropout")
            throw Error(Exit::kUsage, fmt::format("--{} {}: the adapter in {} has {}; leave the flag out", d.name,
                                                  d.before, config.adapter, d.now));
    config = its;
}

}  // namespace

int64_t TrainSetup::tokens() const {
    int64_t sum = 0;
    for (const PreferencePair& pair : train.pairs) sum += pair.tokens();
    return sum;
}

void make_paths_absolute(TrainConfig& config) {
    if (!config.data.empty() && config.data != "-") config.data = absolute(config.data);
    if (is_eval_path(config.eval)) config.eval = absolute(config.eval);
    if (!config.adapter.empty()) config.adapter = absolute(config.adapter);
}

TrainSetup load_train_setup(TrainConfig config, Call& call) {
    make_paths_absolute(config);
    if (config.data == "-" && config.eval == "-")
        throw Error(Exit::kUsage, "DATA and --eval cannot both be standard input");
    Model model = open_model(config.model);
    config.model = absolute(model.path);
    std::optional<PeftAdapter> start;
    if (!config.adapter.empty()) {
        start = read_peft_adapter(config.adapter, model.config);
        take_shape(config, *start, call);
    }
    Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    const DataOptions options = data_options(config, model, call.common.threads > 0 ? call.common.threads : 1);
    Dataset train = load_dataset(config.data, tokenizer, options), eval;
    if (config.eval == "auto") {
        Split split = hold_out(std::move(train), config.seed);
        train = std::move(split.train), eval = std::move(split.eval);
    } else if (config.eval != "none") {
        eval = load_dataset(config.eval, tokenizer, options);
        mark_leaks(train, eval);
    }
    TrainSetup setup{std::move(config),
                     std::move(model),
                     std::move(tokenizer),
                     std::move(train),
                     std::move(eval),
                     {},
                     0,
                     std::move(start),
                     {}};
    TrainConfig& c = setup.config;
    setup.choices = resolve_defaults(c, setup.model.config, static_cast<int64_t>(setup.train.pairs.size()),
                                     static_cast<int64_t>(setup.eval.pairs.size()));
    setup.objective = objective_of(c, setup.tokenizer);
    setup.steps = c.total_steps(static_cast<int64_t>(setup.train.pairs.size()));
    return setup;
}

// The same bits come out of any number of threads: "CPU fp32, AVX-512, 2 threads" without its last part.
static std::string without_threads(const std::string& engine) {
    return engine.ends_with(" threads") || engine.ends_with(" thread") ? engine.substr(0, engine.rfind(", ")) : engine;
}

Json run_identity(const TrainSetup& setup, const std::string& fingerprint, const std::string& engine, int threads) {
    return {{"config", train_config_json(setup.config)},
            {"data", setup.train.fingerprint},
            {"train_pairs", setup.train.pairs.size()},
            {"eval_data", setup.eval.fingerprint},
            {"eval_pairs", setup.eval.pairs.size()},
            {"model", fingerprint},
            {"tokenizer", setup.tokenizer.fingerprint()},
            {"version", version()},
            {"build", fmt::format("{} {}", __VERSION__, ORPO_VERSION)},
            {"engine", without_threads(engine)},
            {"threads", threads}};
}

std::vector<std::string> mathematical_differences(const TrainConfig& before, const TrainConfig& now) {
    std::vector<std::string> lines;
    for (const ConfigDifference& d : config_differences(before, now)) {
        const bool both_files = d.before.starts_with('/') && d.now.starts_with('/');
        const bool path =
            d.name == "data" || d.name == "model" || ((d.name == "eval" || d.name == "adapter") && both_files);
        if (d.mathematics && !path) lines.push_back(fmt::format("--{}: was {}, is {}", d.name, d.before, d.now));
    }
    return lines;
}

std::vector<std::string> identity_differences(const Json& before, const Json& now,
                                              const std::function<void(const std::string&)>& note) {
    const auto config = [](const Json& identity) {
        return train_config_from_json(nlohmann::json::parse(identity.at("config").dump()), "checkpoint");
    };
    std::vector<std::string> differences = mathematical_differences(config(before), config(now));
    const auto differs = [&](const char* key) { return before.value(key, Json()) != now.value(key, Json()); };
    const auto say = [&](const char* key) {
        const auto text = [](const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
        return fmt::format("was {}, is {}", text(before.value(key, Json())), text(now.value(key, Json())));
    };
    for (const auto& [key, what] : {std::pair{"data", "training data (sha256)"},
                                    {"train_pairs", "training pairs"},
                                    {"eval_data", "evaluation data (sha256)"},
                                    {"eval_pairs", "evaluation pairs"},
                                    {"model", "model weights (sha256)"},
                                    {"tokenizer", "tokenizer (sha256)"}})
        if (differs(key)) differences.push_back(fmt::format("{}: {}", what, say(key)));
    for (const auto& [key, what] : {std::pair{"version", "version"}, {"build", "build"}, {"engine", "device"}})
        if (differs(key))
            note(
                fmt::format("{} {}: the result may differ in its last bits from an uninterrupted run", what, say(key)));
    return differences;
}

}  // namespace orpo
