#include "src/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "model/adapter.h"
#include "src/evaluate.h"
#include "src/metrics_json.h"
#include "src/signals.h"
#include "src/useful_flops.h"

namespace orpo {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;  // torch.optim.AdamW

double best_value(const MetricExpression& expression, const Json& metrics) {
    return expression.value([&](const std::string& name) { return metrics.at(name).get<double>(); });
}

}  // namespace

Trainer::Trainer(TrainerOptions options, Engine& engine, std::span<const PreferencePair> train,
                 std::span<const PreferencePair> eval, TrainObserver& observer)
    : options_(std::move(options)),
      engine_(engine),
      eval_(eval),
      observer_(observer),
      order_(train, options_.config.batch_size, options_.config.seed, options_.config.shuffle),
      schedule_{*schedule_kind(options_.config.schedule), options_.steps,
                options_.config.warmup_steps(options_.steps)} {}

void Trainer::start(std::span<const float> adapter) {
    engine_.write(Arena::kParameters, 0, adapter);
    const std::vector<float> zero(adapter.size(), 0.0f);
    engine_.write(Arena::kMoment1, 0, zero);
    engine_.write(Arena::kMoment2, 0, zero);
}

void Trainer::restore(const Checkpoint& checkpoint) {
    ORPO_CHECK(static_cast<int64_t>(checkpoint.masters.size()) == layout().slot_size());
    engine_.write(Arena::kParameters, 0, checkpoint.masters);
    engine_.write(Arena::kMoment1, 0, checkpoint.m);
    engine_.write(Arena::kMoment2, 0, checkpoint.v);
    step_ = checkpoint.step, epoch_ = checkpoint.epoch, position_ = checkpoint.position;
    last_saved_ = step_;
    const Json& state = checkpoint.trainer;
    evaluation_due_ = state.at("evaluation_due").get<bool>();
    since_best_ = state.at("since_best").get<int64_t>();
    best_step_ = state.at("best_step").get<int64_t>();
    baseline_ = scores_from_json(state.at("baseline"));
    if (best_step_ < 0) return;
    best_scores_ = scores_from_json(state.at("best_scores"));
    best_metrics_ = state.at("best_metrics");
    best_value_ = best_value(options_.config.best_metric, best_metrics_);
    best_ = best_step_ == step_ ? checkpoint.masters : checkpoint.best;
    ORPO_CHECK(best_.size() == checkpoint.masters.size());
}

std::string Trainer::run() {
    const StopSignals signals;
    begin_ = Clock::now();
    if ((step_ == 0 && baseline_.empty() && !eval_.empty()) || evaluation_due_) evaluation_due_ = !evaluate();
    while (!finished() && reason_to_stop().empty()) {
        observer_.on_step(train_step());
        if (should_evaluate()) evaluation_due_ = !evaluate();
        if (finished() || step_ % options_.config.save_every == 0) save();
    }
    const std::string reason = finished() && !evaluation_due_ ? "done" : reason_to_stop();
    if (last_saved_ != step_) save();
    // A run that stops between evaluations is saved first, as it would have been had it gone on.
    const bool stopped = StopSignals::received() != 0;
    if (!stopped && !finished() && !eval_.empty() && step_ % options_.config.eval_every != 0 && step_ > 0) evaluate();
    return reason;
}

bool Trainer::should_evaluate() const {
    return !eval_.empty() && (finished() || step_ % options_.config.eval_every == 0);
}

std::string Trainer::reason_to_stop() const {
    const int signal = StopSignals::received();
    if (signal != 0) return signal == 2 ? "SIGINT" : "SIGTERM";
    if (options_.config.early_stop > 0 && since_best_ >= options_.config.early_stop) return "early stop";
    if (options_.config.max_time > 0 && seconds_here() >= options_.config.max_time) return "max time";
    return "";
}

double Trainer::seconds_here() const { return seconds_since(begin_); }

