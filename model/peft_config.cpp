#include "model/peft_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/config.h"
#include "model/json_document.h"

namespace orpo {

namespace {

constexpr int64_t kMaxRank = 4096;

[[noreturn]] void refuse(const std::string& place, const std::string& what) {
    throw Error(Exit::kBadModel, fmt::format("{} {}; supported are plain LoRA adapters on {}", place, what,
                                             "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"));
}

bool is_empty(const simdjson::dom::element& value) {
    if (value.is_array()) return simdjson::dom::array(value).size() == 0;
    if (value.is_object()) return simdjson::dom::object(value).size() == 0;
    if (value.is_bool()) return !bool(value);
    if (value.is_string()) return std::string_view(value).empty();
    return false;
}

// Fields that change what is computed, in ways that this program does not know. Names of today's PEFT, and for
// tomorrow's: any use_* that is on, any *_config that holds something.
void refuse_other_traits(const JsonObject& root) {
    const auto type = root.text("peft_type");
    if (!type) throw Error(Exit::kBadModel, root.place("peft_type") + " is missing: not an adapter's configuration");
    if (*type != "LORA") refuse(root.place("peft_type"), fmt::format("is \"{}\"", *type));
    const std::string bias = root.text("bias").value_or("none");
    if (bias != "none") refuse(root.place("bias"), fmt::format("is \"{}\"", bias));
    for (const char* key : {"modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication",
                            "lora_bias", "alora_invocation_tokens"}) {
        const auto value = root.find(key);
        if (value && !is_empty(*value)) refuse(root.place(key), "is set");
    }
    for (const auto field : root.fields()) {
        if (field.value.is_null() || is_empty(field.value) || field.key == "use_rslora") continue;
        if (field.key.substr(0, 4) == "use_" && field.value.is_bool()) refuse(root.place(field.key), "is true");
        if (field.key.ends_with("_config") && field.value.is_object()) refuse(root.place(field.key), "is set");
    }
    // These compute a new base from the old one when the adapter is loaded.
    const auto init = root.find("init_lora_weights");
    if (init && init->is_string()) {
        const std::string_view name(*init);
        if (name != "gaussian" && name != "eva" && name != "orthogonal") {
            refuse(root.place("init_lora_weights"),
                   fmt::format("is \"{}\", which changes the base; let PEFT convert the adapter to plain LoRA", name));
        }
    }
}

std::vector<std::string> text_or_texts(const JsonObject& root, std::string_view key) {
    const auto value = root.find(key);
    if (!value) return {};
    if (value->is_string()) return {std::string(std::string_view(*value))};
    return root.texts(key).value_or(std::vector<std::string>());
}

std::vector<std::pair<std::string, double>> parse_pattern(const JsonObject& root, std::string_view key, double usual) {
    std::vector<std::pair<std::string, double>> pattern;
    const auto object = root.object(key);
    if (!object) return pattern;
    for (const auto field : object->fields()) {
        const double value = object->number(field.key).value_or(usual);
        if (!(value > 0 && value <= 1e9)) refuse(object->place(field.key), fmt::format("is {}", value));
        // The keys are regular expressions; names are the ones that people write, and all that is understood here.
        std::string name(field.key);
        if (name.starts_with("^")) name.erase(0, 1);
        const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
            return std::isalnum(c) || c == '_' || c == '.';
        });
        if (!plain && value != usual) refuse(object->place(field.key), "is a regular expression, not a module's name");
        if (plain) pattern.emplace_back(name, value);
    }
    return pattern;
}

// The whole name or its end, at a dot.
bool names(std::string_view name, std::string_view module) {
    if (module == name) return true;
    return module.size() > name.size() && module.ends_with(name) && module[module.size() - name.size() - 1] == '.';
}

double look_up(const std::vector<std::pair<std::string, double>>& pattern, std::string_view module, double usual) {
    for (const auto& [name, value] : pattern)
        if (names(name, module)) return value;
    return usual;
}

std::vector<int64_t> integers(const JsonObject& root, std::string_view key) {
    const auto value = root.find(key);
    if (!value->is_array()) return {*root.integer(key)};
    std::vector<int64_t> numbers;
    for (const simdjson::dom::element item : simdjson::dom::array(*value)) {
        int64_t number = 0;
        if (item.get(number) != simdjson::SUCCESS) root.wrong(key, item, "a layer or a list of layers");
        numbers.push_back(number);
    }
    return numbers;
}

