// orpo inspect: what a file is, and whether it is sound.
#include <fmt/format.h>

#include <algorithm>

#include "src/command.h"
#include "src/inspect.h"

namespace orpo {
namespace {

struct InspectFlags {
    std::string file, model;
};

// The exit code that training would give for a fault in such a file.
Exit code_of(const std::string& kind) {
    if (kind == "data") return Exit::kBadData;
    return kind == "run" ? Exit::kCannotResume : Exit::kBadModel;
}

std::string as_text(const nlohmann::ordered_json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_integer()) return with_commas(value.get<int64_t>());
    return fmt::format("{:.6g}", value.get<double>());
}

std::string for_people(const Inspection& found) {
    size_t width = 4;
    for (const auto& [name, value] : found.facts.items()) width = std::max(width, name.size());
    std::string out = fmt::format("{:<{}}  {}\n", "kind", width, found.kind);
    for (const auto& [name, value] : found.facts.items())
        out += fmt::format("{:<{}}  {}\n", name, width, as_text(value));
    for (const std::string& note : found.notes) out += fmt::format("note: {}\n", note);
    for (const std::string& fault : found.faults) out += fmt::format("fault: {}\n", fault);
    return out + (found.faults.empty() ? "sound\n" : fmt::format("{} faults\n", found.faults.size()));
}

// {"kind", "sound", facts with _ for blanks, "notes", "faults"}
std::string for_programs(const Inspection& found) {
    nlohmann::ordered_json json = {{"kind", found.kind}, {"sound", found.faults.empty()}};
    for (const auto& [name, value] : found.facts.items()) {
        std::string key = name;
        std::replace(key.begin(), key.end(), ' ', '_');
        json[key] = value;
    }
    json["notes"] = found.notes;
    json["faults"] = found.faults;
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

void add_inspect_command(Commands& commands) {
    auto flags = std::make_shared<InspectFlags>();
    CLI::App& app =
        commands.add("inspect", "what a model, adapter, checkpoint, run or data file is, and whether it is sound",
                     "  orpo inspect SmolLM2-135M-Instruct\n"
                     "  orpo inspect runs/mine/adapter --json\n"
                     "  orpo inspect pairs.jsonl\n",
                     [flags](Call& call) {
                         const Inspection found = inspect(flags->file, flags->model);
                         print(call.common.json ? for_programs(found) : for_people(found));
                         return found.faults.empty() ? Exit::kDone : code_of(found.kind);
                     });
    app.add_option("FILE", flags->file, "file, directory, hub id or name of an official model")->required();
    app.add_option("--model", flags->model, "the model that an adapter or data file is for");
}

}  // namespace orpo
