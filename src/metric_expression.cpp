#include "src/metric_expression.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/error.h"
#include "src/suggest.h"

namespace orpo {
namespace {

bool more_is_better(const std::string& name) {
    return name == "pref_acc" || name == "log_odds" || name == "margin" || name == "sum_logp_acc";
}

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
    std::string names;
    for (const std::string& name : best_metric_names()) names += (names.empty() ? "" : ", ") + name;
    throw Error(Exit::kUsage, "--best-metric \"" + text + "\": " + why +
                                  "; a sum such as \"nll_chosen + 0.25 or_loss\" (lower is better) of " + names);
}

}  // namespace

const std::vector<std::string>& best_metric_names() {
    static const std::vector<std::string> names = {"nll_chosen", "or_loss", "pref_acc",
                                                   "log_odds",   "margin",  "sum_logp_acc"};
    return names;
}

// sum := ['-'] term {('+' | '-') term};  term := [number ['*']] name
MetricExpression::MetricExpression(const std::string& text) : text_(text) {
    size_t at = 0;
    const auto skip = [&] {
        while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) ++at;
    };
    for (bool first = true;; first = false) {
        skip();
        if (at == text.size() && !first) break;
        double factor = 1;
        if (at < text.size() && (text[at] == '-' || text[at] == '+')) {
            factor = text[at++] == '-' ? -1 : 1;
        } else if (!first) {
            refuse(text, "no + or - before \"" + text.substr(at) + "\"");
        }
        skip();
        double number = 1;
        const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), number);
        if (error == std::errc{})
            at = static_cast<size_t>(end - text.data());
        else
            number = 1;
        skip();
        if (at < text.size() && text[at] == '*') ++at, skip();
        std::string name;
        while (at < text.size() && (std::isalnum(static_cast<unsigned char>(text[at])) || text[at] == '_'))
            name += text[at++];
        const auto& names = best_metric_names();
        if (std::find(names.begin(), names.end(), name) == names.end())
            refuse(text, name.empty() ? "a metric's name is missing"
                                      : "unknown metric \"" + name + "\"" + did_you_mean(name, names));
        terms_.emplace_back(factor * number, name);
    }
    if (terms_.size() == 1 && terms_[0].first == 1 && more_is_better(terms_[0].second)) terms_[0].first = -1;
}

double MetricExpression::value(const std::function<double(const std::string&)>& metric) const {
    double sum = 0;
    for (const auto& [factor, name] : terms_) sum += factor * metric(name);
    return sum;
}

}  // namespace orpo
