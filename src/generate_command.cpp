// orpo generate: text from a prompt, or from a file of prompts.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/io.h"
#include "data/json_fault.h"
#include "data/rows.h"
#include "model/generate.h"
#include "src/command.h"
#include "src/config.h"
#include "src/load.h"
#include "src/metrics_log.h"
#include "src/progress.h"

namespace orpo {
namespace {

constexpr uint64_t kMaxPromptBytes = 1ull << 30;
constexpr size_t kAtOnce = 8;  // sequences that are decoded side by side

struct GenerateFlags {
    TrainFlags shared;
    std::string prompt, prompts;
    Sampling sampling;
    bool raw = false;
};

struct Prompt {
    Json shown;                     // as it was given
    std::vector<Message> messages;  // a string prompt is one user message
    bool is_text = true;
    std::string where;  // file:line, "" on the command line
};

std::string read_input(const std::string& path) {
    return io::read_file(path == "-" ? "/dev/stdin" : path, kMaxPromptBytes);
}

Prompt text_prompt(const std::string& text) { return {text, {{"user", text}}, true, ""}; }

[[noreturn]] void refuse(const std::string& where, const std::string& why) {
    throw Error(Exit::kBadData,
                where + ": " + why +
                    R"(; a line is a JSON string, or an object whose "prompt" is a string or a list of )"
                    R"({"role", "content"} messages)");
}

Prompt parse_prompt(std::string_view text, const std::string& where) {
    Json json;
    try {
        json = Json::parse(text);
    } catch (const Json::exception& e) {  // a number that is too large is no parse_error
        const JsonFault fault = find_json_fault(text, e.what());
        refuse(fmt::format("{}:{}", where, fault.offset + 1), "not valid JSON: " + fault.why);
    }
    if (json.is_object()) {
        if (!json.contains("prompt")) refuse(where, "no \"prompt\"");
        const Json inner = json["prompt"];
        json = inner;
    }
    Prompt prompt;
    prompt.shown = json, prompt.where = where;
    if (json.is_string()) {
        prompt.messages = {{"user", json.get<std::string>()}};
    } else if (json.is_array() && !json.empty()) {
        prompt.is_text = false;
        for (const Json& item : json) {
            const bool message = item.is_object() && item.contains("role") && item.contains("content") &&
                                 item["role"].is_string() && item["content"].is_string();
            if (!message) refuse(where, "a message needs a \"role\" and a \"content\", both strings");
            prompt.messages.push_back({item["role"], item["content"]});
        }
    } else {
        refuse(where, "neither text nor messages");
    }
    return prompt;
}

std::vector<Prompt> read_prompts(const std::string& path) {
    const RowFile file = cut_rows(read_input(path), path == "-" ? "standard input" : path);
    std::vector<Prompt> prompts;
    for (const RowSlice& row : file.rows) prompts.push_back(parse_prompt(file.text(row), place(file, row)));
    return prompts;
}

std::vector<int32_t> prompt_ids(const Prompt& prompt, ChatTemplate kind, SpecialText special,
                                const Tokenizer& tokenizer) {
    std::string text;
    if (kind == ChatTemplate::kNone && !prompt.is_text)
        refuse(prompt.where,
               "messages need a chat template, and this model has none (or --raw): give --template chatml");
    if (kind == ChatTemplate::kNone) {
        text = prompt.messages[0].content;
    } else {
        const bool open = prompt.messages.back().role == "assistant";
        text = render_chat(kind, prompt.messages, open ? Ending::kContinueFinal : Ending::kGenerationPrompt);
    }
    try {
        // The template's own special tokens are always meant; a user's text that holds some is refused on request.
        if (special == SpecialText::kError)
            for (const Message& message : prompt.messages) tokenizer.encode(message.content, special);
        return tokenizer.encode(text, kind == ChatTemplate::kNone ? special : SpecialText::kParse);
    } catch (const Error& e) {
        throw Error(e.exit(), (prompt.where.empty() ? "--prompt" : prompt.where) + ": " + e.what());
    }
}

// A model's text must not drive the reader's terminal: control characters other than tab and new line become U+FFFD.
std::string printable(std::string_view text) {
    std::string out;
    for (const char c : text)
        if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            out += "\xef\xbf\xbd";
        else
            out += c;
    return out;
}

std::string first_line(const Prompt& prompt) {
    std::string text = prompt.messages.back().content;
    text = text.substr(0, text.find('\n'));
    return text.size() > 100 ? text.substr(0, 100) + "..." : text;
}

Exit run_generate(const GenerateFlags& flags, Call& call) {
    const TrainConfig config = flags.shared.config(call);
    flags.sampling.check();
    if (call.given("prompt") == call.given("prompts"))
        throw Error(Exit::kUsage, "give one of --prompt TEXT and --prompts FILE (- reads standard input)");
    const std::vector<Prompt> prompts =
        call.given("prompts") ? read_prompts(flags.prompts)
                              : std::vector{text_prompt(flags.prompt == "-" ? read_input("-") : flags.prompt)};

    const LoadedModel loaded = load_model(config.model, config.adapter, call);
    const DataOptions data = data_options(config, loaded.model, call.common.threads);
    const ChatTemplate kind = flags.raw ? ChatTemplate::kNone : data.chat_template;
    std::vector<std::vector<int32_t>> ids;
    size_t longest = 0;
    for (const Prompt& prompt : prompts) {
        ids.push_back(prompt_ids(prompt, kind, data.special, loaded.tokenizer));
        longest = std::max(longest, ids.back().size());
        const auto room = static_cast<size_t>(loaded.model.config.max_positions);
        if (ids.back().size() >= room)
            throw Error(Exit::kBadData, fmt::format("{}: the prompt takes {} tokens, {} reads at most {}; shorten it",
                                                    prompt.where.empty() ? "--prompt" : prompt.where, ids.back().size(),
                                                    loaded.model.display_name, room));
    }
    Sampling sampling = flags.sampling;
    for (const int32_t id : {loaded.tokenizer.eos(), loaded.model.config.eos, loaded.tokenizer.find("<|endoftext|>"),
                             kind == ChatTemplate::kNone ? -1 : loaded.tokenizer.find("<|im_end|>")})
        if (id >= 0) sampling.stop_ids.push_back(id);

    const bool terminal = stdout_is_terminal();
    const bool streaming = !call.common.json && (prompts.size() == 1 || terminal);
    TransformerSizes sizes;
    sizes.sequences = streaming ? 1 : static_cast<int>(std::min(kAtOnce, prompts.size()));
    sizes.tokens = static_cast<int>(std::max<size_t>(longest, static_cast<size_t>(sizes.sequences)));
    sizes.heads = sizes.sequences;
    sizes.max_positions = static_cast<int>(
        std::min<int64_t>(static_cast<int64_t>(longest) + sampling.max_tokens, loaded.model.config.max_positions));
    const auto engine = make_inference_engine(loaded, config.dtype, call, sizes);

    const auto shown = [&](std::string_view text) { return terminal ? printable(text) : std::string(text); };
    const auto header = [&](size_t i) {
        return prompts.size() == 1
                   ? ""
                   : fmt::format("{}[{}] {}\n", i > 0 ? "\n" : "", i + 1, shown(first_line(prompts[i])));
    };
    Progress progress(call.terminal, call.common.quiet || streaming);
    const auto begin = std::chrono::steady_clock::now();
    int64_t tokens = 0;
    for (size_t first = 0; first < prompts.size(); first += static_cast<size_t>(sizes.sequences)) {
        const auto group =
            std::span(ids).subspan(first, std::min(static_cast<size_t>(sizes.sequences), ids.size() - first));
        progress.count("generating", static_cast<int64_t>(first), static_cast<int64_t>(prompts.size()), "prompts");
        sampling.first = static_cast<uint32_t>(first);
        if (streaming) print(header(first));
        OnText on_text;
        if (streaming) on_text = [&](size_t, std::string_view piece) { print(shown(piece)); };
        const auto results = generate(*engine, &loaded.tokenizer, group, sampling, 0, on_text);
        for (size_t i = 0; i < results.size(); ++i) {
            const Generated& result = results[i];
            tokens += static_cast<int64_t>(result.ids.size());
            if (call.common.json)
                print_line(metrics_line({{"prompt", prompts[first + i].shown},
                                         {"text", result.text},
                                         {"ids", result.ids},
                                         {"finish", result.stopped ? "stop" : "length"}}));
            else if (streaming)
                print("\n");
            else
                print(header(first + i) + shown(result.text) + "\n");
        }
    }
    progress.finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    call.log->info("{} tokens in {}, {:.1f} tokens/s", tokens, human_seconds(seconds),
                   static_cast<double>(tokens) / seconds);
    return Exit::kDone;
}

}  // namespace

void add_generate_command(Commands& commands) {
    auto flags = std::make_shared<GenerateFlags>();
    CLI::App& app = commands.add("generate", "text from a prompt or a file of prompts",
                                 "  orpo generate --prompt 'Why is the sky blue?'\n"
                                 "  orpo generate --prompt 'Why is the sky blue?' --adapter runs/my-run/adapter\n"
                                 "  orpo generate --prompts questions.jsonl --temperature 0.7 --top-p 0.9 --json\n",
                                 [flags](Call& call) { return run_generate(*flags, call); });
    Sampling& s = flags->sampling;
    s.max_tokens = 256;
    app.add_option("--prompt", flags->prompt, "the text; - reads standard input")->type_name("TEXT")->group("Prompt");
    app.add_option("--prompts", flags->prompts,
                   "JSON Lines of strings, or of objects with a \"prompt\"; - reads standard input")
        ->type_name("FILE")
        ->group("Prompt");
    app.add_flag("--raw", flags->raw, "no chat template: the text goes on as it stands")->group("Prompt");
    app.add_option("--max-tokens", s.max_tokens, "most new tokens (256)")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("N")
        ->group("Sampling");
    app.add_option("--temperature", s.temperature, "0 takes the likeliest token (0)")
        ->check(CLI::Range(0.0, 100.0))
        ->type_name("X")
        ->group("Sampling");
    app.add_option("--top-k", s.top_k, "of the K likeliest tokens; 0: all (0)")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("K")
        ->group("Sampling");
    app.add_option("--top-p", s.top_p, "of the likeliest tokens that together have share X (1)")
        ->check(CLI::Range(0.0, 1.0))
        ->type_name("X")
        ->group("Sampling");
    app.add_option("--min-p", s.min_p, "of the tokens at least X times as likely as the likeliest (0)")
        ->check(CLI::Range(0.0, 1.0))
        ->type_name("X")
        ->group("Sampling");
    app.add_option("--seed", s.seed, "of the draws (0)")
        ->check(CLI::NonNegativeNumber)
        ->type_name("N")
        ->group("Sampling");
    app.add_option("--stop", s.stops, "text that ends the answer; may be given several times")
        ->type_name("TEXT")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group("Sampling");
    flags->shared.add_some(app, {"model", "adapter", "dtype", "template", "special"});
}

}  // namespace orpo
