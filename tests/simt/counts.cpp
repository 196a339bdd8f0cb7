#include "tests/simt/counts.h"

#include <array>
#include <set>
#include <tuple>

#include "base/error.h"
#include "tests/simt/source_names.h"

namespace simt {

namespace {

Counter* live = nullptr;

constexpr uintptr_t kSector = 32, kLine = 128, kBanks = 32;

// Distinct values of a short list, which it sorts.
size_t distinct(std::vector<uintptr_t>& v) {
    std::sort(v.begin(), v.end());
    v.erase(std::unique(v.begin(), v.end()), v.end());
    return v.size();
}

// The source line that a reader looks for: not in device.cuh or the runner, whose helpers stand for one instruction.
std::string name_line(const std::vector<Frame>& frames) {
    std::string where;
    for (const Frame& f : frames) {
        if (f.file == "device.cuh" || f.file == "simt.h") continue;
        const bool helper = f.file.size() > 4 && f.file.compare(f.file.size() - 4, 4, ".cuh") == 0;
        where += (where.empty() ? "" : " < ") + f.file + ":" + std::to_string(f.line);
        if (!helper) break;
    }
    return where;
}

}  // namespace

const char* SourceLine::kind() const {
    switch (access) {
        case Observer::Access::kLoad:
            return "load";
        case Observer::Access::kStore:
            return "store";
        case Observer::Access::kCopyFrom:
            return "cp.async from";
        case Observer::Access::kCopyTo:
            return "cp.async to";
        case Observer::Access::kMatrix:
            return "ldmatrix";
    }
    return "";
}

double LaunchCounts::total(Space space, double SourceLine::*member) const {
    double sum = 0;
    for (const SourceLine& line : source)
        if (line.space == space) sum += line.*member;
    return sum;
}
double LaunchCounts::ratio(Space space) const {
    const double ideal = total(space, &SourceLine::ideal);
    return ideal > 0 ? total(space, &SourceLine::units) / ideal : 1.0;
}
const SourceLine* LaunchCounts::worst(Space space) const {
    const SourceLine* worst = nullptr;
    double most = 0;
    for (const SourceLine& line : source)
        if (line.space == space && line.units - line.ideal > most) most = line.units - line.ideal, worst = &line;
    return worst;
}

Counter::Counter() {
    ORPO_CHECK(!live);
    live = this;
    machine().observer = this;
}
Counter::~Counter() {
    live = nullptr;
    machine().observer = nullptr;
}

void Counter::global(const void* begin, size_t bytes) {
    const auto at = reinterpret_cast<uintptr_t>(begin);
    global_.push_back({at, at + bytes});
}

void Counter::begin_launch(const char*, dim3 grid, dim3 block, size_t shared_bytes) {
    Launch launch;
    launch.counts.grid = grid, launch.counts.block = block;
    launch.counts.shared_bytes = static_cast<int64_t>(shared_bytes);
    launch.counts.blocks = int64_t{grid.x} * grid.y * grid.z;
    launched_.push_back(std::move(launch));
}

bool Counter::begin_block(uint3 block) {
    if (only_ && !only_(block)) return false;
    lanes_.assign(machine().threads.size(), {});
    loaded_.clear(), copied_.clear(), stored_.clear();
    block_steps_ = 0;
    ++launched_.back().counts.blocks_run;
    return counting_ = true;
}

void Counter::access(Access access, const void* at, int bytes, const void* pc) {
    if (!counting_) return;
    const auto address = reinterpret_cast<uintptr_t>(at);
    const Machine& m = machine();
    Space space = Space::kGlobal;
    if (address - reinterpret_cast<uintptr_t>(m.shared) < m.shared_bytes) {
        space = Space::kShared;
    } else if (!std::any_of(global_.begin(), global_.end(),
                            [&](const auto& g) { return address - g.first < g.second - g.first; })) {
        return;
    }
    lanes_[static_cast<size_t>(linear(*m.self))].push_back(
        {reinterpret_cast<uintptr_t>(pc), address, m.self->waits, 0, static_cast<uint16_t>(bytes), access, space});
}
void Counter::mma() {
    if (lane() == 0) launched_.back().counts.mma += 1;
}
void Counter::special() {
    if (counting_) launched_.back().counts.special += 1;
}

void Counter::end_block() {
    counting_ = false;
    std::vector<Record> warp;
    for (size_t first = 0; first < lanes_.size(); first += 32) {
        warp.clear();
        for (size_t l = first; l < std::min(lanes_.size(), first + 32); ++l) {
            // Numbers this lane's accesses of each place and epoch.
            std::map<std::tuple<uintptr_t, Access, uint32_t>, uint32_t> turns;
            for (Record& r : lanes_[l]) {
                r.turn = turns[{r.pc, r.access, r.epoch}]++;
                warp.push_back(r);
            }
        }
        count_warp(warp);
    }
    LaunchCounts& counts = launched_.back().counts;
    counts.read_bytes += static_cast<double>((distinct(loaded_) + copied_.size()) * kSector);
    counts.written_bytes += static_cast<double>(distinct(stored_) * kSector);
    counts.steps += block_steps_;
}

void Counter::count_warp(std::vector<Record>& records) {
    const auto key = [](const Record& r) { return std::tuple(r.pc, r.access, r.space, r.epoch, r.turn); };
    std::stable_sort(records.begin(), records.end(), [&](const Record& a, const Record& b) { return key(a) < key(b); });
    std::set<uint32_t> rounds;
    for (size_t i = 0, end; i < records.size(); i = end) {
        for (end = i + 1; end < records.size() && key(records[end]) == key(records[i]);) ++end;
        count_request(&records[i], end - i);
        const bool loads = records[i].access == Access::kLoad || records[i].access == Access::kCopyFrom;
        if (loads && records[i].space == Space::kGlobal) rounds.insert(records[i].epoch);
    }
    block_steps_ = std::max(block_steps_, static_cast<int>(rounds.size()));
}

void Counter::count_request(const Record* first, size_t n) {
    SourceLine& line = launched_.back().places[{first->pc, first->access, first->space}];
    line.space = first->space, line.access = first->access;
    line.lane_bytes = std::max<int>(line.lane_bytes, first->bytes);
    line.requests += 1, line.lanes += static_cast<double>(n);
    std::vector<uintptr_t> bytes, pieces;
    for (const Record* r = first; r < first + n; ++r)
        for (uintptr_t b = r->at; b < r->at + r->bytes; ++b) bytes.push_back(b);
    const size_t asked = distinct(bytes);
    line.bytes += static_cast<double>(asked);
    if (first->space == Space::kGlobal) {
        for (const uintptr_t b : bytes)
            if (pieces.empty() || pieces.back() != b / kSector) pieces.push_back(b / kSector);
        line.units += static_cast<double>(pieces.size());
        line.ideal += static_cast<double>((asked + kSector - 1) / kSector);
        auto& list = first->access == Access::kStore ? stored_ : first->access == Access::kCopyFrom ? copied_ : loaded_;
        list.insert(list.end(), pieces.begin(), pieces.end());
        for (uintptr_t& p : pieces) p /= kLine / kSector;
        line.lines += static_cast<double>(distinct(pieces));
        return;
    }
    // Groups of lanes that are served together: as many as ask for 128 bytes.
    const size_t group = first->bytes <= 4 ? 32 : first->bytes <= 8 ? 16 : 8;
    for (size_t g = 0; g < n; g += group) {
        std::array<std::vector<uintptr_t>, kBanks> words;
        for (const Record* r = first + g; r < first + std::min(n, g + group); ++r)
            for (uintptr_t b = r->at / 4; b <= (r->at + r->bytes - 1) / 4; ++b) words[b % kBanks].push_back(b);
        size_t most = 0;
        for (auto& bank : words) most = std::max(most, distinct(bank));
        line.units += static_cast<double>(most);
        line.ideal += 1;
    }
}

std::vector<LaunchCounts> Counter::launches() const {
    std::set<uintptr_t> addresses;
    for (const Launch& launch : launched_)
        for (const auto& [place, line] : launch.places) addresses.insert(place.pc);
    const auto names = name_addresses(addresses);
    std::vector<LaunchCounts> all;
    for (const Launch& launch : launched_) {
        LaunchCounts counts = launch.counts;
        // Places of one source line and kind are one line of the report.
        std::map<std::tuple<std::string, Space, Access, int>, SourceLine> lines;
        const double scale =
            counts.blocks_run ? static_cast<double>(counts.blocks) / static_cast<double>(counts.blocks_run) : 0;
        for (const auto& [place, line] : launch.places) {
            std::string where = "?";
            if (const auto found = names.find(place.pc); found != names.end()) {
                where = name_line(found->second);
                for (const Frame& f : found->second)
                    if (counts.kernel.empty()) counts.kernel = kernel_name(f.function);
            }
            SourceLine& sum = lines[{where, place.space, place.access, line.lane_bytes}];
            sum.where = where, sum.space = place.space, sum.access = place.access, sum.lane_bytes = line.lane_bytes;
            for (const auto member : {&SourceLine::requests, &SourceLine::lanes, &SourceLine::bytes, &SourceLine::units,
                                      &SourceLine::ideal, &SourceLine::lines})
                sum.*member += line.*member * scale;
        }
        for (auto& [key, line] : lines) counts.source.push_back(std::move(line));
        for (const auto member :
             {&LaunchCounts::mma, &LaunchCounts::special, &LaunchCounts::read_bytes, &LaunchCounts::written_bytes})
            counts.*member *= scale;
        if (counts.blocks_run) counts.steps /= static_cast<double>(counts.blocks_run);
        all.push_back(std::move(counts));
    }
    return all;
}

}  // namespace simt

