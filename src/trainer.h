// The training loop: optimizer steps, evaluations, checkpoints, and when to stop. All of the state that decides the
// next step is (step, epoch, position) and the adapter's three arenas, so a run resumes bit-exactly from any step.
#pragma once

#include <chrono>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/pack.h"
#include "model/engine.h"
#include "model/orpo_loss.h"
#include "model/peft_adapter.h"
#include "src/checkpoint.h"
#include "src/config.h"
#include "src/paired.h"
#include "src/schedule.h"
#include "src/train_data.h"

namespace orpo {

// One optimizer step, as it is logged.
struct StepReport {
    int64_t step = 0;  // counted from 1
    double epoch = 0;  // passes over the data so far
    double lr = 0, grad_norm = 0, seconds = 0;
    double flops = 0;  // useful ones
    Metrics metrics;
};

struct Evaluation {
    int64_t step = 0;
    double seconds = 0;
    Metrics metrics;
    std::vector<PairScore> scores;
};

// Whoever watches the run. Called in order, from the training thread.
class TrainObserver {
  public:
    virtual ~TrainObserver() = default;
    virtual void on_step(const StepReport& report) = 0;
    virtual void on_evaluation(const Evaluation& evaluation, bool best) = 0;
    // What was said so far must be on disk before a checkpoint that follows it is.
    virtual void before_save() {}
    virtual void on_evaluation_progress(int64_t done, int64_t pairs) {}
};

struct TrainerOptions {
    TrainConfig config;  // resolved
    Objective objective;
    int64_t steps = 0;   // of the whole run
    int max_tokens = 0;  // of a micro-batch: at least the longest pair's
    std::string run;     // directory for checkpoints
    Json identity;       // goes into every checkpoint
    PeftAdapter labels;  // base_name, base_fingerprint and base_quant of every adapter that is written
};

class Trainer {
  public:
    // A step that met a NaN or an infinity; nothing of it was applied.
    struct NonFinite {
        StepReport report;
        std::vector<int64_t> lines;  // of the pairs that made it
        bool gradient = false;       // the loss was finite
    };

    Trainer(TrainerOptions options, Engine& engine, std::span<const PreferencePair> train,
            std::span<const PreferencePair> eval, TrainObserver& observer);

    void start(std::span<const float> adapter);
    void restore(const Checkpoint& checkpoint);

    // Seconds that the steps and evaluations ahead will take, from one pair. Leaves no trace.
    double estimate_seconds();

    // Until the last step or something ends it: "done", "early stop", "max time", "SIGINT", "SIGTERM".
    // NonFinite and Error fly through; checkpoints on disk stay whole.
    std::string run();

    int64_t step() const { return step_; }
    bool finished() const { return step_ >= options_.steps; }
    int64_t best_step() const { return best_step_; }    // -1: no evaluation after step 0 yet
    int64_t last_saved() const { return last_saved_; }  // -1: none
    const std::vector<PairScore>& baseline() const { return baseline_; }
    // Scores of the adapter that deliverable() returns; empty when it was not evaluated.
    const std::vector<PairScore>& best_scores() const { return best_scores_; }
    // The best evaluation's adapter, else the last step's.
    PeftAdapter deliverable();
    const LoraLayout& layout() const { return engine_.lora(); }

  private:
    StepReport train_step();
    // false: a signal came in between and nothing was recorded.
    bool evaluate();
    bool should_evaluate() const;
    void save();
    std::string reason_to_stop() const;
    std::vector<int64_t> lines_with_bad_gradient(std::span<const PreferencePair* const> batch,
                                                 PackOptions pack_options);
    PackOptions pack_options(const BatchTotals& totals) const;
    std::vector<float> read(Arena arena);
    PeftAdapter to_adapter(std::span<const float> masters) const;
    double seconds_here() const;

    TrainerOptions options_;
    Engine& engine_;
    std::span<const PreferencePair> eval_;
    TrainObserver& observer_;
    BatchOrder order_;
    Schedule schedule_;

    int64_t step_ = 0, epoch_ = 0, position_ = 0;
    bool evaluation_due_ = false;  // one was cut off by a signal
    int64_t since_best_ = 0;       // evaluations without a better one
    int64_t best_step_ = -1, last_saved_ = -1;
    double best_value_ = std::numeric_limits<double>::infinity();
    Json best_metrics_;
    std::vector<PairScore> baseline_, best_scores_;
    std::vector<float> best_;  // masters at best_step_, when that is not this step
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace orpo
