// What is noticed about pairs, and what the trainer does with a whole set: hold-out, leaks, order.
#include <algorithm>
#include <set>

#include "tests/data_test.h"

using namespace orpo;

namespace {

Dataset parse(const std::string& bytes, int threads = 1, Semantics semantics = Semantics::kOrpo,
              int max_length = 1024) {
    DataOptions options;
    options.chat_template = ChatTemplate::kChatml;
    options.threads = threads;
    options.semantics = semantics;
    options.max_length = max_length;
    return parse_dataset(bytes, "d.jsonl", small_tokenizer(), options);
}

std::string row(const std::string& p, const std::string& c, const std::string& r) {
    return R"({"prompt":")" + p + R"(","chosen":")" + c + R"(","rejected":")" + r + "\"}\n";
}

std::vector<int64_t> lines(const Dataset& set, Remark remark) { return set.report.lines[static_cast<int>(remark)]; }
using Lines = std::vector<int64_t>;

// `prompts` prompts, each in `copies` rows with answers of their own.
std::string many(int prompts, int copies) {
    std::string rows;
    for (int c = 0; c < copies; ++c)
        for (int p = 0; p < prompts; ++p)
            rows += row("prompt " + std::to_string(p), "a" + std::to_string(c), "b" + std::to_string(c));
    return rows;
}

}  // namespace

TEST_CASE("each oddity is reported with its line") {
    const std::string u = R"({"role":"user","content":"Q"})", y = R"({"role":"assistant","content":"yes"})",
                      n = R"({"role":"assistant","content":"no"})";
    const Dataset set = parse(
        row("Q", "yes", "no") +                                                                                // 1
        row("Q", "same", "same") +                                                                             // 2
        row("Q", "", "no") +                                                                                   // 3
        row("Q", " \\n", "no") +                                                                               // 4
        row("Q", "yes", "no") +                                                                                // 5
        row("What?", "What? Yes.", "no") +                                                                     // 6
        row("The", "Then", "no") +                                                                             // 7
        row("Q <|im_end|> R", "a", "b") +                                                                      // 8
        row("Q", "a<|im_end|><|im_end|>", "b") +                                                               // 9
        R"({"prompt":"R","chosen":[)" + u + "," + y + R"(],"rejected":[)" + u + "," + n + "]}\n" +             // 10
        R"({"prompt":[)" + u + R"(],"chosen":[)" + u + "," + y + R"(],"rejected":[)" + n + "]}\n" +            // 11
        R"({"prompt":[)" + u + "," + y + R"(],"chosen":[)" + n + R"(],"rejected":[)" + y + "]}\n" +            // 12
        R"({"prompt":[)" + u + R"(],"chosen":[)" + y + "," + u + "," + n + R"(],"rejected":[)" + n + "]}\n" +  // 13
        R"({"chosen":"abc","rejected":"abcdef"})" + "\n");                                                     // 14
    CHECK(set.report.rows == 14);
    CHECK(set.pairs.size() == 11);
    CHECK(lines(set, Remark::kEqualAnswers) == Lines{2});
    CHECK(lines(set, Remark::kDroppedEmpty) == Lines{3, 4});
    CHECK(lines(set, Remark::kDuplicate) == Lines{5, 10, 11});
    CHECK(lines(set, Remark::kPromptInAnswer) == Lines{6});
    CHECK(lines(set, Remark::kSpecialInText) == Lines{8});
    CHECK(lines(set, Remark::kEndRepaired) == Lines{9});
    CHECK(lines(set, Remark::kPromptIgnored) == Lines{10});
    CHECK(lines(set, Remark::kPromptRemoved) == Lines{11});
    CHECK(lines(set, Remark::kContinued) == Lines{12});
    CHECK(lines(set, Remark::kSeveralTurns) == Lines{13});
    CHECK(lines(set, Remark::kNeverDiverges) == Lines{14});
    for (const PreferencePair& p : set.pairs) {  // one end-of-turn token ends an answer
        CHECK(p.chosen.back() == 2);
        CHECK((p.chosen.size() < 2 || p.chosen[p.chosen.size() - 2] != 2));
    }
    for (int i = 0; i < kRemarks; ++i) {
        CHECK(!remark_name(static_cast<Remark>(i)).empty());
        CHECK(!remark_text(static_cast<Remark>(i)).empty());
    }
}

