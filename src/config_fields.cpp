// The table of `orpo train`'s flags.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "src/config.h"
#include "src/suggest.h"

namespace orpo {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& text, const std::string& allowed) {
    throw Error(Exit::kUsage, fmt::format("--{} {}: {}", name, text.empty() ? "\"\"" : text, allowed));
}

template <class T>
bool parse(const std::string& text, T& value) {
    const char* begin = text.data();
    const char* end = begin + text.size();
    if (begin != end && *begin == '+') ++begin;
    const auto [last, error] = std::from_chars(begin, end, value);
    return error == std::errc{} && last == end;
}

template <class T>
std::string range_text(T lowest, T highest, bool open, const char* word) {
    const std::string also = word ? fmt::format(", or {}", word) : "";
    if constexpr (std::is_integral_v<T>) return fmt::format("a whole number from {} to {}{}", lowest, highest, also);
    return open ? fmt::format("a number above {} and at most {}{}", lowest, highest, also)
                : fmt::format("a number from {} to {}{}", lowest, highest, also);
}

// A number in [lowest, highest], or (lowest, highest] when open. `word` ("auto", "none"), when there is one, is 0.
template <class T>
TrainField number(const char* name, const char* group, const char* help, bool mathematics, T TrainConfig::*member,
                  T lowest, T highest, bool open = false, const char* word = nullptr) {
    TrainField field{name, group, std::is_integral_v<T> ? "N" : "X", help, mathematics, nullptr, nullptr};
    field.set = [=](TrainConfig& config, const std::string& text) {
        T value{};
        if (word && text == word) {
            config.*member = 0;
        } else if (parse(text, value) && (open ? value > lowest : value >= lowest) && value <= highest) {
            config.*member = value;
        } else {
            refuse(name, text, range_text(lowest, highest, open, word));
        }
    };
    field.get = [=](const TrainConfig& config) -> nlohmann::json {
        if (word && config.*member == 0) return word;
        return config.*member;
    };
    return field;
}

TrainField text(const char* name, const char* group, const char* type, const char* help, bool mathematics,
                std::string TrainConfig::*member) {
    return {name,
            group,
            type,
            help,
            mathematics,
            [=](TrainConfig& config, const std::string& value) { config.*member = value; },
            [=](const TrainConfig& config) -> nlohmann::json { return config.*member; }};
}

std::vector<std::string> split(const std::string& list, char separator) {
    std::vector<std::string> parts;
    size_t begin = 0;
    for (size_t i = 0; i <= list.size(); ++i)
        if (i == list.size() || list[i] == separator) parts.push_back(list.substr(begin, i - begin)), begin = i + 1;
    return parts;
}

// One of the words in `type`: "fit|drop|error".
TrainField choice(const char* name, const char* group, const char* type, const char* help, bool mathematics,
                  std::string TrainConfig::*member) {
    TrainField field = text(name, group, type, help, mathematics, member);
    field.set = [=](TrainConfig& config, const std::string& value) {
        const auto words = split(type, '|');
        if (std::find(words.begin(), words.end(), value) == words.end())
            refuse(name, value, fmt::format("one of {}{}", fmt::join(words, ", "), did_you_mean(value, words)));
        config.*member = value;
    };
    return field;
}

TrainField on_off(const char* name, const char* group, const char* help, bool mathematics, bool TrainConfig::*member) {
    TrainField field{name, group, "", help, mathematics, nullptr, nullptr};
    field.set = [=](TrainConfig& config, const std::string& value) {
        if (value == "true" || value == "1")
            config.*member = true;
        else if (value == "false" || value == "0")
            config.*member = false;
        else
            refuse(name, value, "true or false");
    };
    field.get = [=](const TrainConfig& config) -> nlohmann::json { return config.*member; };
    return field;
}