// A target is one of the seven linears, alone or with more of its path before it.
void check_targets(const JsonObject& root, const std::vector<std::string>& targets) {
    if (targets.empty()) refuse(root.place("target_modules"), "is empty");
    for (const std::string& target : targets) {
        bool known = false;
        for (int i = 0; i < kLinears; ++i) known |= names(linear_name(static_cast<Linear>(i)), target);
        if (!known) refuse(root.place("target_modules"), fmt::format("holds \"{}\"", target));
    }
}

}  // namespace

PeftConfig parse_peft_config(std::string_view json, const std::string& file) {
    const JsonDocument document(json, file);
    const JsonObject& root = document.root();
    refuse_other_traits(root);

    PeftConfig config;
    config.file = file;
    const auto rank = root.integer("r");
    if (!rank) throw Error(Exit::kBadModel, root.place("r") + " is missing; save the adapter again with PEFT");
    if (*rank < 1 || *rank > kMaxRank) refuse(root.place("r"), fmt::format("is {}, not 1 to {}", *rank, kMaxRank));
    config.rank = static_cast<int>(*rank);
    const auto alpha = root.number("lora_alpha");
    if (!alpha)
        throw Error(Exit::kBadModel, root.place("lora_alpha") + " is missing; save the adapter again with PEFT");
    if (!(*alpha > 0 && *alpha <= 1e9)) refuse(root.place("lora_alpha"), fmt::format("is {}", *alpha));
    config.alpha = *alpha;
    config.rslora = root.boolean("use_rslora").value_or(false);
    config.dropout = root.number("lora_dropout").value_or(0);
    if (!(config.dropout >= 0 && config.dropout < 1))
        refuse(root.place("lora_dropout"), fmt::format("is {}, not within 0 to 1", config.dropout));
    config.base_name = root.text("base_model_name_or_path").value_or("");

    const auto targets = root.find("target_modules");
    if (!targets)
        throw Error(Exit::kBadModel, root.place("target_modules") + " is missing; save the adapter again with PEFT");
    if (targets->is_string() && std::string_view(*targets) == "all-linear") {
        config.targets.emplace();
        for (int i = 0; i < kLinears; ++i) config.targets->emplace_back(linear_name(static_cast<Linear>(i)));
    } else if (!targets->is_string()) {
        config.targets = root.texts("target_modules");
        check_targets(root, *config.targets);
    }
    const auto excluded = root.find("exclude_modules");
    if (excluded && excluded->is_string() && !is_empty(*excluded)) {
        config.targets.reset();
    } else {
        config.excluded = text_or_texts(root, "exclude_modules");
    }
    const auto layers = root.find("layers_to_transform");
    if (layers && !is_empty(*layers)) {
        config.layers = integers(root, "layers_to_transform");
        const std::vector<std::string> patterns = text_or_texts(root, "layers_pattern");
        if (!patterns.empty() && std::find(patterns.begin(), patterns.end(), "layers") == patterns.end())
            config.targets.reset();
    }
    config.ranks = parse_pattern(root, "rank_pattern", config.rank);
    config.alphas = parse_pattern(root, "alpha_pattern", config.alpha);
    for (const auto& [name, value] : config.ranks) {
        if (value > kMaxRank || value != std::floor(value))
            refuse(root.place("rank_pattern"), fmt::format("gives \"{}\" the rank {}", name, value));
    }
    return config;
}

std::optional<bool> PeftConfig::adapts(std::string_view module, int layer) const {
    const auto any = [&](const std::vector<std::string>& list) {
        return std::any_of(list.begin(), list.end(), [&](const std::string& name) { return names(name, module); });
    };
    if (any(excluded)) return false;
    if (!targets) return std::nullopt;
    if (std::find(targets->begin(), targets->end(), module) != targets->end()) return true;
    if (!any(*targets)) return false;
    return !layers || std::find(layers->begin(), layers->end(), layer) != layers->end();
}

double PeftConfig::rank_of(std::string_view module) const { return look_up(ranks, module, rank); }
double PeftConfig::alpha_of(std::string_view module) const { return look_up(alphas, module, alpha); }

}  // namespace orpo
