// What a training run writes and says while it runs: metrics.jsonl, TensorBoard, progress; and the summary at the end.
#pragma once

#include <chrono>
#include <string>

#include "src/command.h"
#include "src/metrics_log.h"
#include "src/progress.h"
#include "src/tensorboard.h"
#include "src/trainer.h"

namespace orpo {

class TrainOutput : public TrainObserver {
  public:
    // steps: of the whole run. gemm_rate: of this machine (src/useful_flops.h). device_bytes: that
    // the run takes of a GPU. The two logs are open in the run's
    // directory.
    TrainOutput(Call& call, const std::string& run, const std::string& metrics_path, double beta, int64_t steps,
                double gemm_rate, int64_t device_bytes);

    void on_step(const StepReport& report) override;
    void on_evaluation(const Evaluation& evaluation, bool best) override;
    void before_save() override { metrics_.sync(); }
    void on_evaluation_progress(int64_t done, int64_t pairs) override;

    // A line of any other type.
    void write(const Json& line) { metrics_.write(line); }
    // A step that met a number that is not finite: logged, never shown as anything else.
    void non_finite(const StepReport& report);

  private:
    Json step_line(const StepReport& report) const;

    Call& call_;
    MetricsLog metrics_;
    TensorboardLog tensorboard_;
    double beta_;
    int64_t steps_;
    double gemm_rate_;  // FLOP/s, 0: unknown
    int64_t device_bytes_;  // of a GPU, all of which is taken before step 0; 0 on the CPU
    Progress progress_;
    EtaEstimate eta_;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// "nll_chosen  2.058 -> 1.790  -0.268 +- 0.021" for each metric; and whether the adapter is better than the base.
std::string changes_text(const std::vector<Change>& changes);

}  // namespace orpo