// "90" seconds, "45m", "1h30m", "2d"; "none".
double parse_duration(const std::string& text) {
    double total = 0;
    size_t at = 0;
    while (at < text.size()) {
        double value = 0;
        const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
        if (error != std::errc{} || !(value >= 0)) return -1;
        at = static_cast<size_t>(end - text.data());
        const char unit = at < text.size() ? text[at++] : 's';
        const double seconds = unit == 's' ? 1 : unit == 'm' ? 60 : unit == 'h' ? 3600 : unit == 'd' ? 86400 : -1;
        if (seconds < 0) return -1;
        total += value * seconds;
    }
    return total;
}

TrainField max_time() {
    TrainField field{"max-time", "Run",   "TIME", "stop after 90 (seconds), 45m, 1h30m; saves and evaluates first",
                     false,      nullptr, nullptr};
    field.set = [](TrainConfig& config, const std::string& text) {
        const double seconds = text == "none" ? 0 : parse_duration(text);
        if (text != "none" && !(seconds > 0 && seconds <= 3.2e7))
            refuse("max-time", text, "a time above 0 and up to a year, such as 90 (seconds), 45m or 1h30m, or none");
        config.max_time = seconds;
    };
    field.get = [](const TrainConfig& config) -> nlohmann::json {
        if (config.max_time == 0) return "none";
        return config.max_time;
    };
    return field;
}

TrainField memory_limit() {
    TrainField field{"memory-limit", "Run",   "SIZE",
                     "most memory that training may take, such as 20GB: on a GPU its arrays, else the whole program",
                     false,          nullptr, nullptr};
    field.set = [](TrainConfig& config, const std::string& text) {
        const int64_t bytes = text == "none" ? 0 : parse_bytes(text);
        if (bytes < 0) refuse("memory-limit", text, "a size such as 20GB, 22.5GiB or 800MB, or none");
        config.memory_limit = bytes;
    };
    field.get = [](const TrainConfig& config) -> nlohmann::json {
        if (config.memory_limit == 0) return "none";
        return config.memory_limit;
    };
    return field;
}

TrainField warmup() {
    TrainField field{"warmup", "Optimisation", "X",    "steps, or a share of all steps when below 1",
                     true,     nullptr,        nullptr};
    field.set = [](TrainConfig& config, const std::string& text) {
        double value = 0;
        if (!parse(text, value) || !(value >= 0 && value <= 1e9) || (value >= 1 && value != std::floor(value)))
            refuse("warmup", text,
                   "a whole number of steps (0 or more), or a share of all steps from 0 to below 1, such as 0.05");
        config.warmup = value;
    };
    field.get = [](const TrainConfig& config) -> nlohmann::json { return config.warmup; };
    return field;
}

TrainField lora_targets() {
    TrainField field{"lora-targets",
                     "Adapter",
                     "LIST",
                     "linears that get an adapter: all, or of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
                     true,
                     nullptr,
                     nullptr};
    field.set = [](TrainConfig& config, const std::string& text) {
        std::vector<std::string> all;
        for (int i = 0; i < kLinears; ++i) all.emplace_back(linear_name(static_cast<Linear>(i)));
        const std::vector<std::string> wanted = text == "all" || text == "all-linear" ? all : split(text, ',');
        for (const std::string& name : wanted)
            if (std::find(all.begin(), all.end(), name) == all.end())
                refuse("lora-targets", text,
                       fmt::format("\"{}\" is no linear of the model{}; allowed: all, or a list of {}", name,
                                   did_you_mean(name, all), fmt::join(all, ",")));
        config.lora_targets.clear();
        for (const std::string& name : all)
            if (std::find(wanted.begin(), wanted.end(), name) != wanted.end()) config.lora_targets.push_back(name);
    };
    field.get = [](const TrainConfig& config) -> nlohmann::json { return config.lora_targets; };
    return field;
}

