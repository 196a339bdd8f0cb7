#include "src/settings.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

#include "base/error.h"
#include "base/io.h"
#include "src/config.h"
#include "src/suggest.h"

namespace orpo {
namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;

// JSON value -> what a user would have typed. Numbers keep every bit: dump() writes the shortest text that reads back
// as the same double.
std::string as_typed(const nlohmann::json& value, const std::string& where) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number() || value.is_boolean()) return value.dump();
    if (value.is_array()) {
        std::string joined;
        for (const auto& item : value) joined += (joined.empty() ? "" : ",") + as_typed(item, where);
        return joined;
    }
    throw Error(Exit::kUsage, where + ": a value is a string, a number, true, false or a list, not " +
                                  std::string(value.type_name()) + "; leave the key out for the default");
}

std::string normal_key(std::string key) {
    for (char& c : key)
        if (c == '_') c = '-';
    return key;
}

void collect_variables(const CLI::App& app, std::vector<std::string>& names) {
    for (const CLI::Option* option : app.get_options())
        for (const std::string& flag : option->get_lnames()) names.push_back(variable_name(flag));
    for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
        collect_variables(*sub, names);
}

void inject(CLI::Option& option, const std::vector<std::string>& values, const std::string& origin) {
    try {
        for (const std::string& value : values) option.add_result(value);
        option.run_callback();
    } catch (const CLI::Error& e) {
        throw Error(Exit::kUsage, origin + ": " + e.what());
    }
}

}  // namespace

std::string variable_name(const std::string& flag) {
    std::string name = "ORPO_";
    for (const char c : flag) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return name;
}

std::vector<std::string> unknown_variables(const CLI::App& root) {
    // model/devices.cpp and base/io_sys.cpp read the first two.
    std::vector<std::string> known = {"ORPO_CUDA_LIBRARY", "ORPO_IO_FAULT"}, lines;
    collect_variables(root, known);
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string_view text(*entry);
        const std::string name(text.substr(0, text.find('=')));
        if (!name.starts_with("ORPO_") || name.starts_with("ORPO_TEST_")) continue;
        if (std::find(known.begin(), known.end(), name) == known.end())
            lines.push_back("the environment has " + name + ", which is no setting of orpo" +
                            did_you_mean(name, known));
    }
    std::sort(lines.begin(), lines.end());
    return lines;
}

nlohmann::json read_json_config(const std::string& path) {
    const std::string text = io::read_file(path, kMaxConfigBytes);
    std::set<std::string> seen;
    const auto no_twins = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
        if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
            !seen.insert(normal_key(parsed.get<std::string>())).second)
            throw Error(Exit::kUsage,
                        path + ": the key \"" + parsed.get<std::string>() + "\" stands there twice; keep one");
        return true;
    };
    nlohmann::json json;
    try {
        json = nlohmann::json::parse(text, no_twins, true, true);
    } catch (const nlohmann::json::parse_error& e) {
        const size_t end = std::min(e.byte, text.size());
        const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n');
        throw Error(Exit::kUsage,
                    path + ":" + std::to_string(line) +
                        ": not valid JSON (// comments are allowed, trailing commas are not): " + e.what());
    } catch (const nlohmann::json::out_of_range&) {
        throw Error(Exit::kUsage, path + ": holds a number that is too large for a double, such as 1e999");
    }
    if (!json.is_object())
        throw Error(Exit::kUsage, path + ": a configuration is one JSON object, {\"lr\": 0.001, ...}");
    return json;
}

std::map<std::string, std::string> fill_from_environment_and_config(CLI::App& app, std::string config_path) {
    std::map<std::string, CLI::Option*> options;  // by flag; positionals by their lower-case name
    std::map<std::string, std::string> origins;
    for (CLI::Option* option : app.get_options()) {
        std::string name;
        if (!option->get_lnames().empty()) {
            name = option->get_lnames()[0];
        } else {
            for (const char c : option->get_name())
                name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        }
        if (name == "help") continue;
        options[name] = option;
        if (option->count() > 0) origins[name] = "flag";
    }
    const auto variable_of = [&](const std::string& name, CLI::Option* option) -> const char* {
        if (option->get_lnames().empty()) return nullptr;
        const char* value = std::getenv(variable_name(name).c_str());
        return value && *value ? value : nullptr;
    };
    for (const auto& [name, option] : options)
        if (const char* value = variable_of(name, option); value && !origins.count(name)) {
            inject(*option, {value}, variable_name(name));
            origins[name] = variable_name(name);
            if (name == "config") config_path = value;
        }
    if (config_path.empty()) return origins;

    std::vector<std::string> known;
    for (const auto& [name, option] : options) known.push_back(name);
    for (const TrainField& field : train_fields()) known.emplace_back(field.name);
    const nlohmann::json json = read_json_config(config_path);  // outlives items()
    for (const auto& [key, value] : json.items()) {
        const std::string name = normal_key(key);
        if (std::find(known.begin(), known.end(), name) == known.end())
            throw Error(Exit::kUsage, config_path + ": unknown key \"" + key + "\"" + did_you_mean(name, known) +
                                          "; `orpo train --help` lists them all");
        const auto found = options.find(name);
        if (found == options.end() || origins.count(name) || name == "config") continue;
        const std::string where = config_path + ": \"" + key + "\"";
        std::vector<std::string> values;
        if (value.is_array() && found->second->get_items_expected_max() > 1)
            for (const auto& item : value) values.push_back(as_typed(item, where));
        else
            values.push_back(as_typed(value, where));
        if (values.empty()) continue;
        inject(*found->second, values, where);
        origins[name] = config_path;
    }
    return origins;
}

}  // namespace orpo
