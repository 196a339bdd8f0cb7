#include "src/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "src/command.h"
#include "src/settings.h"
#include "src/suggest.h"

namespace orpo {
namespace {

bool in_config_json(const TrainField& field) {
    const std::string name = field.name;
    return name != "out" && name != "resume";
}

bool is_common(const TrainField& field) { return std::string(field.group) == "Common"; }

// What a user would type for this value.
std::string typed(const nlohmann::json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_array()) return value.dump();
    std::string list;
    for (const auto& item : value) list += (list.empty() ? "" : ",") + typed(item);
    return list;
}

}  // namespace

LoraConfig TrainConfig::lora() const {
    LoraConfig lora;
    lora.R = static_cast<int>(lora_rank);
    lora.alpha = lora_alpha;
    lora.rslora = rslora;
    lora.dropout = lora_dropout;
    for (int i = 0; i < kLinears; ++i)
        lora.targets[i] = std::find(lora_targets.begin(), lora_targets.end(), linear_name(static_cast<Linear>(i))) !=
                          lora_targets.end();
    return lora;
}

int64_t TrainConfig::warmup_steps(int64_t steps) const {
    if (warmup >= 1) return static_cast<int64_t>(warmup);
    if (warmup == 0 || steps == 0) return 0;
    return static_cast<int64_t>(std::ceil(warmup * static_cast<double>(steps)));  // as Hugging Face does
}

int64_t TrainConfig::total_steps(int64_t pairs) const {
    ORPO_CHECK(batch_size > 0 && epochs > 0);
    const int64_t per_epoch = (pairs + batch_size - 1) / batch_size;
    const auto steps = static_cast<int64_t>(std::ceil(epochs * static_cast<double>(per_epoch)));
    return max_steps > 0 ? std::min(max_steps, steps) : steps;
}

void set_train_field(TrainConfig& config, const std::string& name, const std::string& text) {
    const TrainField* field = find_train_field(name);
    ORPO_CHECK(field != nullptr);
    field->set(config, text);
}

nlohmann::ordered_json train_config_json(const TrainConfig& config) {
    nlohmann::ordered_json json;
    for (const TrainField& field : train_fields())
        if (in_config_json(field)) json[field.name] = nlohmann::ordered_json::parse(field.get(config).dump());
    return json;
}

TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& file) {
    TrainConfig config;
    std::vector<std::string> names;
    for (const TrainField& field : train_fields()) names.emplace_back(field.name);
    for (const auto& [key, value] : json.items()) {
        const TrainField* field = find_train_field(key);
        if (!field)
            throw Error(Exit::kUsage, file + ": unknown key \"" + key + "\"" + did_you_mean(key, names) +
                                          "; `orpo train --help` lists them all");
        try {
            field->set(config, typed(value));
        } catch (const Error& e) {
            throw Error(e.exit(), file + ": " + e.what());
        }
    }
    return config;
}

std::vector<ConfigDifference> config_differences(const TrainConfig& before, const TrainConfig& now) {
    std::vector<ConfigDifference> differences;
    for (const TrainField& field : train_fields()) {
        if (!in_config_json(field)) continue;
        const std::string a = typed(field.get(before)), b = typed(field.get(now));
        if (a != b) differences.push_back({field.name, a, b, field.mathematics});
    }
    return differences;
}

