#include "src/metrics_json.h"

#include "base/error.h"

namespace orpo {
namespace {

struct BetaFree {
    const char* name;
    Measure Metrics::*measure;
};
constexpr BetaFree kBetaFree[] = {
    {"nll_chosen", &Metrics::nll_chosen}, {"pref_acc", &Metrics::pref_acc}, {"log_odds", &Metrics::log_odds},
    {"or_loss", &Metrics::or_loss},       {"margin", &Metrics::margin},     {"sum_logp_acc", &Metrics::sum_logp_acc},
};

}  // namespace

std::vector<std::pair<std::string, double>> trl_metrics(const Metrics& m) {
    return {{"loss", m.loss},
            {"nll_loss", m.nll_loss.value},
            {"log_odds_ratio", m.log_odds_ratio.value},
            {"log_odds_chosen", m.log_odds_chosen.value},
            {"logps/chosen", m.logps_chosen.value},
            {"logps/rejected", m.logps_rejected.value},
            {"rewards/chosen", m.rewards_chosen.value},
            {"rewards/rejected", m.rewards_rejected.value},
            {"rewards/margins", m.rewards_margins.value},
            {"rewards/accuracies", m.rewards_accuracies.value}};
}

Json eval_fields(const Metrics& metrics) {
    Json json = {{"pairs", metrics.pairs}};
    for (const BetaFree& entry : kBetaFree) {
        json[entry.name] = (metrics.*entry.measure).value;
        json[std::string(entry.name) + "_se"] = (metrics.*entry.measure).se;
    }
    json["pref_share"] = metrics.pref_share;
    for (const auto& [name, value] : trl_metrics(metrics)) json["eval_" + name] = value;
    return json;
}

Measure metric_by_name(const Metrics& metrics, const std::string& name) {
    for (const BetaFree& entry : kBetaFree)
        if (name == entry.name) return metrics.*entry.measure;
    ORPO_CHECK(!"a metric of this name");
    return {};
}

}  // namespace orpo
