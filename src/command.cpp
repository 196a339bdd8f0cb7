#include "src/command.h"

#include "src/config.h"

namespace orpo {

CLI::App& Commands::add(const std::string& name, const std::string& summary, const std::string& examples,
                        Action action) {
    return add(root_, name, summary, examples, std::move(action));
}

CLI::App& Commands::add(CLI::App& parent, const std::string& name, const std::string& summary,
                        const std::string& examples, Action action) {
    CLI::App& app = *parent.add_subcommand(name, summary);
    app.footer("Examples:\n" + examples);
    app.set_help_flag("-h,--help", "this text");
    if (!action) {
        app.require_subcommand(1);
        return app;
    }
    app.add_flag("--quiet,-q", common_.quiet, "warnings and errors only")->group("Common");
    app.add_flag("--json", common_.json, "results as JSON on standard output")->group("Common");
    app.add_flag("--no-color", common_.no_color, "no colour (also NO_COLOR)")->group("Common");
    // The table of `orpo train` knows what is allowed.
    const auto through_table = [](const char* name, auto keep) {
        return [name, keep](const std::string& text) {
            TrainConfig scratch;
            set_train_field(scratch, name, text);
            keep(scratch);
        };
    };
    app.add_option_function<std::string>(
           "--threads",
           through_table("threads", [this](const TrainConfig& c) { common_.threads = static_cast<int>(c.threads); }),
           "CPU threads (default: every core that may be used)")
        ->type_name("N")
        ->group("Common");
    app.add_option_function<std::string>(
           "--device", through_table("device", [this](const TrainConfig& c) { common_.device = c.device; }),
           "auto, cpu, cuda or cuda:INDEX")
        ->type_name("NAME")
        ->group("Common");
    app.add_option("--config", common_.config, "JSON file with values for these flags; flags and ORPO_* win")
        ->type_name("FILE")
        ->group("Common");
    actions_[&app] = std::move(action);
    return app;
}

const Action* Commands::find(const CLI::App& app) const {
    const auto found = actions_.find(&app);
    return found == actions_.end() ? nullptr : &found->second;
}

void add_all_commands(Commands& commands) {
    add_train_command(commands);
    add_eval_command(commands);
    add_data_command(commands);
    add_tokenize_command(commands);
    add_generate_command(commands);
    add_plan_command(commands);
    add_bench_command(commands);
    add_profile_command(commands);
    add_inspect_command(commands);
}

}  // namespace orpo
