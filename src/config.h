// Everything that decides a training run, and the one table of its flags: --help, ORPO_* variables, --config files,
// --print-config, config.json and the check that --resume makes all read it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/lora.h"
#include "src/metric_expression.h"

namespace orpo {

struct Call;  // src/command.h

// 0 stands for "auto" or "none" where the comment says so; resolve_defaults() leaves no auto behind.
struct TrainConfig {
    // data
    std::string data;                    // path, "-" for standard input
    std::string eval = "auto";           // auto (a hold-out), none, or a path
    std::string map;                     // "prompt=question,chosen=good": our field = the file's
    std::string semantics = "orpo";      // orpo, trl, paper, llamafactory
    std::string chat_template = "auto";  // --template: auto, chatml, plain
    std::string special = "parse";       // parse, literal, error
    std::string truncation = "fit";      // fit, drop, error
    std::string on_bad_row = "fail";     // fail, skip
    int64_t max_length = 1024;           // tokens of the prompt plus one answer
    // model
    std::string model;           // as typed; "" is the first official one found
    std::string adapter;         // PEFT directory to go on from, or ""
    std::string dtype = "auto";  // auto, fp32, bf16
    // adapter
    int64_t lora_rank = 16;
    double lora_alpha = 32;
    std::vector<std::string> lora_targets = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                             "gate_proj", "up_proj", "down_proj"};
    double lora_dropout = 0;
    bool rslora = false;
    // optimisation
    double lr = 0;  // 0: auto, by model size
    double beta = 0.25;
    double epochs = 0;                // 0: auto, by the number of pairs
    int64_t max_steps = 0;            // 0: none
    int64_t batch_size = 0;           // pairs per optimizer step; 0: auto
    int64_t micro_batch_tokens = 0;   // 0: auto
    std::string schedule = "linear";  // linear, cosine, constant, inverse-sqrt, wsd
    double warmup = 0.05;             // steps, or a share of all steps when below 1
    double weight_decay = 0;
    double clip = 1;  // largest global gradient norm; 0: none
    uint64_t seed = 0;
    bool shuffle = true;
    std::string nll_scope = "full";  // full, response
    // run
    std::string out;         // "": runs/<date>-<data>-<model>
    int64_t eval_every = 0;  // steps; 0: auto
    int64_t save_every = 0;  // steps; 0: auto
    int64_t keep = 3;        // checkpoints
    MetricExpression best_metric{"nll_chosen + 0.25 or_loss"};
    int64_t early_stop = 0;  // evaluations without a better one; 0: none
    double max_time = 0;     // seconds; 0: none
    bool resume = false;
    int64_t threads = 0;  // 0: auto, every core
    int64_t memory_limit = 0;  // bytes; 0: none
    bool tune = false;         // time a GPU's algorithms for every product
    std::string device = "auto";

    LoraConfig lora() const;
    // Warm-up in steps when the run has `steps` of them; at least 1 when a share above 0 was asked for.
    int64_t warmup_steps(int64_t steps) const;
    // Optimizer steps of the run for `pairs` training pairs. The last batch of an epoch may be short.
    int64_t total_steps(int64_t pairs) const;
};

// "24GB", "800M", "22.5GiB", "3.5e9" -> bytes; -1 when it is no size.
int64_t parse_bytes(const std::string& text);

// One flag of `orpo train`.
struct TrainField {
    const char* name;   // "lora-rank": --lora-rank, ORPO_LORA_RANK and the key in config files
    const char* group;  // heading in --help
    const char* type;   // "N", "fit|drop|error"; "" for a switch
    const char* help;
    bool mathematics;  // another value gives another adapter: --resume refuses it
    // Error(kUsage) that names the flag and what is allowed. Text as typed.
    std::function<void(TrainConfig&, const std::string&)> set;
    std::function<nlohmann::json(const TrainConfig&)> get;

    bool is_switch() const { return *type == '\0'; }
};
const std::vector<TrainField>& train_fields();
const TrainField* find_train_field(const std::string& name);

// Sets one field from text. Unknown name: ORPO_CHECK.
void set_train_field(TrainConfig& config, const std::string& name, const std::string& text);

// config.json of a run: complete but for out and resume; itself a valid --config. Reading it back gives the same bits.
nlohmann::ordered_json train_config_json(const TrainConfig& config);
// From the object of a configuration file; unknown keys and impossible values: Error(kUsage) that names `file`.
TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& file);

struct ConfigDifference {
    std::string name, before, now;
    bool mathematics = false;
};
// Fields that differ, out and resume left out.
std::vector<ConfigDifference> config_differences(const TrainConfig& before, const TrainConfig& now);

// Resolves every "auto" once the model, and the number of training and evaluation pairs, are known.
// Returns one line per choice for the log: "lr 0.001: SmolLM2-135M, short run". Error(kUsage) when max_length exceeds
// the model's.
std::vector<std::string> resolve_defaults(TrainConfig& config, const ModelConfig& model, int64_t pairs,
                                          int64_t eval_pairs);

// The flags of `orpo train` (and of `orpo plan`) on a CLI11 command.
class TrainFlags {
  public:
    // DATA, every field of the table that is no common flag, --dry-run and --print-config.
    void add_to(CLI::App& app);
    // Only the named fields, for commands that share some of them. Grouped as in `orpo train`.
    void add_some(CLI::App& app, const std::vector<std::string>& names);

    bool dry_run = false;       // print the plan (steps, memory, time) and stop
    bool print_config = false;  // print every value and its origin, and stop
    // Defaults, then everything that was given in flags, environment or --config (the framework has merged them).
    TrainConfig config(const Call& call) const;
    // Only what was given, on top of `base`: for --resume.
    void apply(const Call& call, TrainConfig& base) const;

  private:
    void add(CLI::App& app, const TrainField& field);

    std::map<std::string, std::string> text_;
    std::map<std::string, bool> switches_;
};

// --print-config: a line per field with its value and where it came from, or with --json the object.
std::string print_config_text(const TrainConfig& config, const Call& call);

}  // namespace orpo
