#include "src/train_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "model/devices.h"
#include "src/host_memory.h"
#include "src/terminal.h"
#include "src/train_data.h"

namespace orpo {
namespace {

// Enough rows to keep the products of a small model near their best rate; more only costs memory.
constexpr int64_t kUsualTokens = 2048;
// What libraries take when they are first used: oneDNN's generated code, threads' stacks.
constexpr int64_t kLibraries = 3 << 20;
// Orders are followed that far to find the largest micro-batch; beyond, the bound is taken.
constexpr int64_t kStepsFollowed = 20000;

// What pack() will make of the run, by the same greedy rule.
class Packing {
  public:
    Packing(const Objective& objective, int64_t budget) : objective_(objective), budget_(budget) {}
    void begin() { taken_ = 0; }
    void add(const PreferencePair& pair) {
        const int64_t rows = packed_rows(pair, objective_);
        if (taken_ + rows > budget_) taken_ = 0;
        taken_ += rows;
        sizes_.rows = std::max(sizes_.rows, taken_);
        const auto answer = static_cast<int64_t>(std::max(pair.chosen.size(), pair.rejected.size()));
        sizes_.positions = std::max(sizes_.positions, static_cast<int64_t>(pair.prompt.size()) + answer);
    }
    const PlanSizes& sizes() const { return sizes_; }

  private:
    const Objective& objective_;
    int64_t budget_;
    int64_t taken_ = 0;
    PlanSizes sizes_;
};

PlanSizes largest(const TrainSetup& setup, int64_t budget) {
    const TrainConfig& c = setup.config;
    Packing packing(setup.objective, budget);
    BatchOrder order(setup.train.pairs, c.batch_size, c.seed, c.shuffle);
    int64_t epoch = 0, position = 0;
    for (int64_t step = 0; step < std::min(setup.steps, kStepsFollowed); ++step) {
        packing.begin();
        for (const PreferencePair* pair : order.batch(epoch, position)) packing.add(*pair);
        order.advance(epoch, position);
    }
    for (size_t i = 0; i < setup.eval.pairs.size(); ++i) {
        if (i % 64 == 0) packing.begin();
        packing.add(setup.eval.pairs[i]);
    }
    PlanSizes sizes = packing.sizes();
    if (setup.steps > kStepsFollowed) sizes.rows = budget;
    return sizes;
}

int64_t longest_pair(const TrainSetup& setup) {
    int64_t longest = 0;
    for (const auto* pairs : {&setup.train.pairs, &setup.eval.pairs})
        for (const PreferencePair& pair : *pairs) longest = std::max(longest, packed_rows(pair, setup.objective));
    return longest;
}

}  // namespace

TrainPlan plan_training(TrainSetup& setup) {
    const auto sizes = [&](int64_t budget) { return largest(setup, budget); };
    return choose_plan(setup.config, setup.model.config, longest_pair(setup), sizes, resident_bytes(),
                       available_bytes());
}

TrainPlan choose_plan(TrainConfig& c, const ModelConfig& model, int64_t longest,
                      const std::function<PlanSizes(int64_t)>& sizes_of, int64_t resident, int64_t available) {
    TrainPlan plan;
    c.device = resolve_device(c.device);
    c.dtype = resolve_dtype(c.dtype, c.device);
    plan.device = {c.device, c.dtype, static_cast<int>(c.threads)};
    plan.engine.lora = c.lora();
    plan.engine.planning = true;
    const bool chosen = c.micro_batch_tokens > 0;  // by the user, or by the run that is resumed
    if (chosen && c.micro_batch_tokens < longest)
        throw Error(Exit::kUsage, fmt::format("--micro-batch-tokens {}: the longest pair takes {}; raise it or lower "
                                              "--max-length",
                                              c.micro_batch_tokens, longest));
    std::vector<int64_t> budgets = {std::max(kUsualTokens, longest), std::max(kUsualTokens / 2, longest), longest};
    if (chosen) budgets = {c.micro_batch_tokens};

    // n floats each: masters, m, v, best and the PEFT form of them while saving, and the file's buffer.
    const int64_t copies = 7 * 4 * LoraLayout(model, plan.engine.lora).slot_size();
    for (const int64_t budget : budgets)
        for (const Keep keep : {Keep::kActivations, Keep::kNoGateUp, Keep::kInputs}) {
            const PlanSizes sizes = sizes_of(budget);
            plan.engine.sizes.tokens = static_cast<int>(sizes.rows);
            plan.engine.sizes.heads = static_cast<int>(sizes.rows);
            plan.engine.sizes.max_positions = static_cast<int>(sizes.positions);
            plan.engine.sizes.keep = keep;
            plan.max_tokens = static_cast<int>(budget);
            const auto engine = make_engine(plan.device, model, nullptr, plan.engine);
            plan.memory = engine->memory();
            plan.rest_bytes = resident + copies + kLibraries;
            if (plan.memory.bytes() + copies > available - available / 20) continue;
            c.micro_batch_tokens = budget;
            plan.engine.planning = false;
            return plan;
        }
    throw Error(Exit::kMemory,
                fmt::format("training needs {} and {} are free, even with {} tokens at once and everything recomputed. "
                            "Lower --max-length ({} now), or take a smaller model",
                            human_bytes(static_cast<double>(plan.peak_bytes())),
                            human_bytes(static_cast<double>(available)), plan.max_tokens, c.max_length));
}

std::string plan_text(const TrainPlan& plan) {
    constexpr const char* kKept[] = {"kept", "kept but gate|up", "inputs of layers kept", "none kept"};
    std::string text;
    for (int i = 0; i < static_cast<int>(Category::kCount); ++i) {
        const auto category = static_cast<Category>(i);
        if (plan.memory.bytes(category) > 0)
            text += fmt::format("  {:<28}{:>10}\n",
                                category == Category::kActivations
                                    ? fmt::format("activations ({})", kKept[static_cast<int>(plan.engine.sizes.keep)])
                                    : std::string(category_name(category)),
                                human_bytes(static_cast<double>(plan.memory.bytes(category))));
    }
    text += fmt::format("  {:<28}{:>10}\n", "program, data, saving", human_bytes(static_cast<double>(plan.rest_bytes)));
    text += fmt::format("  {:<28}{:>10}\n", "expected peak", human_bytes(static_cast<double>(plan.peak_bytes())));
    return text;
}

}  // namespace orpo