PackOptions Trainer::pack_options(const BatchTotals& totals) const {
    PackOptions pack;
    pack.objective = options_.objective;
    pack.totals = totals;
    pack.max_tokens = options_.max_tokens;
    pack.betas = {options_.config.beta};
    pack.dropout_key = stream_key(options_.config.seed, Stream::kDropout);
    pack.step = static_cast<uint32_t>(step_);
    return pack;
}

// Forward and backward over the batch, clip, AdamW.
StepReport Trainer::train_step() {
    const auto begin = Clock::now();
    const auto batch = order_.batch(epoch_, position_);
    const PackOptions options = pack_options(batch_totals(batch, options_.objective));
    engine_.zero_gradients();
    StepReport report;
    std::vector<PairRecord> records;
    std::vector<double> logp;
    for (const MicroBatch& mb : pack(batch, options)) {
        logp.resize(mb.heads.size());
        engine_.train(mb, logp);
        report.flops += useful_flops(engine_.config(), layout(), mb);
        for (PairRecord& record : pair_records(mb, logp)) records.push_back(std::move(record));
    }

    const TrainConfig& config = options_.config;
    report.step = step_ + 1;
    report.lr = config.lr * schedule_.factor(step_);
    report.metrics = summarise(records, config.beta);
    report.grad_norm = engine_.gradient_norms()[0];
    report.epoch = static_cast<double>(epoch_) + static_cast<double>(position_ + static_cast<int64_t>(batch.size())) /
                                                     static_cast<double>(order_.pairs());
    if (!std::isfinite(report.metrics.loss) || !std::isfinite(report.grad_norm)) {
        NonFinite bad{report, non_finite_lines(records), std::isfinite(report.metrics.loss)};
        if (bad.lines.empty()) bad.lines = lines_with_bad_gradient(batch, options);
        throw bad;
    }

    // torch.nn.utils.clip_grad_norm_
    const double t = static_cast<double>(step_ + 1);
    AdamwSlot slot{report.lr, kBeta1, kBeta2, kEps, config.weight_decay};
    slot.bias1 = 1 - std::pow(kBeta1, t);
    slot.bias2 = 1 - std::pow(kBeta2, t);
    slot.grad_scale = config.clip > 0 ? std::min(1.0, config.clip / (report.grad_norm + 1e-6)) : 1;
    const bool first_move = report.lr > 0 && (step_ == 0 || schedule_.factor(step_ - 1) == 0);
    const std::vector<float> before = first_move ? read(Arena::kParameters) : std::vector<float>{};
    engine_.adamw({&slot, 1});
    if (first_move && read(Arena::kParameters) == before)
        throw Error(Exit::kDiverged, fmt::format("step {}: the update with learning rate {} changed nothing in the "
                                                 "adapter (gradient norm {}). Raise --lr",
                                                 report.step, report.lr, report.grad_norm));
    ++step_;
    order_.advance(epoch_, position_);
    report.seconds = seconds_since(begin);
    return report;
}

// Each pair alone, to name those whose gradient is not finite.
std::vector<int64_t> Trainer::lines_with_bad_gradient(std::span<const PreferencePair* const> batch,
                                                      PackOptions pack_options) {
    std::vector<int64_t> lines;
    std::vector<double> logp;
    for (size_t i = 0; i < batch.size(); ++i) {
        pack_options.first_pair = static_cast<int32_t>(i);
        engine_.zero_gradients();
        for (const MicroBatch& mb : pack(batch.subspan(i, 1), pack_options)) {
            logp.resize(mb.heads.size());
            engine_.train(mb, logp);
        }
        if (!std::isfinite(engine_.gradient_norms()[0])) lines.push_back(batch[i]->line);
    }
    return lines;
}

