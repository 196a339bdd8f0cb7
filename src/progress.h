// Progress for people: a bar of three lines on a terminal, one line a step elsewhere.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "src/terminal.h"

namespace orpo {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// What one optimizer step shows. A NaN is left out.
struct StepView {
    int64_t step = 0, steps = 0;  // counted from 1
    double epoch = kUnknown;
    double loss = kUnknown;
    double nll = kUnknown;   // its two parts: loss = nll + odds
    double odds = kUnknown;  // beta * mean softplus(-z)
    double accuracy = kUnknown, margin = kUnknown;
    double lr = kUnknown, grad_norm = kUnknown;
    double seconds = kUnknown;  // of this step
    double tokens_per_second = kUnknown;
    double gemm_share = kUnknown;  // of the machine's measured GEMM rate, 0..1
    int64_t peak_bytes = 0;
    double eta = kUnknown;  // seconds to the end
};

// "[######........]" of `width` columns between the brackets; with `unicode` in eighths of a column.
std::string bar_text(double share, int width, bool unicode);
// One line, for logs and pipes.
std::string step_line(const StepView& view);
// Three lines, each at most `width` columns.
std::string step_status(const StepView& view, int width, bool unicode);
// "evaluating  [####....]  120 of 474 pairs  ETA 12 s"
std::string count_status(const std::string& what, int64_t done, int64_t total, const std::string& unit, double eta,
                         int width, bool unicode);

// Does the locale's character set have block characters?
bool unicode_locale();

class Progress {
  public:
    // quiet: shows nothing.
    Progress(Terminal& terminal, bool quiet);
    ~Progress() { finish(); }

    void step(const StepView& view);
    // Something that takes long: shown on a terminal only. `what` begins anew when done is 0.
    void count(const std::string& what, int64_t done, int64_t total, const std::string& unit);
    // Removes the bar.
    void finish();

  private:
    Terminal& terminal_;
    bool quiet_, unicode_;
    double began_ = 0, last_drawn_ = 0;  // seconds of a steady clock
};

// Expected seconds to the end from the last steps: one slow step must not jump the estimate.
class EtaEstimate {
  public:
    // seconds: of the step that just ended.
    void add(double seconds);
    double remaining(int64_t steps_left) const { return mean_ * static_cast<double>(steps_left); }

  private:
    double mean_ = kUnknown;
    int64_t count_ = 0;
};

}  // namespace orpo
