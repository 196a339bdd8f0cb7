// orpo data: what will be trained on.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/dataset.h"
#include "model/weights.h"
#include "src/command.h"

namespace orpo {
namespace {

struct DataFlags {
    std::string data, eval, model, map;
    std::string semantics = "orpo", chat_template = "auto", special = "parse", truncation = "fit", on_bad_row = "fail";
    int max_length = 1024;
    int64_t show = 1;
};

DataOptions options_of(const DataFlags& flags, const Model& model, const Call& call) {
    DataOptions options;
    parse_semantics(flags.semantics, &options.semantics);
    parse_truncation(flags.truncation, &options.truncation);
    parse_bad_row(flags.on_bad_row, &options.bad_row);
    parse_special(flags.special, &options.special);
    options.chat_template = choose_template(flags.chat_template, model.chat_template, model.path);
    options.max_length = flags.max_length;
    options.columns = parse_map(flags.map);
    options.threads =
        call.common.threads > 0 ? call.common.threads : static_cast<int>(std::thread::hardware_concurrency());
    return options;
}

// Token counts of one part of every pair, sorted.
struct Lengths {
    const char* name;
    std::vector<int64_t> sorted;

    int64_t at(double share) const {  // nearest rank
        const size_t n = sorted.size();
        return sorted[std::min(n - 1, static_cast<size_t>(share * static_cast<double>(n)))];
    }
    double mean() const {
        double sum = 0;
        for (const int64_t n : sorted) sum += static_cast<double>(n);
        return sum / static_cast<double>(sorted.size());
    }
};

int64_t responses(const std::vector<int32_t>& answer, int32_t tail) {
    return static_cast<int64_t>(answer.size()) - tail;
}

std::vector<Lengths> lengths_of(const std::vector<PreferencePair>& pairs) {
    std::vector<Lengths> all = {{"prompt", {}}, {"chosen", {}}, {"rejected", {}}, {"longest", {}}};
    for (const PreferencePair& p : pairs) {
        all[0].sorted.push_back(static_cast<int64_t>(p.prompt.size()) + std::min(p.chosen_tail, p.rejected_tail));
        all[1].sorted.push_back(responses(p.chosen, p.chosen_tail));
        all[2].sorted.push_back(responses(p.rejected, p.rejected_tail));
        all[3].sorted.push_back(static_cast<int64_t>(p.prompt.size() + std::max(p.chosen.size(), p.rejected.size())));
    }
    for (Lengths& l : all) std::sort(l.sorted.begin(), l.sorted.end());
    return all;
}

// How far length alone tells chosen from rejected.
struct LengthBias {
    int64_t longer = 0, shorter = 0;
    double mean_gap = 0;
};
LengthBias bias_of(const std::vector<PreferencePair>& pairs) {
    LengthBias bias;
    for (const PreferencePair& p : pairs) {
        const int64_t gap = responses(p.chosen, p.chosen_tail) - responses(p.rejected, p.rejected_tail);
        bias.longer += gap > 0;
        bias.shorter += gap < 0;
        bias.mean_gap += static_cast<double>(gap) / static_cast<double>(pairs.size());
    }
    return bias;
}

std::string histogram(const std::vector<int64_t>& sorted) {
    constexpr int kBars = 8, kWidth = 40;
    const int64_t step = std::max<int64_t>(1, (sorted.back() + kBars) / kBars);
    std::vector<int64_t> counts(kBars);
    for (const int64_t n : sorted) ++counts[static_cast<size_t>(std::min<int64_t>(n / step, kBars - 1))];
    const int64_t most = *std::max_element(counts.begin(), counts.end());
    std::string out;
    for (int i = 0; i < kBars; ++i) {
        const int64_t count = counts[static_cast<size_t>(i)];
        const int bar = static_cast<int>((count * kWidth + most - 1) / most);
        out += fmt::format("{:>6} - {:<6} {:>7}  {}\n", i * step, (i + 1) * step - 1, count,
                           std::string(static_cast<size_t>(bar), '#'));
    }
    return out;
}

void show_part(std::string& out, const std::string& title, std::span<const int32_t> ids, const Tokenizer& tokenizer) {
    if (ids.empty()) return;
    out += fmt::format(
        "  {}\n    ids  {}\n    text {}\n", title, fmt::join(ids, " "),
        nlohmann::json(tokenizer.decode(ids)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string show_pair(const PreferencePair& pair, Remarks remarks, const Tokenizer& tokenizer) {
    std::string out =
        fmt::format("pair at line {}{}{}\n", pair.line, remarks.empty() ? "" : ": ", fmt::join(remarks.names(), ", "));
    show_part(out, fmt::format("prompt, shared: {} tokens", pair.prompt.size()), pair.prompt, tokenizer);
    const auto answer = [&](const char* name, const std::vector<int32_t>& ids, int32_t tail) {
        const std::span<const int32_t> all(ids);
        const size_t cut = static_cast<size_t>(tail);
        show_part(out, fmt::format("{}, end of its prompt: {} tokens", name, tail), all.first(cut), tokenizer);
        show_part(out, fmt::format("{}: {} tokens", name, ids.size() - cut), all.subspan(cut), tokenizer);
        out += fmt::format("    mask {} x 0 (prompt), {} x 1 (scored as the answer)\n", pair.prompt.size() + cut,
                           ids.size() - cut);
    };
    answer("chosen", pair.chosen, pair.chosen_tail);
    answer("rejected", pair.rejected, pair.rejected_tail);
    return out;
}

std::string text_report(const DataFlags& flags, const Dataset& set, const Model& model, const Tokenizer& tokenizer) {
    std::string out =
        fmt::format("{}: {} rows, {} pairs for {}\n", set.name, set.report.rows, set.pairs.size(), model.display_name);
    out += fmt::format("semantics {}, template {}, max-length {}, truncation {}, special {}\nsha256 {}\n\n",
                       flags.semantics,
                       template_name(choose_template(flags.chat_template, model.chat_template, model.path)),
                       flags.max_length, flags.truncation, flags.special, set.fingerprint);
    out += fmt::format("{:<10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>10}\n", "tokens", "least", "10 %", "median", "90 %",
                       "99 %", "most", "mean");
    const std::vector<Lengths> lengths = lengths_of(set.pairs);
    for (const Lengths& l : lengths)
        out += fmt::format("{:<10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>10.1f}\n", l.name, l.sorted.front(), l.at(0.1),
                           l.at(0.5), l.at(0.9), l.at(0.99), l.sorted.back(), l.mean());
    out += "\nprompt + longer answer, tokens and pairs\n" + histogram(lengths[3].sorted);
    const LengthBias bias = bias_of(set.pairs);
    const double n = static_cast<double>(set.pairs.size());
    out += fmt::format(
        "\nlength: chosen is longer in {:.0f} % of the pairs, shorter in {:.0f} %, by {:+.1f} tokens on average\n",
        100 * static_cast<double>(bias.longer) / n, 100 * static_cast<double>(bias.shorter) / n, bias.mean_gap);
    const std::string remarks = report_text(set.report);
    out += "\n" + (remarks.empty() ? "nothing was cut, dropped or odd\n" : remarks);
    if (set.report.tokens_cut > 0) out += fmt::format("{:>7}  tokens cut off in all\n", set.report.tokens_cut);
    for (size_t i = 0; i < std::min(static_cast<size_t>(flags.show), set.pairs.size()); ++i)
        out += "\n" + show_pair(set.pairs[i], set.remarks[i], tokenizer);
    return out;
}

nlohmann::ordered_json summary_of(const DataFlags& flags, const Dataset& set, const Model& model) {
    nlohmann::ordered_json s;
    s["data"] = set.name;
    s["sha256"] = set.fingerprint;
    s["model"] = model.display_name;
    s["semantics"] = flags.semantics;
    s["template"] = template_name(choose_template(flags.chat_template, model.chat_template, model.path));
    s["max_length"] = flags.max_length;
    s["truncation"] = flags.truncation;
    s["special"] = flags.special;
    s["rows"] = set.report.rows;
    s["pairs"] = set.pairs.size();
    s["tokens_cut"] = set.report.tokens_cut;
    for (const Lengths& l : lengths_of(set.pairs))
        s["tokens"][l.name] = {{"min", l.sorted.front()}, {"p10", l.at(0.1)},  {"median", l.at(0.5)},
                               {"p90", l.at(0.9)},        {"p99", l.at(0.99)}, {"max", l.sorted.back()},
                               {"mean", l.mean()}};
    const LengthBias bias = bias_of(set.pairs);
    s["length_bias"] = {{"chosen_longer", bias.longer}, {"chosen_shorter", bias.shorter}, {"mean_gap", bias.mean_gap}};
    s["actions"] = nlohmann::ordered_json::object();
    for (int i = 0; i < kRemarks; ++i)
        if (const auto& lines = set.report.lines[static_cast<size_t>(i)]; !lines.empty())
            s["actions"][std::string(remark_name(static_cast<Remark>(i)))] = {{"count", lines.size()},
                                                                              {"lines", lines}};
    s["bad_rows"] = nlohmann::ordered_json::array();
    for (const auto& [line, why] : set.report.bad_rows) s["bad_rows"].push_back({{"line", line}, {"reason", why}});
    s["notes"] = set.report.notes;
    return s;
}

// One object a pair, then the summary. Written in pieces, for a large file's ids are hundreds of megabytes of text.
void print_json(const DataFlags& flags, const Dataset& set, const Model& model) {
    constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
    std::string out;
    for (size_t i = 0; i < set.pairs.size(); ++i) {
        const PreferencePair& p = set.pairs[i];
        nlohmann::ordered_json line = {{"line", p.line},
                                       {"prompt_ids", p.prompt},
                                       {"chosen_ids", p.chosen},
                                       {"rejected_ids", p.rejected},
                                       {"chosen_tail", p.chosen_tail},
                                       {"rejected_tail", p.rejected_tail},
                                       {"actions", set.remarks[i].names()}};
        out += line.dump() + "\n";
        if (out.size() > (1u << 20)) {
            print(out);
            out.clear();
        }
    }
    const nlohmann::ordered_json last = {{"summary", summary_of(flags, set, model)}};
    print(out + last.dump(-1, ' ', false, kReplace) + "\n");
}

Exit run_data(const DataFlags& flags, Call& call) {
    const Model model = open_model(flags.model);
    const Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    const DataOptions options = options_of(flags, model, call);
    Dataset set = load_dataset(flags.data, tokenizer, options);
    if (!flags.eval.empty() && flags.eval != "none") mark_leaks(set, load_dataset(flags.eval, tokenizer, options));
    if (call.common.json)
        print_json(flags, set, model);
    else
        print(text_report(flags, set, model, tokenizer));
    return Exit::kDone;
}

}  // namespace

void add_data_command(Commands& commands) {
    auto flags = std::make_shared<DataFlags>();
    CLI::App& app = commands.add("data", "shows what will be trained on: counts, lengths, every cut or odd row",
                                 "  orpo data pairs.jsonl\n"
                                 "  orpo data pairs.jsonl --eval held-out.jsonl --max-length 512 --show 3\n"
                                 "  orpo data pairs.jsonl --map prompt=question,chosen=good,rejected=bad --json\n"
                                 "  zcat pairs.jsonl.gz | orpo data -\n",
                                 [flags](Call& call) { return run_data(*flags, call); });
    app.add_option("DATA", flags->data, "preference pairs, JSON Lines; - reads standard input")->required();
    app.add_option("--eval", flags->eval, "evaluation pairs: prompts that are in both are reported")
        ->type_name("FILE|none");
    app.add_option("--model", flags->model, "directory, .gguf file or hub id; default: the first official one found")
        ->type_name("M");
    app.add_option("--map", flags->map, "columns by other names: prompt=question,chosen=good")
        ->type_name("FIELD=COLUMN,...");
    app.add_option("--max-length", flags->max_length, "tokens of the prompt plus one answer")
        ->check(CLI::Range(16, 131072))
        ->capture_default_str();
    const auto choice = [&](const char* name, std::string& value, std::vector<std::string> words, const char* what) {
        std::string type = fmt::format("{}", fmt::join(words, "|"));
        app.add_option(name, value, what)
            ->check(CLI::IsMember(std::move(words)))
            ->type_name(type)
            ->capture_default_str();
    };
    choice("--truncation", flags->truncation, {"fit", "drop", "error"}, "what happens to longer pairs");
    choice("--on-bad-row", flags->on_bad_row, {"fail", "skip"}, "what happens to rows that cannot be read");
    choice("--template", flags->chat_template, {"auto", "chatml", "plain"}, "chat template");
    choice("--special", flags->special, {"parse", "literal", "error"},
           "what <|im_end|> and the like inside a text mean");
    choice("--semantics", flags->semantics, {"orpo", "trl", "paper", "llamafactory"}, "whose text handling");
    app.add_option("--show", flags->show, "pairs to print with ids, text, boundary and mask")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, int64_t{1000000}))
        ->capture_default_str();
}

}  // namespace orpo
