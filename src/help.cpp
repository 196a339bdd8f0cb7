#include "src/help.h"

#include <algorithm>
#include <sstream>
#include <vector>

namespace orpo {
namespace {

constexpr size_t kLeft = 30, kWidth = 110;

// "  --lr X     words, broken at kWidth and indented".
std::string entry(const std::string& name, const std::string& words) {
    std::string out = "  " + name;
    size_t column = out.size();
    if (column + 1 > kLeft) out += '\n', column = 0;
    out.append(kLeft - column, ' '), column = kLeft;
    std::istringstream stream(words);
    bool first = true;
    for (std::string word; stream >> word; first = false) {
        if (!first && column + 1 + word.size() > kWidth) {
            out += '\n' + std::string(kLeft, ' '), column = kLeft;
        } else if (!first) {
            out += ' ', ++column;
        }
        out += word, column += word.size();
    }
    return out + '\n';
}

std::string spelling(const CLI::Option& option) {
    std::string names;
    for (const std::string& name : option.get_snames()) names += "-" + name + ", ";
    for (const std::string& name : option.get_lnames()) names += "--" + name + ", ";
    names.resize(names.size() - 2);
    if (option.get_items_expected_max() > 0 && !option.get_type_name().empty()) names += " " + option.get_type_name();
    return names;
}

bool positional(const CLI::Option* option) { return option->get_positional() && !option->nonpositional(); }

}  // namespace

std::string full_name(const CLI::App& app) {
    return app.get_parent() ? full_name(*app.get_parent()) + " " + app.get_name() : app.get_name();
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const {
    const auto subcommands = app->get_subcommands([](const CLI::App*) { return true; });
    const auto positionals = app->get_options([](const CLI::Option* option) { return positional(option); });
    std::string out = full_name(*app) + ": " + app->get_description() + "\n\nUsage: " + full_name(*app);
    if (!subcommands.empty()) out += " COMMAND";
    for (const CLI::Option* option : positionals) {
        const std::string name = option->get_name(true);
        out += option->get_required() ? " " + name : " [" + name + "]";
    }
    out += " [flags]\n";
    if (!app->get_footer().empty()) out += "\n" + app->get_footer();
    if (!subcommands.empty()) out += "\nCommands:\n";
    for (const CLI::App* sub : subcommands) out += entry(sub->get_name(), sub->get_description());
    if (!positionals.empty()) out += "\n";
    for (const CLI::Option* option : positionals) out += entry(option->get_name(true), option->get_description());

    std::vector<std::string> groups = app->get_groups();
    std::stable_partition(groups.begin(), groups.end(), [](const std::string& group) { return group != "Common"; });
    for (const std::string& group : groups) {
        std::string entries;
        for (const CLI::Option* option : app->get_options())
            if (option->get_group() == group && !positional(option) && option != app->get_help_ptr())
                entries += entry(spelling(*option), option->get_description());
        if (!entries.empty()) out += "\n" + (group == "Options" ? "Flags" : group) + ":\n" + entries;
    }
    return out;
}

}  // namespace orpo
