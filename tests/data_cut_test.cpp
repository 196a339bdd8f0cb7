// Cutting to max_length: nothing ends empty, nothing is too long, whatever the lengths.
#include <random>
#include <set>

#include "data/tokenise.h"
#include "tests/data_test.h"

using namespace orpo;

namespace {

PreferencePair pair_of(int64_t prompt, int64_t chosen, int64_t rejected, int32_t chosen_tail = 0,
                       int32_t rejected_tail = 0) {
    PreferencePair pair;
    for (int64_t i = 0; i < prompt; ++i) pair.prompt.push_back(static_cast<int32_t>(i));
    for (int64_t i = 0; i < chosen; ++i) pair.chosen.push_back(static_cast<int32_t>(10000 + i));
    for (int64_t i = 0; i < rejected; ++i) pair.rejected.push_back(static_cast<int32_t>(20000 + i));
    pair.chosen_tail = chosen_tail;
    pair.rejected_tail = rejected_tail;
    return pair;
}

int64_t length(const std::vector<int32_t>& ids) { return static_cast<int64_t>(ids.size()); }

}  // namespace

TEST_CASE("fit: 200,000 random lengths") {
    std::mt19937 random(7);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint32_t>(n)); };
    int64_t cut = 0;
    for (int trial = 0; trial < 200000; ++trial) {
        const int max_length = static_cast<int>(2 + below(trial % 2 == 0 ? 12 : 300));
        const int32_t tails = static_cast<int32_t>(max_tail(max_length));
        const int32_t chosen_tail = static_cast<int32_t>(below(tails + 1)),
                      rejected_tail = static_cast<int32_t>(below(tails + 1));
        const PreferencePair before = pair_of(1 + below(400), chosen_tail + 1 + below(400),
                                              rejected_tail + 1 + below(400), chosen_tail, rejected_tail);
        PreferencePair pair = before;
        int64_t tokens_cut = 0;
        const Remarks remarks = cut_to_fit(pair, max_length, &tokens_cut);
        const bool fits =
            length(before.prompt) + std::max(length(before.chosen), length(before.rejected)) <= max_length;
        const bool sound =
            length(pair.prompt) >= 1 && length(pair.chosen) > pair.chosen_tail &&
            length(pair.rejected) > pair.rejected_tail && length(pair.prompt) + length(pair.chosen) <= max_length &&
            length(pair.prompt) + length(pair.rejected) <= max_length &&
            length(pair.prompt) >= std::min<int64_t>(length(before.prompt), (max_length + 3) / 4) &&
            std::equal(pair.prompt.rbegin(), pair.prompt.rend(), before.prompt.rbegin()) &&  // the end stays
            std::equal(pair.chosen.begin(), pair.chosen.end(), before.chosen.begin()) &&     // the start stays
            std::equal(pair.rejected.begin(), pair.rejected.end(), before.rejected.begin()) &&
            tokens_cut == before.tokens() - pair.tokens() && remarks.empty() == fits && (pair == before) == fits &&
            remarks.has(Remark::kPromptCut) == (pair.prompt != before.prompt) &&
            remarks.has(Remark::kChosenCut) == (pair.chosen != before.chosen) &&
            remarks.has(Remark::kRejectedCut) == (pair.rejected != before.rejected);
        cut += !fits;
        if (!sound) {
            CAPTURE(max_length);
            CAPTURE(before.prompt.size());
            CAPTURE(before.chosen.size());
            CAPTURE(before.rejected.size());
            FAIL("not sound");
        }
    }
    CHECK(cut > 50000);
}

TEST_CASE("fit: the prompt gives first, down to a quarter, then the answers") {
    int64_t cut = 0;
    PreferencePair pair = pair_of(900, 200, 100);
    cut_to_fit(pair, 1024, &cut);
    CHECK(pair.prompt.size() == 824);
    CHECK(pair.prompt.front() == 76);
    CHECK(pair.chosen.size() == 200);
    pair = pair_of(900, 1000, 100);
    cut_to_fit(pair, 1024, &cut);
    CHECK(pair.prompt.size() == 256);
    CHECK(pair.chosen.size() == 768);
    CHECK(pair.rejected.size() == 100);
    pair = pair_of(100, 1024, 300);
    cut_to_fit(pair, 1024, &cut);
    CHECK(pair.prompt.size() == 100);
    CHECK(pair.chosen.size() == 924);
}

