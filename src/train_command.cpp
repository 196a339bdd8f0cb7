// orpo train: from a command line to a run directory.
#include <fmt/format.h>
#include <malloc.h>
#include <omp.h>

#include <algorithm>
#include <future>

#include "base/error.h"
#include "base/io.h"
#include "model/adapter.h"
#include "src/checkpoint.h"
#include "src/command.h"
#include "src/config.h"
#include "src/host_memory.h"
#include "src/load.h"
#include "src/run_directory.h"
#include "src/settings.h"
#include "src/train_output.h"
#include "src/train_plan.h"
#include "src/train_setup.h"
#include "src/trainer.h"
#include "src/useful_flops.h"

namespace orpo {
namespace {

struct Request {
    TrainConfig config;
    bool resuming = false;                  // there is a run to go on with
    std::vector<ConfigDifference> changed;  // allowed ones
};

// A field that says "auto" leaves what the run resolved it to.
void keep_resolved(const TrainConfig& before, TrainConfig& now) {
    if (now.lr == 0) now.lr = before.lr;
    if (now.epochs == 0) now.epochs = before.epochs;
    if (now.batch_size == 0) now.batch_size = before.batch_size;
    if (now.micro_batch_tokens == 0) now.micro_batch_tokens = before.micro_batch_tokens;
    if (now.eval_every == 0) now.eval_every = before.eval_every;
    if (now.save_every == 0) now.save_every = before.save_every;
    if (now.dtype == "auto") now.dtype = before.dtype;
}

[[noreturn]] void refuse_to_resume(const std::string& run, const std::vector<std::string>& differences) {
    std::string message = run + ": cannot go on, for this is not the run that was started:";
    for (const std::string& line : differences) message += "\n  " + line;
    throw Error(Exit::kCannotResume, message +
                                         "\nGive the same values (or leave them out), or start another run with "
                                         "another --out");
}

Request read_request(const TrainFlags& flags, Call& call) {
    Request request;
    request.config = flags.config(call);
    const std::string out = request.config.out;
    if (request.config.resume) {
        if (out.empty()) throw Error(Exit::kUsage, "--resume needs --out: the run directory to go on with");
        const std::string file = io::join(out, "config.json");
        request.resuming = io::exists(file);
        if (request.resuming) {
            const TrainConfig before = train_config_from_json(read_json_config(file), file);
            TrainConfig now = before;
            flags.apply(call, now);
            keep_resolved(before, now);
            make_paths_absolute(now);
            now.out = out;
            const auto refused = mathematical_differences(before, now);
            if (!refused.empty()) refuse_to_resume(out, refused);
            for (const ConfigDifference& d : config_differences(before, now))
                if (!d.mathematics) request.changed.push_back(d);
            request.config = now;
        }
    }
    if (request.config.data.empty())
        throw Error(Exit::kUsage, request.config.resume
                                      ? out + ": there is no run to go on with; to start one there, name DATA"
                                      : "DATA is missing: orpo train data.jsonl");
    return request;
}

void say_setup(const TrainSetup& setup, const TrainPlan& plan, Call& call) {
    const TrainConfig& c = setup.config;
    call.log->info("model: {} ({})", setup.model.display_name, setup.model.path);
    call.log->info("data: {} pairs, {} tokens, from {}", with_commas(static_cast<int64_t>(setup.train.pairs.size())),
                   with_commas(setup.tokens()), setup.train.name);
    if (setup.eval.pairs.empty())
        call.log->info("evaluation: none; the last step's adapter is kept");
    else
        call.log->info("evaluation: {} pairs {}", setup.eval.pairs.size(),
                       c.eval == "auto" ? "held out of it, by prompt" : "from " + setup.eval.name);
    for (const Dataset* data : {&setup.train, &setup.eval}) {
        const std::string report = report_text(data->report);
        if (!report.empty()) call.log->info("{}:\n{}", data->name, report);
        if (c.eval == "auto") break;
    }
    for (const std::string& line : setup.choices) call.log->info(line);
    const int64_t warmup = c.warmup_steps(setup.steps);
    call.log->info("beta {:g}, {} schedule, warm-up {} {}, rank {}, alpha {:g}, seed {}, semantics {}, nll-scope {}",
                   c.beta, c.schedule, warmup, warmup == 1 ? "step" : "steps", c.lora_rank, c.lora_alpha, c.seed,
                   c.semantics, c.nll_scope);
    call.log->info("{} steps of {} pairs, at most {} tokens at once; memory:\n{}", setup.steps, c.batch_size,
                   plan.max_tokens, plan_text(plan));
}

Json header(const TrainSetup& setup, const TrainPlan& plan, const Json& identity, const Engine& engine, Call& call) {
    const Model& model = setup.model;
    Json json = {
        {"type", "header"},
        {"version", version()},
        {"command", call.command_line},
        {"config", train_config_json(setup.config)},
        {"model",
         {{"name", model.display_name},
          {"path", model.path},
          {"hub_id", model.hub_id},
          {"quantisation", model.weights->quantisation()},
          {"sha256", identity.at("model")},
          {"tokenizer_sha256", identity.at("tokenizer")}}},
        {"data",
         {{"path", setup.train.name},
          {"sha256", setup.train.fingerprint},
          {"pairs", setup.train.pairs.size()},
          {"tokens", setup.tokens()}}},
        {"eval", {{"path", setup.eval.name}, {"sha256", setup.eval.fingerprint}, {"pairs", setup.eval.pairs.size()}}},
        {"cpu", engine.description()},
        {"device", plan.device.device},
        {"dtype", plan.device.dtype},
        {"threads", setup.config.threads},
        {"steps", setup.steps},
        {"parameters", engine.lora().slot_size()},
        {"planned_bytes", plan.peak_bytes()}};
    return json;
}

// The adapter, the numbers and the words at the end.
void finish(Trainer& trainer, TrainOutput& output, const RunDirectory& run, const TrainSetup& setup,
            const std::string& reason, double seconds, int64_t gpu_bytes, Call& call) {
    const bool stopped = reason == "SIGINT" || reason == "SIGTERM";
    write_peft_adapter(run.adapter(), trainer.deliverable());
    output.write({{"type", "end"},
                  {"step", trainer.step()},
                  {"reason", reason},
                  {"seconds", seconds},
                  {"best_step", trainer.best_step() < 0 ? Json(nullptr) : Json(trainer.best_step())}});
    output.before_save();
    call.terminal.status("");
    const int64_t peak = gpu_bytes > 0 ? gpu_bytes : peak_bytes();
    call.log->info("{} after {} steps, {}, peak memory {}{}", stopped ? "stopped by " + reason : reason, trainer.step(),
                   human_seconds(seconds), human_bytes(static_cast<double>(peak)), gpu_bytes > 0 ? " of the GPU" : "");
    if (!trainer.baseline().empty() && !trainer.best_scores().empty()) {
        const auto delta = changes(trainer.baseline(), trainer.best_scores());
        call.log->info("the adapter of step {} on {} held-out pairs:\n{}", trainer.best_step(),
                       trainer.baseline().size(), changes_text(delta));
        const auto value = [&](bool after) {
            return setup.config.best_metric.value([&](const std::string& name) {
                for (const Change& c : delta)
                    if (c.name == name) return after ? c.after : c.before;
                return 0.0;
            });
        };
        if (value(true) >= value(false))
            call.log->warn(
                "THE ADAPTER IS NO BETTER THAN WHAT IT STARTED FROM by {} ({:.4f} before, {:.4f} after). Try a "
                "lower --lr, or more data",
                setup.config.best_metric.text(), value(false), value(true));
    }
    call.log->info("adapter: {}", run.adapter());
    if (stopped) {
        call.log->info("go on with: orpo train --resume --out {}", run.path());
        return;
    }
    call.log->info(
        "next:\n  orpo generate --model {0} --adapter {1} --prompt \"...\"\n  orpo eval {2} --model {0} "
        "--adapter {1}",
        setup.model.path, run.adapter(),
        setup.config.eval == "auto" || setup.config.eval == "none" ? setup.config.data : setup.config.eval);
}

RunDirectory open_run(const TrainConfig& config, const std::string& model_name) {
    if (config.out.empty()) return RunDirectory::create_default("runs", today(), config.data, model_name);
    if (config.resume && io::is_directory(config.out)) return RunDirectory::open(config.out);
    return RunDirectory::create(config.out);
}

Exit train(Request request, bool dry_run, Call& call) {
    // Large blocks go back to the system when they are freed; by default glibc learns to keep them, and what loading
    // and measuring used for a moment would stay on top of the plan.
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
    // What is refused is refused before the model is read.
    if (!dry_run && !request.config.resume && !request.config.out.empty() && io::exists(request.config.out))
        RunDirectory::create(request.config.out);
    TrainSetup setup = load_train_setup(request.config, call);
    auto fingerprint = std::async(std::launch::async, [&] { return setup.model.weights->fingerprint(); });
    const TrainPlan plan = plan_training(setup);
    say_setup(setup, plan, call);

    const auto engine = make_engine(plan.device, setup.model.config, setup.model.weights.get(), plan.engine);
    const Json identity =
        run_identity(setup, fingerprint.get(), engine->description(), static_cast<int>(setup.config.threads));
    const std::string base = identity.at("model");
    if (setup.start)
        for (const std::string& line : adapter_warnings(
                 *setup.start, setup.config.adapter, setup.model, [&] { return base; }, true))
            call.log->warn(line);
    const auto start = [&] {
        return setup.start ? from_peft(engine->lora(), *setup.start)
                           : initial_adapter(engine->lora(), setup.config.seed);
    };

    TrainerOptions options;
    options.config = setup.config;
    options.objective = setup.objective;
    options.steps = setup.steps;
    options.max_tokens = plan.max_tokens;
    options.identity = identity;
    options.labels.base_name = setup.model.hub_id.empty() ? setup.model.path : setup.model.hub_id;
    options.labels.base_fingerprint = base;
    options.labels.base_quant = setup.model.weights->quantisation();

    if (dry_run) {
        class Silent : public TrainObserver {
            void on_step(const StepReport&) override {}
            void on_evaluation(const Evaluation&, bool) override {}
        } silent;
        Trainer trainer(std::move(options), *engine, setup.train.pairs, setup.eval.pairs, silent);
        trainer.start(start());
        const double seconds = trainer.estimate_seconds();
        const Json json = {{"pairs", setup.train.pairs.size()},
                           {"eval_pairs", setup.eval.pairs.size()},
                           {"tokens_per_epoch", setup.tokens()},
                           {"steps", setup.steps},
                           {"seconds", seconds},
                           {"micro_batch_tokens", plan.max_tokens},
                           {"peak_bytes", plan.peak_bytes()}};
        print(call.common.json
                  ? json.dump(2) + "\n"
                  : fmt::format("{} pairs, {} evaluation pairs, {} tokens an epoch\n{} steps, about {} on {}\n{}",
                                setup.train.pairs.size(), setup.eval.pairs.size(), setup.tokens(), setup.steps,
                                human_seconds(seconds), engine->description(), plan_text(plan)));
        return Exit::kDone;
    }

    const RunDirectory run = open_run(setup.config, setup.model.display_name);
    options.run = run.path();
    std::optional<Checkpoint> checkpoint;
    if (request.resuming) {
        checkpoint = newest_checkpoint(run.path(), [&](const std::string& text) { call.log->warn(text); });
        if (checkpoint) {
            const auto refused = identity_differences(checkpoint->identity, identity,
                                                      [&](const std::string& text) { call.log->warn(text); });
            if (!refused.empty()) refuse_to_resume(run.path(), refused);
        }
        MetricsLog::rewind(run.metrics(), checkpoint ? checkpoint->step : -1);
        prune_checkpoints(run.path(), 0);
    }
    if (checkpoint_bytes(engine->lora().slot_size()) * 2 > io::free_bytes(run.path()))
        throw Error(Exit::kIo,
                    fmt::format("{}: {} are free and a checkpoint takes {}; make room or choose another --out",
                                run.path(), human_bytes(static_cast<double>(io::free_bytes(run.path()))),
                                human_bytes(static_cast<double>(checkpoint_bytes(engine->lora().slot_size())))));
    io::write_file_atomic(run.config(), train_config_json(setup.config).dump(2) + "\n");
    add_log_file(call.log, run.path() + "/run.log");
    call.log->info("run: {}", run.path());

    const int threads = std::max(1, omp_get_max_threads());
    const double rate = plan.gpu() ? 0 : gemm_rate(setup.model.config, setup.config.dtype == "bf16", threads);
    TrainOutput output(call, run.path(), run.metrics(), setup.config.beta, setup.steps, rate,
                       plan.gpu() ? plan.peak_bytes() : 0);
    if (setup.config.tune && !engine->tune(run.tuning()))
        call.log->warn("--tune: there is nothing to choose on the CPU");
    Trainer trainer(std::move(options), *engine, setup.train.pairs, setup.eval.pairs, output);
    if (checkpoint) {
        trainer.restore(*checkpoint);
        checkpoint.reset();
        Json changed = Json::object();
        for (const ConfigDifference& d : request.changed) {
            changed[d.name] = d.now;
            call.log->info("changed: --{} was {}, is {}", d.name, d.before, d.now);
        }
        output.write({{"type", "resume"},
                      {"step", trainer.step()},
                      {"command", call.command_line},
                      {"changed", changed},
                      {"cpu", engine->description()},
                      {"threads", setup.config.threads}});
        call.log->info("going on from step {}", trainer.step());
    } else {
        trainer.start(start());
        output.write(header(setup, plan, identity, *engine, call));
    }
    if (!trainer.finished()) call.log->info("this will take about {}", human_seconds(trainer.estimate_seconds()));

    const auto begin = std::chrono::steady_clock::now();
    try {
        const std::string reason = trainer.run();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        finish(trainer, output, run, setup, reason, seconds, plan.gpu() ? plan.peak_bytes() : 0, call);
        return reason == "SIGINT" ? Exit::kSigint : reason == "SIGTERM" ? Exit::kSigterm : Exit::kDone;
    } catch (const Trainer::NonFinite& bad) {
        output.non_finite(bad.report);
        std::string lines;
        for (const int64_t line : bad.lines) lines += (lines.empty() ? "" : ", ") + std::to_string(line);
        throw Error(
            Exit::kDiverged,
            fmt::format("step {}: the {} is not a finite number ({}), from the pairs of lines {}. Nothing of this "
                        "step was kept. Last good checkpoint: {}. Try a lower --lr, or look at these lines",
                        bad.report.step, bad.gradient ? "gradient" : "loss",
                        bad.gradient ? bad.report.grad_norm : bad.report.metrics.loss, lines,
                        trainer.last_saved() < 0 ? "none yet" : checkpoint_path(run.path(), trainer.last_saved())));
    }
}

}  // namespace

void add_train_command(Commands& commands) {
    auto flags = std::make_shared<TrainFlags>();
    CLI::App& app =
        commands.add("train", "trains an adapter on preference pairs",
                     "  orpo train data.jsonl\n"
                     "  orpo train data.jsonl --eval held-out.jsonl --model SmolLM2-360M-Instruct --lr 4e-4\n"
                     "  orpo train data.jsonl --dry-run\n"
                     "  orpo train --resume --out runs/2026-01-31-data-SmolLM2-135M-Instruct\n",
                     [flags](Call& call) -> Exit {
                         if (flags->print_config) {
                             print(print_config_text(flags->config(call), call));
                             return Exit::kDone;
                         }
                         return train(read_request(*flags, call), flags->dry_run, call);
                     });
    flags->add_to(app);
}

}  // namespace orpo
