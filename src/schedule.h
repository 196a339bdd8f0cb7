// Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state.
//
// With T optimizer steps, W of warm-up, update t = 0, 1, ..., T - 1:
//   warm-up       t / W                                   t < W: the first update has factor 0, as Hugging Face's have
//   linear        (T - t) / (T - W)
//   cosine        (1 + cos(pi (t - W) / (T - W))) / 2
//   constant      1
//   inverse-sqrt  sqrt(W / t), W = 10,000 without warm-up (and t then counted from there)
//   wsd           1, then 1 - sqrt(p) while p goes from 0 to 1 over the last fifth of T
// Source: transformers, src/transformers/optimization.py (get_*_schedule_with_warmup, get_wsd_schedule with decay_type
// "1-sqrt"); Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2405.18392.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <optional>
#include <string_view>

namespace orpo {

enum class ScheduleKind { kLinear, kCosine, kConstant, kInverseSqrt, kWsd };

inline std::optional<ScheduleKind> schedule_kind(std::string_view name) {
    if (name == "linear") return ScheduleKind::kLinear;
    if (name == "cosine") return ScheduleKind::kCosine;
    if (name == "constant") return ScheduleKind::kConstant;
    if (name == "inverse-sqrt") return ScheduleKind::kInverseSqrt;
    if (name == "wsd") return ScheduleKind::kWsd;
    return std::nullopt;
}

struct Schedule {
    ScheduleKind kind = ScheduleKind::kWsd;
    int64_t steps = 0;   // T
    int64_t warmup = 0;  // W; may be more than T: then the run ends inside the warm-up

    // Length of the cooldown of wsd.
    int64_t cooldown() const {
        return std::min(std::max<int64_t>(1, (steps + 2) / 5), steps - std::min(warmup, steps));
    }

    // What multiplies the learning rate in update `step`, counted from 0.
    double factor(int64_t step) const {
        const double t = static_cast<double>(step), W = static_cast<double>(warmup), T = static_cast<double>(steps);
        if (step < warmup) return t / W;
        switch (kind) {
            case ScheduleKind::kLinear:
                return std::max(0.0, (T - t) / std::max(1.0, T - W));
            case ScheduleKind::kCosine:
                return std::max(0.0, (1 + std::cos(std::numbers::pi * (t - W) / std::max(1.0, T - W))) / 2);
            case ScheduleKind::kConstant:
                return 1;
            case ScheduleKind::kInverseSqrt: {
                const double timescale = warmup > 0 ? W : 10000, shift = timescale - W;
                return 1 / std::sqrt((t + shift) / timescale);
            }
            case ScheduleKind::kWsd: {
                const double D = static_cast<double>(cooldown());
                if (t < T - D) return 1;
                return t < T ? 1 - std::sqrt((t - (T - D)) / std::max(1.0, D)) : 0;
            }
        }
        return 0;
    }
};

}  // namespace orpo
