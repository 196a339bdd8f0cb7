// From argv to an exit code: the one place where errors become messages.
#include <fmt/format.h>
#include <omp.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "base/io.h"
#include "model/devices.h"
#include "src/command.h"
#include "src/help.h"
#include "src/settings.h"
#include "src/suggest.h"

namespace orpo {
namespace {

std::vector<std::string> command_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
        names.push_back(sub->get_name());
    return names;
}

std::vector<std::string> flag_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options())
        for (const std::string& name : option->get_lnames()) names.push_back(name);
    return names;
}

CLI::App& deepest(CLI::App& app) {
    const auto chosen = app.get_subcommands();
    return chosen.empty() ? app : deepest(*chosen.front());
}

// Names that other programs use for our flags.
std::string synonym(const std::string& flag) {
    static const std::map<std::string, std::string> other = {
        {"learning-rate", "lr"},
        {"learning_rate", "lr"},
        {"num-train-epochs", "epochs"},
        {"num_train_epochs", "epochs"},
        {"per_device_train_batch_size", "batch-size"},
        {"per-device-train-batch-size", "batch-size"},
        {"bs", "batch-size"},
        {"r", "lora-rank"},
        {"lora-r", "lora-rank"},
        {"lora_r", "lora-rank"},
        {"alpha", "lora-alpha"},
        {"output-dir", "out"},
        {"output_dir", "out"},
        {"output", "out"},
        {"max-grad-norm", "clip"},
        {"max_grad_norm", "clip"},
        {"lr-scheduler-type", "schedule"},
        {"lr_scheduler_type", "schedule"},
        {"warmup-ratio", "warmup"},
        {"warmup-steps", "warmup"},
        {"warmup_ratio", "warmup"},
        {"warmup_steps", "warmup"},
        {"lambda", "beta"},
        {"target-modules", "lora-targets"},
        {"dropout", "lora-dropout"},
        {"max-seq-length", "max-length"},
        {"max-new-tokens", "max-tokens"},
        {"n-predict", "max-tokens"},
        {"temp", "temperature"},
        {"fp32", "dtype fp32"},
        {"bf16", "dtype bf16"},
        {"eval-steps", "eval-every"},
        {"save-steps", "save-every"},
    };
    const auto found = other.find(flag);
    return found == other.end() ? "" : found->second;
}

std::string unknown_word(const std::string& word, const CLI::App& app) {
    if (word.rfind("-", 0) != 0) return fmt::format("\"{}\" is one word too many for `{}`", word, full_name(app));
    const std::string flag =
        word.substr(word.find_first_not_of('-') == std::string::npos ? 0 : word.find_first_not_of('-'));
    const std::string name = flag.substr(0, flag.find('='));
    std::string hint;
    const auto flags = flag_names(app);
    const std::string known = synonym(name);
    if (!known.empty() && std::find(flags.begin(), flags.end(), known.substr(0, known.find(' '))) != flags.end())
        hint = " (did you mean --" + known + "?)";
    else
        hint = did_you_mean(name, flags, "--");
    return fmt::format("unknown flag {}{}", word.substr(0, word.find('=')), hint);
}

// The usage error in our words.
std::string usage_message(const CLI::ParseError& e, CLI::App& app, const std::vector<std::string>& extras) {
    if (dynamic_cast<const CLI::ExtrasError*>(&e) && !extras.empty()) {
        for (const std::string& word : extras)
            if (word.rfind("-", 0) == 0 && word.size() > 1) return unknown_word(word, app);
        return unknown_word(extras.front(), app);
    }
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&e))
        for (const CLI::Option* option : app.get_options())
            if (option->get_items_expected_max() == 1 && option->count() > 1)
                return fmt::format("{} is given {} times, and takes one value", option->get_name(), option->count());
    return e.what();
}

int report(Terminal& terminal, Exit exit, const std::string& message) {
    terminal.status("");
    terminal.line(terminal.red("error: ") + message);
    return static_cast<int>(exit);
}