TEST_CASE("LLaMA-Factory's proportions") {
    int64_t prompt = 0, answer = 0;
    proportional_lengths(100, 1000, 1024, &prompt, &answer);
    CHECK(prompt == 100);
    CHECK(answer == 924);
    proportional_lengths(2000, 100, 1024, &prompt, &answer);
    CHECK(prompt == 924);
    CHECK(answer == 100);
    proportional_lengths(1000, 3000, 1024, &prompt, &answer);
    CHECK(prompt == 256);
    CHECK(answer == 768);
    for (int64_t p : {1, 5, 1000000})
        for (int64_t a : {1, 5, 1000000})
            for (int64_t limit : {2, 3, 10, 1024}) {
                proportional_lengths(p, a, limit, &prompt, &answer);
                CHECK(prompt >= 1);
                CHECK(answer >= 1);
                CHECK(prompt <= p);
                CHECK(prompt + answer <= limit);
            }
}

TEST_CASE("rows of random text under every semantics and limit: whole pairs only") {
    const Tokenizer tokenizer = small_tokenizer();
    std::mt19937 random(11);
    const std::vector<std::string> words = {"ab", "c", " the", "\\n", "  ", "1", "é", "<|im_end|>", "x", "", "th", "e"};
    const auto text = [&](int most) {
        std::string out;
        for (int n = static_cast<int>(random() % static_cast<uint32_t>(most)); n > 0; --n)
            out += words[random() % words.size()];
        return out;
    };
    std::string rows;
    for (int i = 0; i < 400; ++i) {
        const std::string p = text(30), c = text(40), r = text(40);
        const auto message = [](const std::string& role, const std::string& t) {
            return R"({"role":")" + role + R"(","content":")" + t + "\"}";
        };
        switch (i % 4) {
            case 0:
                rows += R"({"prompt":")" + p + R"(","chosen":")" + c + R"(","rejected":")" + r + "\"}\n";
                break;
            case 1:
                rows += R"({"chosen":")" + p + c + R"(","rejected":")" + p + r + "\"}\n";
                break;
            case 2:
                rows += R"({"prompt":[)" + message("user", p) + R"(],"chosen":[)" + message("assistant", c) +
                        R"(],"rejected":[)" + message("assistant", r) + "]}\n";
                break;
            default:
                rows += R"({"chosen":[)" + message("user", p) + "," + message("assistant", c) + R"(],"rejected":[)" +
                        message("user", p) + "," + message("assistant", r) + "]}\n";
        }
    }
    for (const Semantics semantics : {Semantics::kOrpo, Semantics::kTrl, Semantics::kPaper, Semantics::kLlamaFactory})
        for (const SpecialText special : {SpecialText::kParse, SpecialText::kLiteral})
            for (const int max_length : {8, 17, 33, 64, 100, 1000}) {
                DataOptions options;
                options.semantics = semantics;
                options.special = special;
                options.max_length = max_length;
                options.bad_row = BadRow::kSkip;
                options.chat_template = ChatTemplate::kChatml;
                CAPTURE(semantics_name(semantics));
                CAPTURE(max_length);
                Dataset set;
                try {
                    set = parse_dataset(rows, "rows", tokenizer, options);
                } catch (const Error& e) {  // nothing fits: said so
                    CHECK(static_cast<int>(e.exit()) == 3);
                    continue;
                }
                for (const PreferencePair& pair : set.pairs) {
                    const bool sound =
                        !pair.prompt.empty() && length(pair.chosen) > pair.chosen_tail &&
                        length(pair.rejected) > pair.rejected_tail &&
                        length(pair.prompt) + std::max(length(pair.chosen), length(pair.rejected)) <= max_length;
                    CHECK(sound);
                }
                const DataReport& r = set.report;
                std::set<int64_t> gone;
                for (const Remark remark : {Remark::kBadRow, Remark::kDroppedEmpty, Remark::kDroppedTooLong})
                    gone.insert(r.lines[static_cast<int>(remark)].begin(), r.lines[static_cast<int>(remark)].end());
                for (const PreferencePair& pair : set.pairs) CHECK(gone.count(pair.line) == 0);
                CHECK(r.pairs == static_cast<int64_t>(set.pairs.size()));
                if (semantics == Semantics::kOrpo) CHECK(set.pairs.size() > 250);
            }
}
