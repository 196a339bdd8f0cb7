// Where a value comes from: flags, then ORPO_* in the environment, then --config FILE, then defaults.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace orpo {

// A configuration file: one JSON object, comments allowed. Error(kIo) or Error(kUsage) with file and line: no file, no
// JSON, no object, a key twice.
nlohmann::json read_json_config(const std::string& path);

// Fills the options of `app` that the command line left out. Returns flag (no dashes) -> "flag", variable or file.
// A key that no command knows is refused with the nearest one; keys of other commands are fine.
std::map<std::string, std::string> fill_from_environment_and_config(CLI::App& app, std::string config_path);

// Variables of the environment that begin with ORPO_ and are no flag of any command of `root` (nor one of the few
// others that the program reads): a line each, with the nearest name that is one.
std::vector<std::string> unknown_variables(const CLI::App& root);

// "lora-rank" -> "ORPO_LORA_RANK"
std::string variable_name(const std::string& flag);

}  // namespace orpo
