// What "best" means: a weighted sum of evaluation metrics, lower is better: "nll_chosen + 0.25 or_loss", "-pref_acc".
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace orpo {

class MetricExpression {
  public:
    // Error(kUsage) with the known names when it cannot be read. A lone metric for which more is better (pref_acc,
    // log_odds, margin) is turned round by itself.
    explicit MetricExpression(const std::string& text);

    double value(const std::function<double(const std::string&)>& metric) const;
    const std::string& text() const { return text_; }
    const std::vector<std::pair<double, std::string>>& terms() const { return terms_; }

  private:
    std::string text_;
    std::vector<std::pair<double, std::string>> terms_;
};

// The beta-free evaluation metrics that an expression may name.
const std::vector<std::string>& best_metric_names();

}  // namespace orpo