bool Trainer::evaluate() {
    const auto begin = Clock::now();
    const auto pairs = static_cast<int64_t>(eval_.size());
    const EvaluateOptions options{options_.objective, options_.config.beta, options_.max_tokens};
    const auto records = evaluate_pairs(engine_, eval_, options, [&](int64_t done) {
        observer_.on_evaluation_progress(done, pairs);
        return StopSignals::received() == 0;
    });
    if (records.empty()) return false;
    Evaluation evaluation{step_, 0, summarise(records, options_.config.beta), pair_scores(records)};
    evaluation.seconds = seconds_since(begin);
    if (!std::isfinite(evaluation.metrics.loss)) {
        StepReport report;
        report.step = step_;
        report.metrics = evaluation.metrics;
        throw NonFinite{report, non_finite_lines(records), false};
    }
    bool best = false;
    if (step_ == 0) {
        baseline_ = evaluation.scores;
    } else {
        const Json metrics = eval_fields(evaluation.metrics);
        const double value = best_value(options_.config.best_metric, metrics);
        best = value < best_value_;
        since_best_ = best ? 0 : since_best_ + 1;
        if (best) {
            best_value_ = value, best_step_ = step_, best_metrics_ = metrics;
            best_scores_ = evaluation.scores;
            best_ = read(Arena::kParameters);
        }
    }
    observer_.on_evaluation(evaluation, best);
    return true;
}

void Trainer::save() {
    observer_.before_save();
    const Json state = {{"evaluation_due", evaluation_due_}, {"since_best", since_best_},
                        {"best_step", best_step_},           {"baseline", scores_json(baseline_)},
                        {"best_metrics", best_metrics_},     {"best_scores", scores_json(best_scores_)}};
    const std::vector<float> masters = read(Arena::kParameters), m = read(Arena::kMoment1), v = read(Arena::kMoment2);
    CheckpointView view{step_, epoch_, position_, &state, &options_.identity, masters, m, v, {}};
    if (best_step_ >= 0 && best_step_ != step_) view.best = best_;
    save_checkpoint(options_.run, view, to_adapter(masters));
    last_saved_ = step_;
    prune_checkpoints(options_.run, options_.config.keep);
}

double Trainer::estimate_seconds() {
    const auto batch = order_.batch(epoch_, position_);
    // One pair is enough for a rate, and does not keep anybody waiting.
    const auto bins = pack(std::span(batch).first(1), pack_options(batch_totals(batch, options_.objective)));
    std::vector<double> logp(bins[0].heads.size());
    double seconds = 0;
    for (int i = 0; i < 2; ++i) {  // the first pass touches memory for the first time
        const auto begin = Clock::now();
        engine_.train(bins[0], logp);
        seconds = seconds_since(begin);
    }
    engine_.zero_gradients();
    const double per_token = seconds / static_cast<double>(bins[0].ids.size());

    double trained = 0, evaluated = 0;
    int64_t epoch = epoch_, position = position_;
    // Exact for the epoch at hand, in proportion beyond.
    const int64_t counted = std::min<int64_t>(options_.steps - step_, 2000);
    for (int64_t i = 0; i < counted; ++i) {
        for (const PreferencePair* pair : order_.batch(epoch, position)) trained += static_cast<double>(pair->tokens());
        order_.advance(epoch, position);
    }
    if (counted > 0) trained *= static_cast<double>(options_.steps - step_) / static_cast<double>(counted);
    for (const PreferencePair& pair : eval_) evaluated += static_cast<double>(pair.tokens());
    int64_t evaluations = step_ == 0 ? 1 : 0;
    if (!finished())
        evaluations += (options_.steps - 1) / options_.config.eval_every - step_ / options_.config.eval_every + 1;
    return per_token * (trained + evaluated * static_cast<double>(evaluations) / 3);
}

std::vector<float> Trainer::read(Arena arena) {
    std::vector<float> values(layout().slot_size());
    engine_.read(arena, 0, values);
    return values;
}

PeftAdapter Trainer::to_adapter(std::span<const float> masters) const {
    PeftAdapter adapter = to_peft(layout(), options_.config.lora(), masters);
    adapter.base_name = options_.labels.base_name;
    adapter.base_fingerprint = options_.labels.base_fingerprint;
    adapter.base_quant = options_.labels.base_quant;
    return adapter;
}

PeftAdapter Trainer::deliverable() { return to_adapter(best_step_ >= 0 ? best_ : read(Arena::kParameters)); }

}  // namespace orpo
