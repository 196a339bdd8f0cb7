// The fields of metrics.jsonl (and of `orpo eval --json`) from a summary of pairs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/orpo_loss.h"
#include "src/metrics_log.h"

namespace orpo {

// Step lines: "loss", "nll_loss", "log_odds_ratio", "log_odds_chosen", "logps/chosen", ..., TRL's names.
std::vector<std::pair<std::string, double>> trl_metrics(const Metrics& metrics);

// Eval lines: "pairs", the beta-free metrics each with "_se", and TRL's names with "eval_".
Json eval_fields(const Metrics& metrics);

// A beta-free metric by its name in --best-metric ("nll_chosen", "pref_acc", ...). ORPO_CHECK on another name.
Measure metric_by_name(const Metrics& metrics, const std::string& name);

}  // namespace orpo