std::vector<std::string> resolve_defaults(TrainConfig& config, const ModelConfig& model, int64_t pairs,
                                          int64_t eval_pairs) {
    std::vector<std::string> lines;
    if (config.max_length > model.max_positions)
        throw Error(Exit::kUsage, fmt::format("--max-length {}: {} was made for at most {} tokens", config.max_length,
                                              model.name, model.max_positions));
    const bool small_set = pairs < 2000;
    if (config.batch_size == 0) {
        config.batch_size = small_set ? 8 : 32;
        lines.push_back(fmt::format("batch-size {}: {} training pairs{}", config.batch_size, pairs,
                                    small_set ? ", small sets need steps" : ""));
    }
    if (config.epochs == 0) {
        config.epochs = small_set ? 2 : 1;
        lines.push_back(fmt::format("epochs {}: {} training pairs{}", config.epochs, pairs,
                                    small_set ? ", small sets need steps" : ""));
    }
    const int64_t steps = config.total_steps(pairs);
    if (config.lr == 0) {
        const int64_t parameters = parameter_count(model);
        const bool small = parameters < 250'000'000, middle = parameters < 800'000'000;
        const double few_steps = 1e-3, many_steps = 5e-4;
        config.lr = small ? (steps < 50 ? few_steps : many_steps) : middle ? 4e-4 : 2e-4;
        lines.push_back(fmt::format("lr {}: a model of {} million parameters{}", config.lr, parameters / 1'000'000,
                                    !small       ? ""
                                    : steps < 50 ? fmt::format(", {} steps ({} from 50 on)", steps, many_steps)
                                                 : fmt::format(", {} steps ({} below 50)", steps, few_steps)));
    }
    if (config.eval_every == 0) {
        // Evaluating a pair costs about a third of training it: as often as keeps evaluation below a fifth of the run,
        // once to eight times between the first and the last step.
        const double passes =
            eval_pairs > 0 ? 0.2 * 3 * static_cast<double>(steps * config.batch_size) / static_cast<double>(eval_pairs)
                           : 0;
        const int64_t between = std::clamp<int64_t>(static_cast<int64_t>(passes) - 2, 1, 8);
        config.eval_every = std::max<int64_t>(1, (steps + between) / (between + 1));
        if (eval_pairs > 0)
            lines.push_back(fmt::format("eval-every {}: {} evaluations of {} pairs over {} steps", config.eval_every,
                                        2 + (steps - 1) / config.eval_every, eval_pairs, steps));
    }
    if (config.save_every == 0) {
        config.save_every = config.eval_every;
        lines.push_back(fmt::format("save-every {}: as eval-every", config.save_every));
    }
    return lines;
}

void TrainFlags::add(CLI::App& app, const TrainField& field) {
    const std::string name = field.name;
    std::string help = field.help;
    if (name == "data") {
        app.add_option("DATA", text_[name], help)->type_name("");
    } else if (field.is_switch()) {
        const std::string spelling = name == "shuffle" ? "--shuffle,!--no-shuffle" : "--" + name;
        app.add_flag(spelling, switches_[name], help)->group(field.group);
    } else {
        std::string value = typed(field.get(TrainConfig{}));
        if (value.size() > 2 && value.substr(value.size() - 2) == ".0") value.resize(value.size() - 2);
        if (name == "lora-targets")
            help += " (all)";
        else if (!value.empty() && value != "auto" && help.find(value) == std::string::npos)
            help += " (" + value + ")";
        app.add_option("--" + name, text_[name], help)->type_name(field.type)->group(field.group);
    }
}

void TrainFlags::add_to(CLI::App& app) {
    for (const TrainField& field : train_fields())
        if (!is_common(field)) add(app, field);
    app.add_flag("--dry-run", dry_run, "print the plan (data, steps, memory, time) and stop")->group("Run");
    app.add_flag("--print-config", print_config, "print every value and where it comes from, and stop")->group("Run");
}

void TrainFlags::add_some(CLI::App& app, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
        const TrainField* field = find_train_field(name);
        ORPO_CHECK(field != nullptr && !is_common(*field));
        add(app, *field);
    }
}

TrainConfig TrainFlags::config(const Call& call) const {
    TrainConfig config;
    apply(call, config);
    return config;
}

void TrainFlags::apply(const Call& call, TrainConfig& base) const {
    for (const TrainField& field : train_fields()) {
        const std::string name = field.name;
        const auto origin = call.origins.find(name);
        if (origin == call.origins.end() || (!is_common(field) && !text_.count(name) && !switches_.count(name)))
            continue;
        try {
            if (name == "threads")
                base.threads = call.common.threads;
            else if (name == "device")
                base.device = call.common.device;
            else if (field.is_switch())
                field.set(base, switches_.at(name) ? "true" : "false");
            else
                field.set(base, text_.at(name));
        } catch (const Error& e) {
            throw Error(e.exit(), (origin->second == "flag" ? "" : "from " + origin->second + ": ") + e.what());
        }
    }
}

std::string print_config_text(const TrainConfig& config, const Call& call) {
    if (call.common.json) return train_config_json(config).dump(2) + "\n";
    std::string text;
    for (const TrainField& field : train_fields()) {
        const auto origin = call.origins.find(field.name);
        const std::string value = typed(field.get(config));
        text += fmt::format("{:<20} {:<28}  {}\n", field.name, value.empty() ? "\"\"" : value,
                            origin == call.origins.end() ? "default" : origin->second);
    }
    return text;
}

}  // namespace orpo
