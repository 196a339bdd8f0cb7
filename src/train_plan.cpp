#include "src/train_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.h"
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

// Tries layouts of one run.
class Planner {
  public:
    Planner(const TrainConfig& config, const ModelConfig& model, const PlanRoom& room) : model_(model) {
        plan.device = {config.device, config.dtype, static_cast<int>(config.threads)};
        plan.engine.lora = config.lora();
        // n floats each: masters, m, v, best and the PEFT form of them while saving, and the file's buffer.
        copies_ = 7 * 4 * LoraLayout(model, plan.engine.lora).slot_size();
        plan.rest_bytes = room.resident + copies_ + kLibraries;
        limit_ = config.memory_limit > 0 ? config.memory_limit : std::numeric_limits<int64_t>::max();
        room_ = plan.gpu() ? cuda::usable_bytes(room.available) : room.available - room.available / 20;
        if (plan.gpu()) plan.device_bytes = cuda::kContextBytes + cuda::kProductWorkspace;
    }

    bool fits(Keep keep, const PlanSizes& sizes) {
        plan.engine.sizes.tokens = plan.engine.sizes.heads = static_cast<int>(sizes.rows);
        plan.engine.sizes.max_positions = static_cast<int>(sizes.positions);
        plan.engine.sizes.keep = keep;
        plan.memory = plan_memory(plan.device, model_, plan.engine);
        if (plan.gpu()) return plan.memory.bytes() <= most_bytes();
        return plan.memory.bytes() + copies_ <= room_ && plan.peak_bytes() <= limit_;
    }
    // On a GPU: for the engine's arrays.
    int64_t most_bytes() const { return std::min(limit_, room_); }

    // The most rows, from `least` to `most`, that fit; 0: not even the least.
    int64_t most_rows(Keep keep, int64_t least, int64_t most, int64_t positions) {
        if (fits(keep, {most, positions})) return most;
        if (!fits(keep, {least, positions})) return 0;
        while (most - least > 1) {
            const int64_t middle = least + (most - least) / 2;
            (fits(keep, {middle, positions}) ? least : most) = middle;
        }
        return least;
    }

    TrainPlan plan;

  private:
    const ModelConfig& model_;
    int64_t copies_ = 0, limit_ = 0, room_ = 0;
};

constexpr Keep kModes[] = {Keep::kAll, Keep::kActivations, Keep::kNoGateUp, Keep::kInputs};  // fastest first

TrainPlan choose_cpu_plan(TrainConfig& c, Planner planner, int64_t longest,
                          const std::function<PlanSizes(int64_t)>& sizes_of, int64_t available) {
    std::vector<int64_t> budgets = {std::max(kUsualTokens, longest), std::max(kUsualTokens / 2, longest), longest};
    if (c.micro_batch_tokens > 0) budgets = {c.micro_batch_tokens};
    TrainPlan& plan = planner.plan;
    for (const int64_t budget : budgets)
        for (const Keep keep : {Keep::kActivations, Keep::kNoGateUp, Keep::kInputs}) {
            plan.max_tokens = static_cast<int>(budget);
            if (!planner.fits(keep, sizes_of(budget))) continue;
            c.micro_batch_tokens = budget;
            return plan;
        }
    const auto peak = human_bytes(static_cast<double>(plan.peak_bytes()));
    if (c.memory_limit > 0 && c.memory_limit < available)
        throw Error(Exit::kMemory,
                    fmt::format("training needs {}, even with {} tokens at once and everything "
                                "recomputed. Raise --memory-limit ({} now), lower --max-length ({} now), "
                                "or take a smaller model",
                                peak, plan.max_tokens, human_bytes(static_cast<double>(c.memory_limit)), c.max_length));
    throw Error(Exit::kMemory,
                fmt::format("training needs {} and {} are free, even with {} tokens at once and everything recomputed. "
                            "Lower --max-length ({} now), or take a smaller model",
                            peak, human_bytes(static_cast<double>(available)), plan.max_tokens, c.max_length));
}