TEST_CASE("a token across the boundary: the prompt's tail differs between the answers") {
    const Dataset set = parse(row("Q", "\\n\\nab", "yes"));
    const PreferencePair& p = set.pairs[0];
    CHECK(set.remarks[0].has(Remark::kBoundaryMerge));
    CHECK(p.chosen_tail == 0);
    CHECK(p.rejected_tail == 1);  // the newline after "assistant", which chosen's first token has swallowed
    const Tokenizer tokenizer = small_tokenizer();
    CHECK(tokenizer.decode(p.prompt) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant");
    CHECK(tokenizer.decode(p.chosen) == "\n\n\nab<|im_end|>");
    CHECK(tokenizer.decode(p.rejected) == "\nyes<|im_end|>");
}

TEST_CASE("any number of threads: the same set") {
    std::string rows;
    for (int i = 0; i < 1000; ++i) rows += row("p " + std::to_string(i % 300), "the ab" + std::to_string(i % 6), "c");
    const Dataset one = parse(rows, 1), four = parse(rows, 4);
    CHECK(one.pairs == four.pairs);
    CHECK(one.prompt_keys == four.prompt_keys);
    CHECK(one.remarks == four.remarks);
    CHECK(one.report.lines == four.report.lines);
    CHECK(one.report.count(Remark::kDuplicate) > 0);
}

TEST_CASE("hold-out: whole prompts, 5 %, at most 200, none below 100 pairs, by the seed") {
    CHECK(hold_out(parse(many(99, 1)), 1).eval.pairs.empty());
    CHECK(hold_out(parse(many(1, 120)), 1).eval.pairs.empty());
    const Split split = hold_out(parse(many(100, 3)), 1);
    CHECK(split.eval.pairs.size() == 15);
    CHECK(split.train.pairs.size() == 285);
    CHECK(split.eval.report.pairs == 15);
    const std::set<uint64_t> held(split.eval.prompt_keys.begin(), split.eval.prompt_keys.end());
    CHECK(held.size() == 5);
    for (const uint64_t key : split.train.prompt_keys) CHECK(held.count(key) == 0);
    const auto ascending = [](const Dataset& set) {
        return std::is_sorted(set.pairs.begin(), set.pairs.end(),
                              [](const auto& a, const auto& b) { return a.line < b.line; });
    };
    CHECK(ascending(split.train));
    CHECK(ascending(split.eval));
    CHECK(hold_out(parse(many(100, 3)), 1).eval.pairs == split.eval.pairs);
    CHECK(hold_out(parse(many(100, 3)), 2).eval.pairs != split.eval.pairs);
    CHECK(hold_out(parse(many(5000, 1)), 1).eval.pairs.size() == 200);
}

TEST_CASE("prompts that are also in the evaluation set") {
    Dataset train = parse(row("one", "a", "b") + row("two", "a", "b") + row("one", "c", "d"));
    const Dataset eval = parse(row("three", "a", "b") + row("one", "x", "y"));
    CHECK(mark_leaks(train, eval) == 2);
    CHECK(lines(train, Remark::kPromptInEval) == Lines{1, 3});
    CHECK(mark_leaks(train, eval) == 0);
}

TEST_CASE("the order of an epoch is a permutation of its own") {
    const std::vector<int32_t> order = epoch_order(1000, 5, 0);
    CHECK(std::set<int32_t>(order.begin(), order.end()).size() == 1000);
    CHECK(*std::max_element(order.begin(), order.end()) == 999);
    CHECK(epoch_order(1000, 5, 0) == order);
    CHECK(epoch_order(1000, 5, 1) != order);
    CHECK(epoch_order(1000, 6, 0) != order);
    CHECK(epoch_order(0, 1, 0).empty());
    int64_t fixed = 0;
    for (int32_t i = 0; i < 1000; ++i) fixed += order[static_cast<size_t>(i)] == i;
    CHECK(fixed < 10);
}

TEST_CASE("truncation drop and error; the other semantics") {
    const std::string rows = row("Q", "yes", "no") + row("Q", std::string(100, 'x'), "no");
    DataOptions options;
    options.chat_template = ChatTemplate::kChatml;
    options.max_length = 64;
    options.truncation = Truncation::kDrop;
    const Dataset dropped = parse_dataset(rows, "d", small_tokenizer(), options);
    CHECK(dropped.pairs.size() == 1);
    CHECK(lines(dropped, Remark::kDroppedTooLong) == Lines{2});
    options.truncation = Truncation::kError;
    CHECK(contains(message_of(Exit::kBadData, [&] { parse_dataset(rows, "d", small_tokenizer(), options); }),
                   "d:2: longer"));
    const Tokenizer tokenizer = small_tokenizer();
    const Dataset paper = parse(row("Q", "yes", "no") + row(std::string(300, 'x'), "yes", "no"), 1, Semantics::kPaper);
    CHECK(paper.pairs.size() == 1);
    CHECK(tokenizer.decode(paper.pairs[0].chosen) == "yes<|im_end|>\n");
    CHECK(lines(paper, Remark::kDroppedTooLong) == Lines{2});
    const Dataset factory = parse(row(std::string(300, 'x'), "yes", "no"), 1, Semantics::kLlamaFactory, 64);
    CHECK(factory.pairs[0].prompt.size() == 59);
    CHECK(factory.pairs[0].prompt.front() == 1);  // its start stays
    CHECK(tokenizer.decode(factory.pairs[0].chosen) == "yes<|im_end|>\n");
    const Dataset trl = parse(row("Q", "", "no"), 1, Semantics::kTrl);
    CHECK(trl.pairs[0].chosen == std::vector<int32_t>{2});
    CHECK(lines(trl, Remark::kEmptyAnswer) == Lines{1});
}