int run_command(CLI::App& root, Commands& commands, int argc, const char* const* argv, bool& no_color) {
    // A first word that is no command: help before CLI11's general words do.
    const std::string first = argc > 1 ? argv[1] : "";
    const auto names = command_names(root);
    if (!first.empty() && first[0] != '-' && std::find(names.begin(), names.end(), first) == names.end()) {
        const std::string hint = io::exists(first) ? fmt::format(" (did you mean `orpo train {}`?)", first)
                                                   : did_you_mean(first, names, "orpo ");
        throw Error(Exit::kUsage, fmt::format("\"{}\" is no command of orpo{}; `orpo --help` lists them", first, hint));
    }
    try {
        root.parse(argc, argv);
    } catch (const CLI::CallForAllHelp&) {
        print(root.help("", CLI::AppFormatMode::All));
        return 0;
    } catch (const CLI::CallForHelp&) {
        print(deepest(root).help());
        return 0;
    } catch (const CLI::CallForVersion&) {
        print(version_text());
        return 0;
    } catch (const CLI::ParseError& e) {
        CLI::App& app = deepest(root);
        throw Error(Exit::kUsage,
                    fmt::format("{}; see `{} --help`", usage_message(e, app, root.remaining(true)), full_name(app)));
    }
    CLI::App& app = deepest(root);
    const Action* action = commands.find(app);
    if (!action) {
        print(app.help());
        return static_cast<int>(Exit::kUsage);
    }
    auto origins = fill_from_environment_and_config(app, commands.common().config);
    no_color = commands.common().no_color;
    std::string line = "orpo";
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        line += word.find_first_of(" \t\n\"'") == std::string::npos && !word.empty() ? " " + word : " '" + word + "'";
    }
    Terminal terminal(no_color);
    Call call{commands.common(), line, std::move(origins), terminal, make_log(terminal, commands.common().quiet)};
    for (const std::string& unknown : unknown_variables(root)) call.log->warn(unknown);
    // Refused before any work; plans are also made for GPUs that are elsewhere.
    if (call.common.device.rfind("cuda", 0) == 0 && app.get_name() != "plan") resolve_device(call.common.device);
    if (call.common.threads > 0) omp_set_num_threads(call.common.threads);
    return static_cast<int>((*action)(call));
}

}  // namespace

int run_program(int argc, const char* const* argv) {
    // A reader that goes away is seen where we write, so that training outlives a closed terminal.
    std::signal(SIGPIPE, SIG_IGN);
    bool no_color = false;
    const auto fail = [&](Exit exit, const std::string& message) {
        Terminal terminal(no_color);
        return report(terminal, exit, message);
    };
    try {
        CLI::App root("LoRA preference training (ORPO) for SmolLM2: train, evaluate, generate.", "orpo");
        root.set_help_flag("-h,--help", "this text");
        root.set_version_flag("--version", [] { return version_text(); }, "version, build, processor, libraries");
        root.footer("Start here:\n  orpo train data.jsonl\n  orpo COMMAND --help\n");
        root.require_subcommand(1);
        root.formatter(std::make_shared<HelpFormatter>());
        Commands commands(root);
        add_all_commands(commands);
        if (argc < 2) {
            print(root.help());
            return static_cast<int>(Exit::kUsage);
        }
        return run_command(root, commands, argc, argv, no_color);
    } catch (const BrokenPipe&) {
        return 0;
    } catch (const Error& e) {
        return fail(e.exit(), e.what());
    } catch (const std::bad_alloc&) {
        return fail(Exit::kMemory,
                    "out of memory; try a smaller --micro-batch-tokens or --max-length, or a smaller model "
                    "(`orpo plan` shows what is needed)");
    } catch (const std::exception& e) {
        return fail(Exit::kInternal, fmt::format("internal error, a bug in orpo {}: {}", version(), e.what()));
    }
}

}  // namespace orpo
