// orpo eval: metrics of a model, with or without adapter, on preference pairs.
#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "base/io.h"
#include "data/dataset.h"
#include "src/command.h"
#include "src/config.h"
#include "src/evaluate.h"
#include "src/load.h"
#include "src/metrics_json.h"
#include "src/progress.h"

namespace orpo {
namespace {

constexpr int64_t kUsualTokens = 2048;  // enough rows for the products to run at their rate

struct EvalFlags {
    TrainFlags shared;
    std::string records;
};

Json record_json(const PairRecord& r) {
    return {{"line", r.line},
            {"prompt_tokens", r.prompt_tokens},
            {"chosen_tokens", r.chosen_tokens},
            {"rejected_tokens", r.rejected_tokens},
            {"prompt_logp", r.prompt_logp},
            {"chosen_logp", r.chosen_logp},
            {"rejected_logp", r.rejected_logp}};
}

// For people: the beta-free metrics with their standard errors, then what TRL calls them.
std::string table(const Metrics& m, double beta) {
    const auto row = [](const char* name, const Measure& measure, const char* words) {
        return fmt::format("  {:<14}{:>9.4f}  ±{:>7.4f}   {}\n", name, measure.value, measure.se, words);
    };
    std::string text = fmt::format("{} pairs, {} tokens\n", with_commas(m.pairs), with_commas(m.tokens));
    text += row("nll_chosen", m.nll_chosen, "-log p per token of the chosen answer, lower is better");
    text += row("pref_acc", m.pref_acc, "pairs whose chosen answer is the likelier one per token");
    text += row("log_odds", m.log_odds, "log odds of chosen over rejected");
    text += row("or_loss", m.or_loss, "softplus(-log odds), lower is better");
    text += row("margin", m.margin, "log p chosen - rejected, nats per token");
    text += row("sum_logp_acc", m.sum_logp_acc, "pairs whose chosen answer is the likelier one as a whole");
    text += fmt::format("\nTRL's names, beta {}\n", beta);
    for (const auto& [name, value] : trl_metrics(m)) text += fmt::format("  eval_{:<20}{:>9.4f}\n", name, value);
    return text;
}

Exit run_eval(const EvalFlags& flags, Call& call) {
    const TrainConfig config = flags.shared.config(call);
    if (config.data.empty())
        throw Error(Exit::kUsage, "DATA is missing: orpo eval pairs.jsonl; see `orpo eval --help`");
    // Before the work: a file that cannot be written would only show at the end.
    std::optional<io::AtomicFile> records_file;
    if (!flags.records.empty()) records_file.emplace(flags.records);

    const LoadedModel loaded = load_model(config.model, config.adapter, call);
    const Dataset data =
        load_dataset(config.data, loaded.tokenizer, data_options(config, loaded.model, call.common.threads));
    if (const std::string report = report_text(data.report); !report.empty() && !call.common.quiet)
        call.log->info("{}:\n{}", data.name, report);

    EvaluateOptions options;
    options.objective = objective_of(config, loaded.tokenizer);
    const PairSizes largest = largest_pair(data.pairs, options.objective);
    options.beta = config.beta;
    options.score_prompt = records_file.has_value();
    options.max_tokens = static_cast<int>(config.micro_batch_tokens > 0 ? config.micro_batch_tokens
                                                                        : std::max(kUsualTokens, largest.rows));
    TransformerSizes sizes;
    sizes.tokens = sizes.heads = options.max_tokens;
    sizes.max_positions = static_cast<int>(largest.positions);
    const auto engine = make_inference_engine(loaded, config.dtype, call, sizes);

    Progress progress(call.terminal, call.common.quiet);
    const auto total = static_cast<int64_t>(data.pairs.size());
    const auto begin = std::chrono::steady_clock::now();
    const auto records = evaluate_pairs(*engine, data.pairs, options, [&](int64_t done) {
        progress.count("evaluating", done, total, "pairs");
        return true;
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    progress.finish();

    const Metrics metrics = summarise(records, config.beta);
    if (const auto lines = non_finite_lines(records); !lines.empty())
        throw Error(Exit::kDiverged, fmt::format("{}:{}: a log-probability is not a finite number ({} such pairs); the "
                                                 "model or the adapter is damaged",
                                                 data.name, lines.front(), lines.size()));
    if (records_file) {
        for (const PairRecord& record : records) records_file->write(metrics_line(record_json(record)) + "\n");
        records_file->commit();
    }
    call.log->info("{}: {} pairs in {}, {} tokens/s", engine->description(), total, human_seconds(seconds),
                   with_commas(static_cast<int64_t>(static_cast<double>(metrics.tokens) / seconds)));
    if (call.common.json)
        print_line(metrics_line(eval_fields(metrics)));
    else
        print(table(metrics, config.beta));
    return Exit::kDone;
}

}  // namespace

void add_eval_command(Commands& commands) {
    auto flags = std::make_shared<EvalFlags>();
    CLI::App& app =
        commands.add("eval", "metrics of a model on preference pairs, with or without an adapter",
                     "  orpo eval pairs.jsonl\n"
                     "  orpo eval pairs.jsonl --adapter runs/2026-01-31-data-SmolLM2-135M-Instruct/adapter\n"
                     "  orpo eval pairs.jsonl --model SmolLM2-360M --records scores.jsonl --json\n",
                     [flags](Call& call) { return run_eval(*flags, call); });
    flags->shared.add_some(app, {"data", "model", "adapter", "dtype", "map", "max-length", "truncation", "on-bad-row",
                                 "template", "special", "semantics", "nll-scope", "beta", "micro-batch-tokens"});
    app.add_option("--records", flags->records,
                   "write one JSON line a pair: token counts and sums of log-probabilities")
        ->type_name("FILE");
}

}  // namespace orpo
