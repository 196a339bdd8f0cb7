// --semantics trl against TRL 1.16's own tokens (tools/make_data_golden.py).
#include <simdjson.h>

#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>

#include "base/hash.h"
#include "base/io.h"
#include "data/render.h"
#include "data/rows.h"
#include "data/tokenise.h"
#include "tests/data_test.h"

using namespace orpo;
using nlohmann::json;

namespace {

Tokenizer variant(GgufTokenizerFields fields, bool base) {
    if (base) fields.bos = fields.eos = fields.pad = 0;
    return Tokenizer::load(source_of(std::make_shared<GgufTokenizerFields>(std::move(fields))));
}

DataOptions trl_options(bool base, int max_length) {
    DataOptions options;
    options.semantics = Semantics::kTrl;
    options.chat_template = base ? ChatTemplate::kNone : ChatTemplate::kSmolLM2;
    options.max_length = max_length;
    options.bad_row = BadRow::kSkip;
    options.threads = 2;
    return options;
}

// prompt length, length, ids of one side
std::vector<int32_t> side(const PreferencePair& pair, bool chosen) {
    const std::vector<int32_t>& answer = chosen ? pair.chosen : pair.rejected;
    std::vector<int32_t> out = {
        static_cast<int32_t>(pair.prompt.size()) + (chosen ? pair.chosen_tail : pair.rejected_tail),
        static_cast<int32_t>(pair.prompt.size() + answer.size())};
    out.insert(out.end(), pair.prompt.begin(), pair.prompt.end());
    out.insert(out.end(), answer.begin(), answer.end());
    return out;
}

std::string hash_of(const PreferencePair& pair) {
    std::string bytes;
    for (const bool chosen : {true, false})
        for (const int32_t value : side(pair, chosen))
            for (int shift = 0; shift < 32; shift += 8)
                bytes.push_back(static_cast<char>(static_cast<uint32_t>(value) >> shift));
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(fnv1a(bytes)));
    return hex;
}

std::vector<int32_t> expected_side(const json& row, size_t at) {
    std::vector<int32_t> out = {row[at + 1].get<int32_t>(), static_cast<int32_t>(row[at].size())};
    for (const json& id : row[at]) out.push_back(id.get<int32_t>());
    return out;
}

}  // namespace

TEST_CASE("every shape and quirk: TRL's two sequences and where their responses begin") {
    const auto fields = real_tokenizer_fields();
    if (fields == nullptr) return;
    const json golden = json::parse(io::read_file(test_file("golden/data/trl.json"), 1 << 24));
    const std::string rows = io::read_file(test_file("golden/data/rows.jsonl"), 1 << 24);
    REQUIRE(golden["cases"].size() == 3);
    for (const json& expected : golden["cases"]) {
        const bool base = expected["model"] == "base";
        const int max_length = expected["max_length"];
        CAPTURE(base);
        CAPTURE(max_length);
        const Dataset set = parse_dataset(rows, "rows.jsonl", variant(*fields, base), trl_options(base, max_length));
        size_t next = 0, defined = 0;
        for (size_t i = 0; i < expected["rows"].size(); ++i) {
            const json& row = expected["rows"][i];
            const int64_t line = static_cast<int64_t>(i) + 1;
            CAPTURE(line);
            const bool there = next < set.pairs.size() && set.pairs[next].line == line;
            CHECK(there == !row.is_null());
            if (!there) continue;
            const PreferencePair& pair = set.pairs[next++];
            if (row.is_null()) continue;
            ++defined;
            CHECK(side(pair, true) == expected_side(row, 0));
            CHECK(side(pair, false) == expected_side(row, 2));
        }
        CHECK(next == set.pairs.size());
        CHECK(defined >= (base ? 50 : 55));
    }
}

TEST_CASE("real data: TRL's tokens, row by row") {
    const auto fields = real_tokenizer_fields();
    if (fields == nullptr) return;
    const json golden = json::parse(io::read_file(test_file("golden/data/trl.json"), 1 << 24));
    const Tokenizer tokenizer = variant(*fields, false);
    for (const json& expected : golden["files"]) {
        const std::string name = expected["file"];
        const auto path = shared_file(name);
        if (!path) {
            MESSAGE("skipped: no " << name << " (ORPO_TEST_SHARED)");
            continue;
        }
        const Dataset set = load_dataset(*path, tokenizer, trl_options(false, expected["max_length"]));
        std::vector<std::string> hashes(expected["rows"].size());
        for (const PreferencePair& pair : set.pairs) hashes.at(static_cast<size_t>(pair.line) - 1) = hash_of(pair);
        int64_t wrong = 0;
        for (size_t i = 0; i < hashes.size(); ++i) {
            if (hashes[i] == expected["rows"][i]) continue;
            if (++wrong <= 5) MESSAGE(name << ":" << i + 1 << " differs");
        }
        CHECK(wrong == 0);
        CHECK(set.pairs.size() > 10);
    }
}

TEST_CASE("docs/data-formats.md: twelve rows are one pair; what the others become") {
    const auto fields = real_tokenizer_fields();
    if (fields == nullptr) return;
    DataOptions options;
    options.chat_template = ChatTemplate::kSmolLM2;
    const std::string rows = io::read_file(test_file("../docs/data-formats.jsonl"), 1 << 20);
    const Dataset set = parse_dataset(rows, "data-formats.jsonl", variant(*fields, false), options);
    REQUIRE(set.pairs.size() == 18);
    for (size_t i = 1; i < 12; ++i) {
        CAPTURE(i);
        CHECK(set.pairs[i].prompt == set.pairs[0].prompt);
        CHECK(set.pairs[i].chosen == set.pairs[0].chosen);
        CHECK(set.pairs[i].rejected == set.pairs[0].rejected);
    }
    CHECK(set.report.count(Remark::kDuplicate) == 11);
    const std::vector<std::array<size_t, 3>> tokens = {{8, 6, 3},  {37, 7, 4},  {23, 7, 4},
                                                       {52, 7, 4}, {33, 28, 4}, {36, 6, 3}};
    for (size_t i = 0; i < tokens.size(); ++i) {
        const PreferencePair& pair = set.pairs[12 + i];
        CHECK(std::array<size_t, 3>{pair.prompt.size(), pair.chosen.size(), pair.rejected.size()} == tokens[i]);
    }
    for (const auto& [line, remark] : {std::pair{13, Remark::kImplicitPrompt},
                                       {15, Remark::kSystemUsed},
                                       {17, Remark::kSeveralTurns},
                                       {18, Remark::kContinued}})
        CHECK(set.remarks[static_cast<size_t>(line) - 1].has(remark));
}
