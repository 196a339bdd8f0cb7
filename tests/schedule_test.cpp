// Learning-rate schedules against transformers' (tools/make_optimizer_golden.py).
#include "src/schedule.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/io.h"

using namespace orpo;

TEST_CASE("every schedule has transformers' factors") {
    const char* data = std::getenv("ORPO_TEST_DATA");
    REQUIRE(data != nullptr);
    const auto golden = nlohmann::json::parse(io::read_file(std::string(data) + "/golden/optimizer.json", 1 << 20));
    int cases = 0;
    for (const auto& entry : golden.at("schedules")) {
        const auto kind = schedule_kind(entry.at("schedule").get<std::string>());
        REQUIRE(kind);
        const Schedule schedule{*kind, entry.at("steps"), entry.at("warmup")};
        double worst = 0;
        for (int64_t t = 0; t < schedule.steps; ++t) {
            const double error = std::abs(schedule.factor(t) - entry.at("factors").at(t).get<double>());
            worst = error >= worst || std::isnan(error) ? error : worst;
        }
        CHECK_MESSAGE(worst <= 1e-14, entry.at("schedule"), " ", schedule.steps, " ", schedule.warmup);
        ++cases;
    }
    CHECK(cases == 34);
}

TEST_CASE("the first update has no learning rate when there is warm-up, and the full one without") {
    for (const auto kind : {ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kConstant,
                            ScheduleKind::kInverseSqrt, ScheduleKind::kWsd}) {
        CHECK(Schedule{kind, 20, 2}.factor(0) == 0);
        CHECK(Schedule{kind, 20, 0}.factor(0) == 1);
    }
    CHECK_FALSE(schedule_kind("triangle"));
}

TEST_CASE("wsd cools down over the last fifth") {
    const Schedule wsd{ScheduleKind::kWsd, 100, 5};
    CHECK(wsd.cooldown() == 20);
    CHECK(wsd.factor(5) == 1);
    CHECK(wsd.factor(80) == 1);
    CHECK(wsd.factor(85) == 0.5);
    CHECK(wsd.factor(99) == doctest::Approx(1 - std::sqrt(0.95)));
}