// What code compiled with -fsanitize=thread calls.
using simt::live;

namespace {
void seen(const void* at, int bytes, bool store, const void* pc) {
    if (live) live->access(store ? simt::Observer::Access::kStore : simt::Observer::Access::kLoad, at, bytes, pc);
}
// An aggregate moves in pieces of 4 bytes: that is what is known of its alignment.
void seen_range(const void* at, size_t bytes, bool store, const void* pc) {
    for (size_t b = 0; b < bytes; b += 4) {
        const auto* piece = static_cast<const char*>(at) + b;
        // Every piece is an instruction of its own.
        seen(piece, static_cast<int>(std::min<size_t>(4, bytes - b)), store, static_cast<const char*>(pc));
    }
}
}  // namespace

#define SEEN(n)                                                                                      \
    void __tsan_read##n(void* p) { seen(p, n, false, __builtin_return_address(0)); }                 \
    void __tsan_write##n(void* p) { seen(p, n, true, __builtin_return_address(0)); }                 \
    void __tsan_unaligned_read##n(void* p) { seen_range(p, n, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##n(void* p) { seen_range(p, n, true, __builtin_return_address(0)); }
extern "C" {
SEEN(1)
SEEN(2)
SEEN(4)
SEEN(8)
SEEN(16)
void __tsan_read_range(void* p, size_t n) { seen_range(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { seen_range(p, n, true, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// The linker hands us the kernels' exponentials and logarithms (-Wl,--wrap).
#define WRAPPED(f)                 \
    float __real_##f(float);       \
    float __wrap_##f(float x) {    \
        if (live) live->special(); \
        return __real_##f(x);      \
    }
WRAPPED(expf)
WRAPPED(exp2f)
WRAPPED(logf)
WRAPPED(expm1f)
WRAPPED(log1pf)
}
