// orpo tokenize: what a model's tokenizer makes of a text, and the way back.
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/io.h"
#include "model/gguf.h"
#include "model/resolve.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "src/command.h"

namespace orpo {
namespace {

constexpr uint64_t kMaxInput = 1ull << 31;

struct TokenizeFlags {
    std::string text, model, special = "parse", input = "text";
    bool decode = false;
    const CLI::Option* text_option = nullptr;  // tells "" from no TEXT
};

Tokenizer load_tokenizer(const std::string& spec) {
    const ResolvedModel model = resolve_model(spec);
    TokenizerSource source;
    if (model.is_gguf) {
        source.gguf = std::make_shared<const GgufTokenizerFields>(gguf_tokenizer_fields(GgufFile::open(model.path)));
    } else {
        source.directory = model.path;
    }
    return Tokenizer::load(source);
}

// Ids with anything but digits between them: "1 2 3", "1,2,3", "[1, 2, 3]".
std::vector<int32_t> parse_ids(std::string_view text, const std::string& where) {
    std::vector<int32_t> ids;
    for (size_t at = 0; (at = text.find_first_not_of(" \t\r\n,[]", at)) != std::string_view::npos;) {
        int32_t id = 0;
        const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
        if (error != std::errc()) {
            throw Error(Exit::kBadData,
                        fmt::format("{}: byte {} begins no token id; write ids as 1 2 3 or [1, 2, 3]", where, at));
        }
        ids.push_back(id);
        at = static_cast<size_t>(end - text.data());
    }
    return ids;
}

std::string parse_string(std::string_view line, const std::string& where) {
    const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!value.is_string()) {
        throw Error(Exit::kBadData,
                    where + ": not a JSON string (\"...\", valid UTF-8); --input text takes the bytes as they are");
    }
    return value.get<std::string>();
}

Exit run_tokenize(const TokenizeFlags& flags, Call& call) {
    const bool no_text = flags.text_option->count() == 0;
    const bool from_stdin = no_text || flags.text == "-";
    if (no_text && ::isatty(STDIN_FILENO) == 1) {
        throw Error(Exit::kUsage, "no text: give one (orpo tokenize \"Hello\") or send it to standard input");
    }
    const Tokenizer tokenizer = load_tokenizer(flags.model);
    const SpecialText special = flags.special == "literal" ? SpecialText::kLiteral
                                : flags.special == "error" ? SpecialText::kError
                                                           : SpecialText::kParse;
    int64_t dropped_bytes = 0;
    const auto one = [&](std::string_view input, const std::string& where) {
        try {
            if (flags.decode) {
                const std::string text = tokenizer.decode(parse_ids(input, where));
                print_line(call.common.json ? nlohmann::json(text).dump() : text);
                return;
            }
            int64_t dropped = 0;
            const std::string text = flags.input == "json" ? parse_string(input, where) : std::string(input);
            const std::vector<int32_t> ids = tokenizer.encode(text, special, &dropped);
            dropped_bytes += dropped;
            print_line(call.common.json ? nlohmann::json(ids).dump() : fmt::format("{}", fmt::join(ids, " ")));
        } catch (const Error& error) {
            const std::string message = error.what();
            throw Error(error.exit(), message.starts_with(where) ? message : where + ": " + message);
        }
    };

    const std::string name = from_stdin ? "standard input" : "TEXT";
    const std::string all = from_stdin ? io::read_file("/dev/stdin", kMaxInput) : flags.text;
    if (flags.input == "text") {
        one(all, name);
    } else {
        int64_t line = 1;
        for (size_t at = 0; at < all.size(); ++line) {
            const size_t end = std::min(all.find('\n', at), all.size());
            const std::string_view row = std::string_view(all).substr(at, end - at);
            if (row.find_first_not_of(" \t\r") != std::string_view::npos) one(row, fmt::format("{}:{}", name, line));
            at = end + 1;
        }
    }
    if (dropped_bytes > 0) {
        call.log->warn("{} byte{} without a token dropped, as the reference tokenizer does (bytes without one: {})",
                       dropped_bytes, dropped_bytes == 1 ? "" : "s", tokenizer.bytes_without_token());
    }
    return Exit::kDone;
}

}  // namespace

void add_tokenize_command(Commands& commands) {
    auto flags = std::make_shared<TokenizeFlags>();
    CLI::App& app = commands.add("tokenize", "token ids of a text, and back",
                                 "  orpo tokenize \"Hello world\"\n"
                                 "  orpo tokenize - < letter.txt\n"
                                 "  orpo tokenize --decode \"19556 905\"\n"
                                 "  orpo tokenize --input json --json < texts.jsonl\n",
                                 [flags](Call& call) { return run_tokenize(*flags, call); });
    flags->text_option = app.add_option("TEXT", flags->text, "the text; - or nothing reads standard input");
    app.add_option("--model", flags->model, "whose tokenizer: a directory, a .gguf file or a hub id");
    app.add_flag("--decode", flags->decode, "from ids to text");
    app.add_option("--special", flags->special, "special tokens' names in the text: the token, its letters, or refused")
        ->check(CLI::IsMember({"parse", "literal", "error"}))
        ->capture_default_str();
    app.add_option("--input", flags->input,
                   "text: all of it is one text; json: one JSON string (--decode: list) a line")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
}

}  // namespace orpo
