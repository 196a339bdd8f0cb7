// The gate: kernels ask for memory as they should. First the counts themselves, on kernels that are counted by hand.
#include "tests/simt/counts.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/simt/control.h"
#include "tests/simt/report_cases.h"

using namespace orpo;
using namespace orpo::cuda;
using simt::Observer;
using simt::SourceLine;
using simt::Space;

namespace {

simt::LaunchCounts counted(const std::function<void(const float*, float*)>& run) {
    alignas(256) static float from[4096], to[1024];
    simt::Counter counter;
    counter.global(from, sizeof from);
    counter.global(to, sizeof to);
    run(from, to);
    const auto launches = counter.launches();
    REQUIRE(launches.size() == 1);
    return launches[0];
}
SourceLine line(const simt::LaunchCounts& counts, Space space, Observer::Access access, int lane_bytes) {
    SourceLine sum;
    for (const SourceLine& l : counts.source)
        if (l.space == space && l.access == access && l.lane_bytes == lane_bytes)
            sum.requests += l.requests, sum.units += l.units, sum.ideal += l.ideal, sum.bytes += l.bytes;
    return sum;
}

}  // namespace

TEST_CASE("counts by hand: global sectors") {
    auto c = counted([](const float* from, float* to) { strided(1, from, to); });
    CHECK(c.kernel == "strided_kernel");
    SourceLine load = line(c, Space::kGlobal, Observer::Access::kLoad, 4);
    CHECK((load.requests == 1 && load.units == 4 && load.ideal == 4 && load.bytes == 128));
    CHECK(c.ratio(Space::kGlobal) == 1);
    // A stride of 8 floats: every lane has a sector to itself.
    c = counted([](const float* from, float* to) { strided(8, from, to); });
    load = line(c, Space::kGlobal, Observer::Access::kLoad, 4);
    CHECK((load.units == 32 && load.ideal == 4 && load.bytes == 128));
    CHECK(c.ratio(Space::kGlobal) == 36.0 / 8);
    REQUIRE(c.worst(Space::kGlobal));
    CHECK(c.worst(Space::kGlobal)->where.rfind("control.cu:", 0) == 0);
    // All lanes read one value.
    c = counted([](const float* from, float* to) { strided(0, from, to); });
    load = line(c, Space::kGlobal, Observer::Access::kLoad, 4);
    CHECK((load.units == 1 && load.ideal == 1 && load.bytes == 4));
    // One float off: 128 bytes in five sectors.
    c = counted([](const float* from, float* to) { strided(1, from + 1, to); });
    CHECK(line(c, Space::kGlobal, Observer::Access::kLoad, 4).units == 5);
}

TEST_CASE("counts by hand: bank conflicts") {
    auto c = counted([](const float* from, float* to) { transpose(false, from, to); });
    CHECK(c.kernel == "transpose_kernel<32>");
    SourceLine load = line(c, Space::kShared, Observer::Access::kLoad, 4);
    CHECK((load.requests == 32 && load.units == 32 * 32 && load.ideal == 32));
    SourceLine store = line(c, Space::kShared, Observer::Access::kStore, 4);
    CHECK((store.requests == 32 && store.units == 32));
    CHECK(c.ratio(Space::kShared) == 33.0 / 2);
    CHECK(c.ratio(Space::kGlobal) == 1);
    c = counted([](const float* from, float* to) { transpose(true, from, to); });
    CHECK(c.ratio(Space::kShared) == 1);
    CHECK(c.total(Space::kShared, &SourceLine::units) == 64);
    CHECK(!c.worst(Space::kShared));
}

TEST_CASE("counts by hand: 8 and 16 bytes a lane") {
    const auto c = counted([](const float* from, float* to) { wide(from, to); });
    const SourceLine eight = line(c, Space::kShared, Observer::Access::kLoad, 8);
    CHECK((eight.requests == 1 && eight.units == 2 && eight.ideal == 2));
    // Near: four wavefronts for four groups of eight lanes. Far, with gaps of 16 bytes: eight.
    const SourceLine sixteen = line(c, Space::kShared, Observer::Access::kLoad, 16);
    CHECK((sixteen.requests == 2 && sixteen.units == 4 + 8 && sixteen.ideal == 8));
}

TEST_CASE("counts by hand: cp.async and ldmatrix") {
    const auto run = [](bool padded) {
        return counted([&](const float* from, float* to) {
            matrix(padded, reinterpret_cast<const bf16*>(from), reinterpret_cast<unsigned*>(to));
        });
    };
    const auto padded = run(true), plain = run(false);
    // 512 bytes one after the other.
    CHECK(line(padded, Space::kGlobal, Observer::Access::kCopyFrom, 16).units == 16);
    // A group of eight lanes writes 32 bytes of each of four rows. Rows of 144 bytes start four banks apart, so that
    // two of them meet in a bank; rows of 128 bytes all start at bank 0.
    CHECK(line(padded, Space::kShared, Observer::Access::kCopyTo, 16).units == 8);
    CHECK(line(plain, Space::kShared, Observer::Access::kCopyTo, 16).units == 16);
    // Eight rows of one column a group.
    CHECK(line(padded, Space::kShared, Observer::Access::kMatrix, 16).units == 4);
    CHECK(line(plain, Space::kShared, Observer::Access::kMatrix, 16).units == 32);
    CHECK(line(plain, Space::kShared, Observer::Access::kMatrix, 16).ideal == 4);
    CHECK((padded.steps == 1 && padded.read_bytes == 512 && padded.written_bytes == 128));
}

namespace {

// Units over ideal that are let through; 1 wavefront a group of lanes, and sectors 10 % above ideal, where nothing is
// said.
struct Limit {
    const char* kernel;
    double sectors, wavefronts;
};
constexpr Limit kLimits[] = {
    {"rope_kernel", 1.15, 1},  // a lane's eight {cos, sin} are 64 bytes in a row, read 16 at a time
    {"orpo_kernel", 4.4, 1},   // a few hundred rows in all
};
Limit limit_of(const std::string& kernel) {
    const std::string name = kernel.substr(0, kernel.find('<'));
    for (const Limit& limit : kLimits)
        if (name == limit.kernel) return limit;
    return {"", 1.1, 1};
}

}  // namespace

TEST_CASE("every kernel: sectors and wavefronts") {
    for (const ModelShape& shape : model_shapes()) {
        CAPTURE(shape.name);
        for (const Counted& k : count_kernels(shape)) {
            const simt::LaunchCounts& c = k.counts;
            CAPTURE(k.operation);
            CAPTURE(c.kernel);
            REQUIRE(!c.kernel.empty());
            const Limit limit = limit_of(c.kernel);
            // Which line is worst, for whoever reads a failure.
            const SourceLine* worst = c.worst(Space::kGlobal);
            const std::string sectors = worst ? worst->where : "-";
            worst = c.worst(Space::kShared);
            const std::string wavefronts = worst ? worst->where : "-";
            CAPTURE(sectors);
            CAPTURE(wavefronts);
            CHECK(c.ratio(Space::kGlobal) <= limit.sectors);
            CHECK(c.ratio(Space::kShared) <= limit.wavefronts);
            // All that a kernel must touch was seen (what a sample of its blocks leaves out: 5 %).
            CHECK(c.read_bytes >= 0.95 * k.need.read);
            CHECK(c.written_bytes >= 0.95 * k.need.written);
        }
    }
}