TrainPlan choose_gpu_plan(TrainConfig& c, Planner planner, int64_t longest,
                          const std::function<PlanSizes(int64_t)>& sizes_of) {
    TrainPlan& plan = planner.plan;
    const bool chosen = c.micro_batch_tokens > 0;  // by the user, or by the run that is resumed
    const int64_t most = chosen ? c.micro_batch_tokens : std::max(kMostGpuTokens, longest);
    const PlanSizes full = sizes_of(most);
    const int64_t least = chosen ? full.rows : std::min(longest, full.rows);
    for (const Keep keep : kModes) {
        const int64_t rows = planner.most_rows(keep, least, full.rows, full.positions);
        if (rows > 0) planner.fits(keep, {rows, full.positions});
        plan.modes.push_back({keep, rows, rows > 0 ? plan.peak_bytes() : 0});
    }
    // Products of 2,048 rows should run near their full rate, so that beyond it one made twice costs more than rows
    // gain.
    for (const int64_t enough : {std::min<int64_t>(2048, full.rows), least})
        for (const TrainPlan::Mode& mode : plan.modes) {
            if (mode.most_tokens < std::max(enough, mode.keep == Keep::kAll ? full.rows : 0)) continue;
            // Whole multiples of 64, as the kernels' tiles are; all that was asked for where it fits.
            const bool whole = mode.most_tokens == full.rows;
            plan.max_tokens = static_cast<int>(whole ? most : std::max(mode.most_tokens / 64 * 64, least));
            ORPO_CHECK(planner.fits(mode.keep, whole ? full : sizes_of(plan.max_tokens)));
            c.micro_batch_tokens = plan.max_tokens;
            return plan;
        }
    planner.fits(Keep::kInputs, {least, full.positions});
    throw Error(
        Exit::kMemory,
        fmt::format("training needs {} of GPU memory for its arrays, and may take {}, even with {} tokens at once and "
                    "everything recomputed. {}ower --max-length ({} now){}, or take a smaller model or --device cpu",
                    human_bytes(static_cast<double>(plan.memory.bytes())),
                    human_bytes(static_cast<double>(std::max<int64_t>(0, planner.most_bytes()))), least,
                    c.memory_limit > 0 ? fmt::format("Raise --memory-limit ({} now), l",
                                                     human_bytes(static_cast<double>(c.memory_limit)))
                                       : "L",
                    c.max_length, chosen ? " and --micro-batch-tokens" : ""));
}

}  // namespace

TrainPlan plan_training(TrainSetup& setup) {
    TrainConfig& c = setup.config;
    c.device = resolve_device(c.device);
    c.dtype = resolve_dtype(c.dtype, c.device);
    const auto sizes = [&](int64_t budget) { return largest(setup, budget); };
    const int64_t available = c.device == "cpu" ? available_bytes() : device_bytes(c.device);
    return choose_plan(c, setup.model.config, longest_pair(setup), sizes, {resident_bytes(), available});
}

TrainPlan choose_plan(TrainConfig& c, const ModelConfig& model, int64_t longest,
                      const std::function<PlanSizes(int64_t)>& sizes_of, const PlanRoom& room) {
    if (c.micro_batch_tokens > 0 && c.micro_batch_tokens < longest)
        throw Error(Exit::kUsage, fmt::format("--micro-batch-tokens {}: the longest pair takes {}; raise it or lower "
                                              "--max-length",
                                              c.micro_batch_tokens, longest));
    Planner planner(c, model, room);
    if (planner.plan.gpu()) return choose_gpu_plan(c, std::move(planner), longest, sizes_of);
    return choose_cpu_plan(c, std::move(planner), longest, sizes_of, room.available);
}

const char* made_again(Keep keep) {
    constexpr const char* kAgain[] = {"nothing", "norms and SwiGLU", "norms, SwiGLU, gate|up", "everything"};
    return keep == Keep::kNothing ? "" : kAgain[static_cast<int>(keep)];
}

std::string plan_text(const TrainPlan& plan) {
    std::string text;
    const auto line = [&](const std::string& name, int64_t bytes) {
        text += fmt::format("  {:<38}{:>10}\n", name, human_bytes(static_cast<double>(bytes)));
    };
    for (int i = 0; i < static_cast<int>(Category::kCount); ++i) {
        const auto category = static_cast<Category>(i);
        if (plan.memory.bytes(category) == 0) continue;
        const bool activations = category == Category::kActivations;
        line(std::string(category_name(category)) +
                 (activations ? fmt::format(" ({} again)", made_again(plan.engine.sizes.keep)) : ""),
             plan.memory.bytes(category));
    }
    if (plan.gpu()) line("CUDA context, product workspace", plan.device_bytes);
    if (!plan.gpu()) line("program, data, saving", plan.rest_bytes);
    line(plan.gpu() ? "expected peak of GPU memory" : "expected peak", plan.peak_bytes());
    if (plan.gpu()) line("and of main memory, about", plan.rest_bytes);
    return text;
}

}  // namespace orpo
