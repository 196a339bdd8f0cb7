#include "data/dataset.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <numeric>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/philox.h"
#include "data/json_fault.h"
#include "data/rows.h"
#include "data/tokenise.h"

namespace orpo {
namespace {

constexpr uint64_t kMaxFile = uint64_t{16} << 30;
enum Stream : uint32_t { kOrderStream = 0x6f726465, kHoldOutStream = 0x686f6c64 };  // keeps random uses apart

// What became of one row, filled by whichever thread took it.
struct RowResult {
    Tokenised row;
    uint64_t prompt_key = 0, pair_key = 0;
    std::string fault;  // not empty: the row is bad
};

std::string fault_text(const RowFile& file, const RowSlice& slice, const RowFault& fault) {
    std::string where = place(file, slice);
    if (fault.offset) {
        const size_t at = slice.begin + *fault.offset;
        const std::string_view before = std::string_view(file.bytes).substr(slice.begin, *fault.offset);
        where = fmt::format("{}:{}:{}", file.name, slice.line + std::count(before.begin(), before.end(), '\n'),
                            column_of(file.bytes, at));
    }
    if (!fault.field.empty()) where += ": " + fault.field;
    return where + ": " + fault.what();
}

Rendered render(const Row& row, const Tokenizer& tokenizer, const EndTokens& ends, const DataOptions& options) {
    switch (options.semantics) {
        case Semantics::kOrpo:
            return render_row(row, options.chat_template, options.special);
        case Semantics::kTrl:
            return render_row_trl(row, options.chat_template);
        case Semantics::kPaper:
            return render_row_paper(row, options.chat_template, tokenizer.token_bytes(ends.eos));
        case Semantics::kLlamaFactory:
            return render_row_llamafactory(row, options.chat_template);
    }
    ORPO_CHECK(false);
    return {};
}

RowResult read_row(const RowFile& file, const RowSlice& slice, const Tokenizer& tokenizer, const EndTokens& ends,
                   const RowShape& shape, const DataOptions& options, simdjson::dom::parser& parser,
                   std::set<std::string>& ignored) {
    RowResult result;
    try {
        const Row row = parse_row(file.text(slice), shape, parser, ignored);
        const Rendered rendered = render(row, tokenizer, ends, options);
        if (rendered.drop) {
            result.row.drop = true;
        } else {
            result.row = tokenise_row(rendered, tokenizer, ends, options);
            const std::string_view chosen(rendered.chosen.text), rejected(rendered.rejected.text);
            result.prompt_key = fnv1a(chosen.substr(0, rendered.prompt_bytes));
            result.pair_key = fnv1a(rejected, fnv1a(std::string_view("\0|", 2), fnv1a(chosen)));
        }
        result.row.remarks.add(rendered.remarks);
    } catch (const RowFault& fault) {
        result.fault = fault_text(file, slice, fault);
    }
    return result;
}

std::string advice(const DataOptions& options) {
    return options.bad_row == BadRow::kFail ? "; mend the row, or pass --on-bad-row skip to leave such rows out" : "";
}

// Every row on its own, so the number of threads changes nothing.
std::vector<RowResult> read_rows(const RowFile& file, const Tokenizer& tokenizer, const DataOptions& options,
                                 std::set<std::string>& ignored) {
    const EndTokens ends(tokenizer);
    const RowShape shape{options.columns, options.semantics == Semantics::kTrl, options.semantics == Semantics::kPaper};
    std::vector<RowResult> results(file.rows.size());
    std::atomic<size_t> next{0};
    constexpr size_t kChunk = 64;
    const size_t threads =
        std::clamp<size_t>(static_cast<size_t>(std::max(options.threads, 1)), 1, 1 + file.rows.size() / kChunk);
    std::vector<std::set<std::string>> ignored_by(threads);
    std::vector<std::exception_ptr> failures(threads);
    const auto work = [&](size_t self) {
        try {
            simdjson::dom::parser parser;
            for (size_t from = next.fetch_add(kChunk); from < results.size(); from = next.fetch_add(kChunk))
                for (size_t i = from; i < std::min(from + kChunk, results.size()); ++i)
                    results[i] =
                        read_row(file, file.rows[i], tokenizer, ends, shape, options, parser, ignored_by[self]);
        } catch (...) {
            failures[self] = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    for (size_t t = 1; t < threads; ++t) pool.emplace_back(work, t);
    work(0);
    for (std::thread& thread : pool) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
    for (std::set<std::string>& names : ignored_by) ignored.merge(names);
    return results;
}

// Several elements of an array on one line: then items are what tells rows apart.
bool count_by_item(const RowFile& file) {
    for (size_t i = 1; i < file.rows.size(); ++i)
        if (file.rows[i].item > 0 && file.rows[i].line == file.rows[i - 1].line) return true;
    return false;
}

void append(Dataset& set, PreferencePair pair, uint64_t prompt_key, Remarks remarks) {
    set.report.add(pair.line, remarks);
    ++set.report.pairs;
    set.pairs.push_back(std::move(pair));
    set.prompt_keys.push_back(prompt_key);
    set.remarks.push_back(remarks);
}

}  // namespace

Dataset parse_dataset(std::string bytes, const std::string& name, const Tokenizer& tokenizer,
                      const DataOptions& options) {
    if (options.max_length < 2)
        throw Error(Exit::kUsage, "--max-length must be at least 2: one prompt and one answer token");
    Dataset set;
    set.name = name;
    set.fingerprint = sha256_hex(bytes);
    const RowFile file = cut_rows(std::move(bytes), name);
    std::set<std::string> ignored;
    std::vector<RowResult> results = read_rows(file, tokenizer, options, ignored);
    const bool items = count_by_item(file);
    std::unordered_set<uint64_t> seen;
    set.report.rows = static_cast<int64_t>(results.size());
    for (size_t i = 0; i < results.size(); ++i) {
        RowResult& result = results[i];
        const int64_t line = items ? file.rows[i].item : file.rows[i].line;
        if (!result.fault.empty()) {
            if (options.bad_row == BadRow::kFail) throw Error(Exit::kBadData, result.fault + advice(options));
            set.report.add(line, Remark::kBadRow);
            set.report.bad_rows.emplace_back(line, result.fault);
            continue;
        }
        Tokenised& row = result.row;
        if (row.drop) {
            if (options.truncation == Truncation::kError && row.remarks.has(Remark::kDroppedTooLong))
                throw Error(Exit::kBadData, place(file, file.rows[i]) + ": longer than max-length " +
                                                std::to_string(options.max_length) +
                                                ", and --truncation error allows no cut; raise --max-length, or pass "
                                                "--truncation fit or drop");
            set.report.add(line, row.remarks);
            continue;
        }
        row.pair.line = line;
        if (row.pair.chosen == row.pair.rejected && row.pair.chosen_tail == row.pair.rejected_tail)
            row.remarks.add(Remark::kEqualAnswers);
        if (!seen.insert(result.pair_key).second) row.remarks.add(Remark::kDuplicate);
        set.report.tokens_cut += row.tokens_cut;
        append(set, std::move(row.pair), result.prompt_key, row.remarks);
    }
    if (items) set.report.notes.push_back("the file is one JSON array on one line; \"lines\" are its items, from 1");
    if (!ignored.empty())
        set.report.notes.push_back(fmt::format("columns that are not used: {}", fmt::join(ignored, ", ")));
    if (set.pairs.empty())
        throw Error(Exit::kBadData, name + ": no pair is left of its " + std::to_string(set.report.rows) +
                                        (set.report.rows == 1 ? " row:\n" : " rows:\n") + report_text(set.report));
    return set;
}

Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options) {
    const bool input = path == "-";
    if (!input && io::is_directory(path))
        throw Error(Exit::kBadData, path + ": this is a directory; name a JSON Lines file of preference pairs");
    return parse_dataset(io::read_file(input ? "/dev/stdin" : path, kMaxFile), input ? "standard input" : path,
                         tokenizer, options);
}

Split hold_out(Dataset all, uint64_t seed) {
    constexpr int64_t kLeast = 100, kMost = 200, kShare = 20;
    const int64_t n = static_cast<int64_t>(all.pairs.size());
    Split split;
    std::unordered_map<uint64_t, int64_t> sizes;
    for (const uint64_t key : all.prompt_keys) ++sizes[key];
    std::unordered_set<uint64_t> held;
    if (n >= kLeast && sizes.size() > 1) {
        const int64_t goal = std::min(n / kShare, kMost);
        std::vector<std::pair<uint64_t, uint64_t>> order;  // random number of a prompt, prompt
        for (const auto& [key, size] : sizes) {
            const PhiloxCounter r =
                philox(seed, {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), 0, kHoldOutStream});
            order.emplace_back(uint64_t{r[0]} << 32 | r[1], key);
        }
        std::sort(order.begin(), order.end());
        int64_t taken = 0;
        for (const auto& [random, key] : order) {
            if (taken + sizes[key] > goal) continue;
            taken += sizes[key];
            held.insert(key);
        }
    }
    split.train.name = split.eval.name = all.name;
    split.train.fingerprint = split.eval.fingerprint = all.fingerprint;
    split.train.report.rows = all.report.rows;
    split.train.report.bad_rows = all.report.bad_rows;
    split.train.report.notes = all.report.notes;
    split.train.report.tokens_cut = all.report.tokens_cut;
    for (const Remark remark :
         {Remark::kBadRow, Remark::kDroppedTooLong, Remark::kDroppedEmpty, Remark::kNeverDiverges})
        split.train.report.lines[static_cast<int>(remark)] = all.report.lines[static_cast<int>(remark)];
    std::vector<int64_t>& diverge = split.train.report.lines[static_cast<int>(Remark::kNeverDiverges)];
    for (size_t i = 0; i < all.pairs.size(); ++i)  // those that became pairs are counted with them
        if (all.remarks[i].has(Remark::kNeverDiverges)) std::erase(diverge, all.pairs[i].line);
    for (size_t i = 0; i < all.pairs.size(); ++i)
        append(held.count(all.prompt_keys[i]) > 0 ? split.eval : split.train, std::move(all.pairs[i]),
               all.prompt_keys[i], all.remarks[i]);
    std::sort(diverge.begin(), diverge.end());
    split.eval.report.rows = split.eval.report.pairs;
    return split;
}

int64_t mark_leaks(Dataset& train, const Dataset& eval) {
    const std::unordered_set<uint64_t> prompts(eval.prompt_keys.begin(), eval.prompt_keys.end());
    int64_t leaks = 0;
    for (size_t i = 0; i < train.pairs.size(); ++i) {
        if (prompts.count(train.prompt_keys[i]) == 0 || train.remarks[i].has(Remark::kPromptInEval)) continue;
        train.remarks[i].add(Remark::kPromptInEval);
        train.report.add(train.pairs[i].line, Remark::kPromptInEval);
        ++leaks;
    }
    return leaks;
}

std::vector<int32_t> epoch_order(int64_t n, uint64_t seed, int64_t epoch) {
    ORPO_CHECK(n >= 0 && n <= INT32_MAX);
    std::vector<std::pair<uint64_t, int32_t>> keys(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i) {
        const PhiloxCounter r = philox(seed, {static_cast<uint32_t>(i), static_cast<uint32_t>(epoch),
                                              static_cast<uint32_t>(epoch >> 32), kOrderStream});
        keys[static_cast<size_t>(i)] = {uint64_t{r[0]} << 32 | r[1], i};
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int32_t> order(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) order[i] = keys[i].second;
    return order;
}

}  // namespace orpo
