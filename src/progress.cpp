#include "src/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace orpo {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Joins what is known with two spaces and stops where a line of `width` columns is full.
std::string fitted(const std::vector<std::string>& parts, int width) {
    std::string line;
    for (const std::string& part : parts) {
        if (part.empty()) continue;
        const size_t length = line.empty() ? part.size() : line.size() + 2 + part.size();
        if (length > static_cast<size_t>(std::max(0, width))) break;
        line += (line.empty() ? "" : "  ") + part;
    }
    return line;
}

std::string known(const char* format, double value) {
    return std::isnan(value) ? "" : fmt::format(fmt::runtime(format), value);
}

std::string speed(double tokens_per_second) {
    return std::isnan(tokens_per_second) ? "" : with_commas(std::llround(tokens_per_second)) + " tok/s";
}

std::string peak(int64_t bytes) { return bytes > 0 ? human_bytes(static_cast<double>(bytes)) + " peak" : ""; }

std::string eta_text(double seconds) { return std::isnan(seconds) ? "" : "ETA " + human_seconds(seconds); }

std::string step_text(const StepView& v) { return fmt::format("step {}/{}", v.step, v.steps); }

}  // namespace

std::string bar_text(double share, int width, bool unicode) {
    share = std::isnan(share) ? 0 : std::clamp(share, 0.0, 1.0);
    std::string bar = "[";
    if (unicode) {
        // U+2588 full block ... U+258F one eighth.
        const auto eighths = static_cast<int>(share * width * 8);
        for (int i = 0; i < width; ++i) {
            const int part = std::clamp(eighths - 8 * i, 0, 8);
            bar += part == 0 ? std::string(" ") : fmt::format("\xe2\x96{}", static_cast<char>(0x90 - part));
        }
    } else {
        const auto full = static_cast<int>(share * width);
        bar += std::string(static_cast<size_t>(full), '#') + std::string(static_cast<size_t>(width - full), '.');
    }
    return bar + "]";
}

std::string step_line(const StepView& v) {
    return fitted(
        {step_text(v), known("epoch {:.2f}", v.epoch), known("loss {:.4f}", v.loss), known("nll {:.4f}", v.nll),
         known("odds {:.4f}", v.odds), known("acc {:.3f}", v.accuracy), known("margin {:+.3f}", v.margin),
         known("lr {:.2e}", v.lr), known("grad {:.3g}", v.grad_norm), speed(v.tokens_per_second),
         known("{:.0f} % of GEMM", 100 * v.gemm_share), peak(v.peak_bytes), eta_text(v.eta)},
        1 << 16);
}

std::string step_status(const StepView& v, int width, bool unicode) {
    width = std::max(20, width - 1);  // the last column would wrap on some terminals
    const double share = v.steps > 0 ? static_cast<double>(v.step) / static_cast<double>(v.steps) : 0;
    const std::string head = fmt::format("{:3.0f} % ", std::floor(100 * share));
    const std::string tail = fitted({step_text(v), known("epoch {:.2f}", v.epoch), eta_text(v.eta)}, width - 20);
    const int bar = std::max(8, std::min(40, width - static_cast<int>(head.size() + tail.size()) - 4));
    const std::string parts = std::isnan(v.nll) || std::isnan(v.odds)
                                  ? known("loss {:.4f}", v.loss)
                                  : fmt::format("loss {:.4f} = nll {:.4f} + odds {:.4f}", v.loss, v.nll, v.odds);
    return head + bar_text(share, bar, unicode) + "  " + tail + "\n" +
           fitted({parts, known("acc {:.3f}", v.accuracy), known("margin {:+.3f}", v.margin)}, width) + "\n" +
           fitted({known("lr {:.2e}", v.lr), speed(v.tokens_per_second), known("{:.0f} % of GEMM", 100 * v.gemm_share),
                   peak(v.peak_bytes), known("grad {:.3g}", v.grad_norm)},
                  width);
}

std::string count_status(const std::string& what, int64_t done, int64_t total, const std::string& unit, double eta,
                         int width, bool unicode) {
    width = std::max(20, width - 1);
    const std::string tail = fmt::format("{} of {} {}", done, total, unit);
    const int room = width - static_cast<int>(what.size() + tail.size()) - 22;
    const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
    const std::string bar = room >= 4 ? bar_text(share, std::min(30, room), unicode) + "  " : "";
    return fitted({what, bar + tail, eta_text(eta)}, std::max(width, width + static_cast<int>(bar.size())));
}

bool unicode_locale() {
    for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"}) {
        const char* value = std::getenv(variable);
        if (value == nullptr || *value == '\0') continue;
        const std::string locale = value;
        return locale.find("UTF-8") != std::string::npos || locale.find("utf8") != std::string::npos ||
               locale.find("UTF8") != std::string::npos;
    }
    return false;
}

Progress::Progress(Terminal& terminal, bool quiet) : terminal_(terminal), quiet_(quiet), unicode_(unicode_locale()) {}

void Progress::step(const StepView& view) {
    if (quiet_) return;
    if (terminal_.is_terminal())
        terminal_.status(step_status(view, terminal_.width(), unicode_));
    else
        terminal_.line(step_line(view));
}

void Progress::count(const std::string& what, int64_t done, int64_t total, const std::string& unit) {
    if (quiet_ || !terminal_.is_terminal()) return;
    const double time = now();
    if (done == 0) began_ = time;
    if (done > 0 && done < total && time - last_drawn_ < 0.1) return;
    last_drawn_ = time;
    const double eta =
        done > 0 ? (time - began_) * static_cast<double>(total - done) / static_cast<double>(done) : kUnknown;
    terminal_.status(count_status(what, done, total, unit, eta, terminal_.width(), unicode_));
}

void Progress::finish() {
    if (!quiet_) terminal_.status("");
}

void EtaEstimate::add(double seconds) {
    // A plain mean over the first ten, then an exponential one over about the last ten.
    ++count_;
    const double weight = 1.0 / static_cast<double>(std::min<int64_t>(count_, 10));
    mean_ = count_ == 1 ? seconds : mean_ + weight * (seconds - mean_);
}

}  // namespace orpo
