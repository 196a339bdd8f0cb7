// --help: what it does, usage, examples, then the flags by group, the common ones last.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace orpo {

class HelpFormatter : public CLI::FormatterBase {
  public:
    std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override;
};

// "orpo bench train"
std::string full_name(const CLI::App& app);

}  // namespace orpo