TrainField best_metric() {
    TrainField field{"best-metric", "Run",   "SUM",  "which evaluation is best, lower is better: a sum of metrics",
                     false,         nullptr, nullptr};
    field.set = [](TrainConfig& config, const std::string& text) { config.best_metric = MetricExpression(text); };
    field.get = [](const TrainConfig& config) -> nlohmann::json { return config.best_metric.text(); };
    return field;
}

TrainField column_map() {
    TrainField field = text("map", "Data", "LIST", "columns of DATA: prompt=question,chosen=good,rejected=bad", true,
                            &TrainConfig::map);
    field.set = [](TrainConfig& config, const std::string& value) {
        const std::vector<std::string> ours = {"prompt", "chosen", "rejected", "system"};
        for (const std::string& part : value.empty() ? std::vector<std::string>{} : split(value, ',')) {
            const size_t equals = part.find('=');
            if (equals == std::string::npos || equals + 1 == part.size())
                refuse("map", value, "a list such as prompt=question,chosen=good,rejected=bad");
            if (std::find(ours.begin(), ours.end(), part.substr(0, equals)) == ours.end())
                refuse("map", value,
                       fmt::format("\"{}\" is none of prompt, chosen, rejected, system", part.substr(0, equals)));
        }
        config.map = value;
    };
    return field;
}

TrainField device() {
    TrainField field = text("device", "Common", "NAME", "auto, cpu, cuda or cuda:INDEX", false, &TrainConfig::device);
    field.set = [](TrainConfig& config, const std::string& value) {
        int64_t index = 0;
        const bool indexed = value.rfind("cuda:", 0) == 0 && parse(value.substr(5), index) && index >= 0;
        if (value != "auto" && value != "cpu" && value != "cuda" && !indexed)
            refuse("device", value, "one of auto, cpu, cuda, cuda:INDEX");
        config.device = value;
    };
    return field;
}

