// orpo plan: what training would take in memory, from the shape of a model alone.
#include <fmt/format.h>

#include "base/error.h"
#include "model/devices.h"
#include "model/weights.h"
#include "src/command.h"
#include "src/config.h"
#include "src/host_memory.h"
#include "src/metrics_log.h"
#include "src/terminal.h"
#include "src/train_plan.h"

namespace orpo {
namespace {

// What forward keeps, in a word.
const char* keep_name(Keep keep) {
    constexpr const char* kNames[] = {"everything", "activations", "no-gate-up", "inputs", "nothing"};
    return kNames[static_cast<int>(keep)];
}

// What else would fit on the GPU.
std::string modes_text(const TrainPlan& plan) {
    if (plan.modes.empty()) return "";
    std::string text = fmt::format("  {:<38}{:>10}{:>12}\n", "made again in backward", "tokens", "peak");
    for (const TrainPlan::Mode& mode : plan.modes)
        text += fmt::format("    {:<36}{:>10}{:>12}{}\n", made_again(mode.keep),
                            mode.most_tokens > 0 ? with_commas(mode.most_tokens) : "no room",
                            mode.most_tokens > 0 ? human_bytes(static_cast<double>(mode.peak_bytes)) : "",
                            mode.keep == plan.engine.sizes.keep ? "  this plan" : "");
    return text;
}

Exit plan(TrainConfig config, const std::string& memory, Call& call) {
    ModelConfig model;
    std::string name = config.model;
    if (!official_config(config.model, &model)) {
        const Model opened = open_model(config.model);
        model = opened.config, name = opened.display_name;
    }
    if (config.max_length > model.max_positions)
        throw Error(Exit::kUsage, fmt::format("--max-length {}: {} was made for at most {} tokens", config.max_length,
                                              name, model.max_positions));
    // The worst that data can bring: a short prompt, and two answers that fill the rest.
    const int64_t longest = config.micro_batch_tokens > 0 ? config.micro_batch_tokens : 2 * config.max_length;
    const auto sizes = [&](int64_t budget) { return PlanSizes{budget, config.max_length}; };
    const int64_t given = memory.empty() ? 0 : parse_bytes(memory);
    if (given < 0) throw Error(Exit::kUsage, "--memory " + memory + ": a size such as 24GB, 22.5GiB or 800MB");
    // A GPU of a size that was given need not be here.
    const bool gpu = config.device.starts_with("cuda");
    if (!gpu || given == 0) config.device = resolve_device(config.device);
    config.dtype = resolve_dtype(config.dtype, config.device);
    PlanRoom room{resident_bytes(), given};
    if (given == 0) room.available = config.device == "cpu" ? available_bytes() : device_bytes(config.device);
    const TrainPlan plan = choose_plan(config, model, longest, sizes, room);
    if (call.common.json) {
        Json json = {{"model", name},
                     {"device", plan.device.device},
                     {"dtype", plan.device.dtype},
                     {"micro_batch_tokens", plan.max_tokens},
                     {"max_length", config.max_length},
                     {"keep", keep_name(plan.engine.sizes.keep)},
                     {"peak_bytes", plan.peak_bytes()},
                     {"host_bytes", plan.rest_bytes}};
        for (int i = 0; i < static_cast<int>(Category::kCount); ++i)
            json[std::string(category_name(static_cast<Category>(i))) + "_bytes"] =
                plan.memory.bytes(static_cast<Category>(i));
        if (plan.gpu()) json["context_bytes"] = plan.device_bytes;
        for (const TrainPlan::Mode& mode : plan.modes)
            json["modes"].push_back({{"keep", keep_name(mode.keep)},
                                     {"micro_batch_tokens", mode.most_tokens},
                                     {"peak_bytes", mode.peak_bytes}});
        print(json.dump(2) + "\n");
    } else {
        print(fmt::format("{}: training on {}, {}, {} tokens at once, --max-length {}\n{}", name,
                          plan.gpu() ? fmt::format("a GPU of {}", human_bytes(static_cast<double>(room.available)))
                                     : "the CPU",
                          plan.device.dtype, plan.max_tokens, config.max_length, plan_text(plan)));
        print(modes_text(plan));
    }
    return Exit::kDone;
}

}  // namespace

void add_plan_command(Commands& commands) {
    auto flags = std::make_shared<TrainFlags>();
    auto memory = std::make_shared<std::string>();
    CLI::App& app = commands.add("plan", "memory that training takes, by category",
                                 "  orpo plan --model 1.7B --memory 24GB\n"
                                 "  orpo plan --model 1.7B --memory 24GB --device cuda    (no GPU is needed)\n"
                                 "  orpo plan --model 135M --max-length 512 --lora-rank 64\n",
                                 [flags, memory](Call& call) { return plan(flags->config(call), *memory, call); });
    app.add_option("--memory", *memory, "plan for this much main memory, or for a GPU with this much, instead of what is here: 24GB")->type_name("SIZE");
    flags->add_to(app);
}

}  // namespace orpo
