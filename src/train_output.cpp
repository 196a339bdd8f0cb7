#include "src/train_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/host_memory.h"
#include "src/metrics_json.h"

namespace orpo {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void scalars_of(const Json& object, std::vector<Scalar>& scalars) {
    for (const auto& [key, value] : object.items())
        if (value.is_number() && key != "step") scalars.emplace_back(key, value.get<double>());
}

}  // namespace

TrainOutput::TrainOutput(Call& call, const std::string& run, const std::string& metrics_path, double beta,
                         int64_t steps, double gemm_rate, int64_t device_bytes)
    : call_(call),
      metrics_(metrics_path),
      tensorboard_(run),
      beta_(beta),
      steps_(steps),
      gemm_rate_(gemm_rate),
      device_bytes_(device_bytes),
      progress_(call.terminal, call.common.quiet) {}

Json TrainOutput::step_line(const StepReport& r) const {
    Json line = {{"type", "step"}, {"step", r.step}, {"epoch", r.epoch}, {"lr", r.lr}};
    for (const auto& [name, value] : trl_metrics(r.metrics)) line[name] = value;
    line["grad_norm"] = r.grad_norm;
    line["pref_share"] = r.metrics.pref_share;
    line["pairs"] = r.metrics.pairs;
    line["tokens"] = r.metrics.tokens;
    line["seconds"] = r.seconds;
    line["tokens_per_second"] = r.seconds > 0 ? static_cast<double>(r.metrics.tokens) / r.seconds : 0;
    line["gemm_share"] = nullptr;
    if (gemm_rate_ > 0 && r.seconds > 0) line["gemm_share"] = r.flops / r.seconds / gemm_rate_;
    line["peak_bytes"] = device_bytes_ > 0 ? device_bytes_ : peak_bytes();
    return line;
}

void TrainOutput::on_step(const StepReport& r) {
    // A step that beats the measured rate shows that something disturbed the measuring.
    if (gemm_rate_ > 0) gemm_rate_ = std::max(gemm_rate_, r.flops / r.seconds);
    const Json line = step_line(r);
    metrics_.write(line);
    std::vector<Scalar> scalars;
    scalars_of(line, scalars);
    tensorboard_.write(r.step, scalars);

    eta_.add(r.seconds);
    const Metrics& m = r.metrics;
    StepView view;
    view.step = r.step, view.steps = steps_, view.epoch = r.epoch;
    view.loss = m.loss, view.nll = m.nll_loss.value, view.odds = beta_ * m.or_loss.value;
    view.accuracy = m.pref_acc.value, view.margin = m.margin.value;
    view.lr = r.lr, view.grad_norm = r.grad_norm, view.seconds = r.seconds;
    view.tokens_per_second = static_cast<double>(m.tokens) / r.seconds;
    if (gemm_rate_ > 0) view.gemm_share = r.flops / r.seconds / gemm_rate_;
    view.peak_bytes = device_bytes_ > 0 ? device_bytes_ : peak_bytes();
    view.eta = eta_.remaining(steps_ - r.step);
    progress_.step(view);
}

void TrainOutput::on_evaluation_progress(int64_t done, int64_t pairs) {
    progress_.count("evaluating", done, pairs, "pairs");
}

void TrainOutput::on_evaluation(const Evaluation& e, bool best) {
    Json line = {{"type", "eval"}, {"step", e.step}};
    line.update(eval_fields(e.metrics));
    line["seconds"] = e.seconds;
    metrics_.write(line);
    std::vector<Scalar> scalars;
    for (const auto& [key, value] : line.items())
        if (value.is_number() && key != "step" && key != "seconds" && key != "pairs")
            scalars.emplace_back(key.starts_with("eval_") ? "eval/" + key.substr(5) : "eval/" + key,
                                 value.get<double>());
    tensorboard_.write(e.step, scalars);
    progress_.finish();
    const Metrics& m = e.metrics;
    call_.log->info(
        "eval at step {}: nll_chosen {:.4f}  pref_acc {:.3f}  log_odds {:+.4f}  or_loss {:.4f}  margin {:+.4f}  "
        "({} pairs, {}){}",
        e.step, m.nll_chosen.value, m.pref_acc.value, m.log_odds.value, m.or_loss.value, m.margin.value, m.pairs,
        human_seconds(e.seconds), best ? "  best so far" : "");
}

void TrainOutput::non_finite(const StepReport& r) {
    metrics_.write(step_line(r));
    metrics_.write({{"type", "end"},
                    {"step", r.step - 1},
                    {"reason", "non-finite"},
                    {"seconds", seconds_since(begin_)},
                    {"best_step", nullptr}});
    metrics_.sync();
}

std::string changes_text(const std::vector<Change>& changes) {
    std::string text = fmt::format("  {:<12}{:>10}{:>10}{:>12}   {}\n", "held out", "before", "after", "change",
                                   "standard error of the change");
    for (const Change& c : changes) {
        const double sigma = c.difference / c.se;
        std::string verdict;
        if (std::abs(sigma) >= 2) verdict = (c.difference < 0) == c.lower_is_better ? "better" : "worse";
        text += fmt::format("  {:<12}{:>10.4f}{:>10.4f}{:>+12.4f}   {:.4f}  {}\n", c.name, c.before, c.after,
                            c.difference, c.se, verdict.empty() ? "within noise" : verdict);
    }
    return text;
}

}  // namespace orpo