std::vector<TrainField> make_fields() {
    using C = TrainConfig;
    constexpr int64_t kMany = 1'000'000'000;
    return {
        text("data", "Data", "DATA", "preference pairs, JSON Lines; - reads standard input", true, &C::data),
        text("eval", "Data", "FILE|none",
             "evaluation pairs; default: 5 % of DATA are held out, at most 200, when it has 100 pairs or more", true,
             &C::eval),
        column_map(),
        number<int64_t>("max-length", "Data", "tokens of the prompt plus one answer", true, &C::max_length, 16, 131072),
        choice("truncation", "Data", "fit|drop|error", "what happens to longer pairs", true, &C::truncation),
        choice("on-bad-row", "Data", "fail|skip", "what happens to rows that cannot be read", true, &C::on_bad_row),
        choice("template", "Data", "auto|chatml|plain", "chat template", true, &C::chat_template),
        choice("special", "Data", "parse|literal|error", "what <|im_end|> and the like inside a text mean", true,
               &C::special),
        choice("semantics", "Data", "orpo|trl|paper|llamafactory", "whose text handling and loss", true, &C::semantics),
        text("model", "Model", "M", "directory, .gguf file or hub id; default: the first official one found", true,
             &C::model),
        text("adapter", "Model", "DIR", "go on from this PEFT adapter", true, &C::adapter),
        choice("dtype", "Model", "auto|fp32|bf16", "arithmetic; auto takes bf16 only where the processor has AMX", true,
               &C::dtype),
        number<int64_t>("lora-rank", "Adapter", "rank of the adapter", true, &C::lora_rank, 1, 1024),
        number<double>("lora-alpha", "Adapter", "scale: alpha / rank", true, &C::lora_alpha, 0, 1e6, true),
        lora_targets(),
        number<double>("lora-dropout", "Adapter", "share of the adapter's inputs that is dropped", true,
                       &C::lora_dropout, 0, 0.95),
        on_off("rslora", "Adapter", "scale: alpha / sqrt(rank)", true, &C::rslora),
        number<double>("lr", "Optimisation", "peak learning rate; default by model size", true, &C::lr, 0, 1, true,
                       "auto"),
        number<double>("beta", "Optimisation", "weight of the odds-ratio term", true, &C::beta, 0, 1000),
        number<double>("epochs", "Optimisation", "passes over DATA; default 1, 2 for small sets", true, &C::epochs, 0,
                       10000, true, "auto"),
        number<int64_t>("max-steps", "Optimisation", "stop after so many optimizer steps", true, &C::max_steps, 1,
                        kMany, false, "none"),
        number<int64_t>("batch-size", "Optimisation", "pairs per optimizer step; default 32, 8 for small sets", true,
                        &C::batch_size, 1, 65536, false, "auto"),
        number<int64_t>("micro-batch-tokens", "Optimisation",
                        "tokens that are in memory at once; the result does not depend on it beyond rounding", true,
                        &C::micro_batch_tokens, 16, 16777216, false, "auto"),
        choice("schedule", "Optimisation", "linear|cosine|constant|inverse-sqrt|wsd",
               "learning rate over the run; wsd: constant, then a cooldown over the last fifth", true, &C::schedule),
        warmup(),
        number<double>("weight-decay", "Optimisation", "AdamW's", true, &C::weight_decay, 0, 1),
        number<double>("clip", "Optimisation", "largest global gradient norm", true, &C::clip, 0, 1e9, true, "none"),
        number<uint64_t>("seed", "Optimisation", "of adapter start, data order and dropout", true, &C::seed, 0,
                         UINT64_MAX),
        on_off("shuffle", "Optimisation", "shuffle every epoch (--no-shuffle: file order)", true, &C::shuffle),
        choice("nll-scope", "Optimisation", "full|response",
               "tokens of the likelihood term: prompt and chosen, or chosen alone", true, &C::nll_scope),
        text("out", "Run", "DIR", "run directory; default runs/<date>-<data>-<model>", false, &C::out),
        number<int64_t>("eval-every", "Run", "steps between evaluations", false, &C::eval_every, 1, kMany, false,
                        "auto"),
        number<int64_t>("save-every", "Run", "steps between checkpoints", false, &C::save_every, 1, kMany, false,
                        "auto"),
        number<int64_t>("keep", "Run", "checkpoints that are kept", false, &C::keep, 1, 1000000),
        best_metric(),
        number<int64_t>("early-stop", "Run", "stop after so many evaluations without a better one", false,
                        &C::early_stop, 1, kMany, false, "none"),
        max_time(),
        memory_limit(),
        on_off("tune", "Run", "on a GPU: time the algorithms of every product once, keep the choice in DIR/tuning.json",
               false, &C::tune),
        on_off("resume", "Run", "go on with the run in --out", false, &C::resume),
        number<int64_t>("threads", "Common", "CPU threads", false, &C::threads, 1, 4096, false, "auto"),
        device(),
    };
}

}  // namespace

int64_t parse_bytes(const std::string& text) {
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    std::string unit(stop, text.data() + text.size());
    if (!unit.empty() && (unit.back() == 'B' || unit.back() == 'b')) unit.pop_back();
    const bool binary = unit.size() == 2 && unit.back() == 'i';
    if (binary) unit.pop_back();
    const double step = binary ? 1024 : 1000;
    const double factor = unit.empty()                 ? 1
                          : unit == "K" || unit == "k" ? step
                          : unit == "M" || unit == "m" ? step * step
                          : unit == "G" || unit == "g" ? step * step * step
                                                       : 0;
    if (error != std::errc() || factor == 0 || !(value > 0) || value * factor > 1e16) return -1;
    return static_cast<int64_t>(value * factor);
}

const std::vector<TrainField>& train_fields() {
    static const std::vector<TrainField> fields = make_fields();
    return fields;
}

const TrainField* find_train_field(const std::string& name) {
    for (const TrainField& field : train_fields())
        if (name == field.name) return &field;
    return nullptr;
}

}  // namespace orpo
