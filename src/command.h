// How a command plugs into the program. One file per command, src/<name>_command.cpp, with one function:
//
//   void add_data_command(Commands& commands) {
//       auto flags = std::make_shared<DataFlags>();
//       CLI::App& app = commands.add("data", "shows what will be trained on", "  orpo data pairs.jsonl\n",
//                                    [flags](Call& call) { return run_data(*flags, call); });
//       app.add_option("DATA", flags->data, "preference pairs, JSON Lines; - reads standard input")->required();
//       app.add_option("--show", flags->show, "...");
//   }
//
// The framework adds the common flags (--quiet, --json, --threads, --device, --config, --no-color, --help) to every
// command, fills options that the command line leaves out from ORPO_<FLAG> and from --config, and turns what the action
// throws into an exit code and a message. Bounds that CLI11's validators express (CLI::Range, CLI::IsMember) give exit
// code 2 by themselves; everything else is `throw Error(Exit::kUsage, "--flag: what is allowed")`.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "src/log.h"
#include "src/terminal.h"

namespace orpo {

struct CommonFlags {
    bool quiet = false;  // warnings and errors only
    bool json = false;   // results as JSON
    bool no_color = false;
    int threads = 0;              // 0: one per core that this process may use
    std::string device = "auto";  // auto, cpu, cuda, cuda:i
    std::string config;           // path, "" for none
};

// One run of one command. Results go to standard output through print() (src/terminal.h), talk to `log`.
struct Call {
    CommonFlags common;
    std::string command_line;  // as typed, for run headers
    std::map<std::string, std::string>
        origins;  // flag without dashes -> "flag", "ORPO_LR" or the file; absent: default
    Terminal& terminal;
    Log log;

    bool given(const std::string& flag) const { return origins.count(flag) > 0; }
};

using Action = std::function<Exit(Call&)>;

class Commands {
  public:
    explicit Commands(CLI::App& root) : root_(root) {}

    // examples: for --help, one a line, indented by two. The returned App lives as long as `root`.
    CLI::App& add(const std::string& name, const std::string& summary, const std::string& examples, Action action);
    // One level deeper: `orpo bench train`. The parent needs no action of its own.
    CLI::App& add(CLI::App& parent, const std::string& name, const std::string& summary, const std::string& examples,
                  Action action);

    const Action* find(const CLI::App& app) const;
    const CommonFlags& common() const { return common_; }
    CommonFlags& common() { return common_; }

  private:
    CLI::App& root_;
    CommonFlags common_;
    std::map<const CLI::App*, Action> actions_;
};

// Every command of the program, in the order of --help.
void add_train_command(Commands& commands);     // src/train_command.cpp
void add_eval_command(Commands& commands);      // src/eval_command.cpp
void add_data_command(Commands& commands);      // src/data_command.cpp
void add_tokenize_command(Commands& commands);  // src/tokenize_command.cpp
void add_generate_command(Commands& commands);  // src/generate_command.cpp
void add_plan_command(Commands& commands);      // src/plan_command.cpp
void add_bench_command(Commands& commands);     // src/bench_command.cpp
void add_profile_command(Commands& commands);   // src/profile_command.cpp
void add_inspect_command(Commands& commands);   // src/inspect_command.cpp

void add_all_commands(Commands& commands);

// The whole program: parses, runs, reports. Returns the exit code. Never throws.
int run_program(int argc, const char* const* argv);

// "version, build, instruction set, oneDNN, Unicode, device": what --version prints.
std::string version_text();
std::string version();  // "0.1.0"

}  // namespace orpo
