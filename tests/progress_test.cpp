// What people see while it works: the bar, the lines, and that a status never stays behind on the screen.
#include "src/progress.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "src/log.h"
#include "src/suggest.h"
#include "src/terminal.h"

using namespace orpo;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

StepView example() {
    StepView v;
    v.step = 74, v.steps = 120, v.epoch = 0.62;
    v.loss = 1.8423, v.nll = 1.7021, v.odds = 0.1402;
    v.accuracy = 0.625, v.margin = 0.113, v.lr = 1e-3, v.grad_norm = 0.82;
    v.tokens_per_second = 1234.4, v.gemm_share = 0.71, v.peak_bytes = 1'240'000'000, v.eta = 200;
    return v;
}

// Columns of the widest line; every character of ours is one column wide.
size_t widest(const std::string& text) {
    size_t most = 0, now = 0;
    for (const char c : text) {
        if (c == '\n')
            now = 0;
        else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80)
            most = std::max(most, ++now);
    }
    return most;
}

// A terminal whose output is collected.
struct Captured {
    int ends[2];
    Captured() { REQUIRE(::pipe(ends) == 0); }
    ~Captured() { ::close(ends[0]), ::close(ends[1]); }
    std::string read() {
        char buffer[1 << 14];
        const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
        return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "";
    }
};

}  // namespace

TEST_CASE("a step's line has everything a user wants to know") {
    const std::string line = step_line(example());
    for (const char* part :
         {"step 74/120", "epoch 0.62", "loss 1.8423", "nll 1.7021", "odds 0.1402", "acc 0.625", "margin +0.113",
          "lr 1.00e-03", "1,234 tok/s", "71 % of GEMM", "1.24 GB peak", "ETA 3 min 20 s"})
        CHECK_MESSAGE(contains(line, part), part, " in ", line);
    CHECK_FALSE(contains(line, "\n"));
    StepView bare;
    bare.step = 1, bare.steps = 2, bare.loss = 3;
    CHECK(step_line(bare) == "step 1/2  loss 3.0000");
}

TEST_CASE("the bar fits every width") {
    for (const bool unicode : {false, true})
        for (int width = 30; width <= 200; ++width)
            CHECK(widest(step_status(example(), width, unicode)) < size_t(width));
    const std::string wide = step_status(example(), 100, false);
    for (const char* part :
         {"61 %", "step 74/120", "loss 1.8423 = nll 1.7021 + odds 0.1402", "acc 0.625", "71 % of GEMM", "ETA"})
        CHECK_MESSAGE(contains(wide, part), part, " in ", wide);
    CHECK(bar_text(0.5, 4, false) == "[##..]");
    CHECK(bar_text(0, 3, false) == "[...]");
    CHECK(bar_text(1, 3, false) == "[###]");
    CHECK(bar_text(0.5, 3, true) == "[\xe2\x96\x88\xe2\x96\x8c ]");
    CHECK(bar_text(kUnknown, 2, false) == "[..]");
    CHECK(contains(count_status("evaluating", 5, 10, "pairs", 12, 80, false), "5 of 10 pairs  ETA 12 s"));
}

TEST_CASE("lines go above the status, and the status is removed at the end") {
    Captured pipe;
    {
        Terminal terminal(pipe.ends[1], true, false, 80);
        terminal.status("one\ntwo");
        CHECK(pipe.read() == "one\ntwo");
        terminal.line("talk");
        CHECK(pipe.read() == "\r\x1b[A\x1b[Jtalk\none\ntwo");
        const Log log = make_log(terminal, false);
        log->warn("careful {}", 1);
        CHECK(pipe.read() == "\r\x1b[A\x1b[Jwarning: careful 1\none\ntwo");
        terminal.status("three");
        CHECK(pipe.read() == "\r\x1b[A\x1b[Jthree");
    }
    CHECK(pipe.read() == "\r\x1b[J");
}

TEST_CASE("no terminal: no status; quiet: warnings only") {
    Captured pipe;
    Terminal terminal(pipe.ends[1], false, false, 80);
    Progress progress(terminal, false);
    progress.step(example());
    CHECK(pipe.read() == step_line(example()) + "\n");
    progress.count("evaluating", 0, 5, "pairs");
    terminal.status("nothing");
    const Log log = make_log(terminal, true);
    log->info("hidden");
    Progress(terminal, true).step(example());
    log->warn("shown");
    CHECK(pipe.read() == "warning: shown\n");
}

TEST_CASE("numbers for people") {
    CHECK(with_commas(1234567) == "1,234,567");
    CHECK(with_commas(-1234) == "-1,234");
    CHECK(with_commas(999) == "999");
    CHECK(human_bytes(1.9e9) == "1.90 GB");
    CHECK(human_bytes(900) == "900 B");
    CHECK(human_seconds(4.1) == "4.1 s");
    CHECK(human_seconds(200) == "3 min 20 s");
    CHECK(human_seconds(3720) == "1 h 02 min");
}

TEST_CASE("did you mean") {
    CHECK(edit_distance("abcd", "acbd") == 1);
    CHECK(edit_distance("kitten", "sitting") == 3);
    CHECK(nearest("trian", {"train", "eval"}) == "train");
    CHECK(nearest("LORA_RANK", {"lora-alpha", "lora-rank"}) == "lora-rank");
    CHECK(nearest("xyzzy", {"train", "eval"}).empty());
    CHECK(nearest("", {"train"}).empty());
}
