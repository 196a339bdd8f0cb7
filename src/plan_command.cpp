// orpo plan: what training would take in memory, from the shape of a model alone.
#include <fmt/format.h>

#include <charconv>

#include "base/error.h"
#include "model/weights.h"
#include "src/command.h"
#include "src/config.h"
#include "src/host_memory.h"
#include "src/metrics_log.h"
#include "src/train_plan.h"

namespace orpo {
namespace {

// "24GB", "800M", "3.5e9" -> bytes.
int64_t parse_bytes(const std::string& text) {
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    std::string unit(stop, text.data() + text.size());
    if (!unit.empty() && (unit.back() == 'B' || unit.back() == 'b')) unit.pop_back();
    const double factor = unit.empty()                 ? 1
                          : unit == "K" || unit == "k" ? 1e3
                          : unit == "M" || unit == "m" ? 1e6
                          : unit == "G" || unit == "g" ? 1e9
                                                       : 0;
    if (error != std::errc() || factor == 0 || !(value > 0) || value * factor > 1e16)
        throw Error(Exit::kUsage, "--memory " + text + ": a size such as 24GB or 800MB");
    return static_cast<int64_t>(value * factor);
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
    const TrainPlan plan = choose_plan(config, model, longest, sizes, resident_bytes(),
                                       memory.empty() ? available_bytes() : parse_bytes(memory));
    if (call.common.json) {
        Json json = {{"model", name},
                     {"device", plan.device.device},
                     {"dtype", plan.device.dtype},
                     {"micro_batch_tokens", plan.max_tokens},
                     {"max_length", config.max_length},
                     {"peak_bytes", plan.peak_bytes()}};
        for (int i = 0; i < static_cast<int>(Category::kCount); ++i)
            json[std::string(category_name(static_cast<Category>(i))) + "_bytes"] =
                plan.memory.bytes(static_cast<Category>(i));
        print(json.dump(2) + "\n");
    } else {
        print(fmt::format("{}: training, {}, {} tokens at once, --max-length {}\n{}", name, plan.device.dtype,
                          plan.max_tokens, config.max_length, plan_text(plan)));
    }
    return Exit::kDone;
}

}  // namespace

void add_plan_command(Commands& commands) {
    auto flags = std::make_shared<TrainFlags>();
    auto memory = std::make_shared<std::string>();
    CLI::App& app = commands.add("plan", "memory that training takes, by category",
                                 "  orpo plan --model 1.7B --memory 24GB\n"
                                 "  orpo plan --model 135M --max-length 512 --lora-rank 64\n",
                                 [flags, memory](Call& call) { return plan(flags->config(call), *memory, call); });
    app.add_option("--memory", *memory, "plan for this much instead of what is free: 24GB")->type_name("SIZE");
    flags->add_to(app);
}

}  // namespace orpo
