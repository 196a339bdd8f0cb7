// tokenizer.json, tokenizer_config.json and special_tokens_map.json, as Hugging Face tokenizers and transformers write
// them. Only one kind of tokenizer is read; each part that is another is refused by its name.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/io.h"
#include "model/json_document.h"
#include "model/tokenizer_definition.h"

namespace orpo {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr uint64_t kMaxFile = 256ull << 20;
constexpr int64_t kMaxTokens = 1 << 24;

[[noreturn]] void refuse(const JsonObject& in, const std::string& what) {
    throw Error(Exit::kBadModel, in.file() + ": " + what);
}

// One part of tokenizer.json that is another than the one we know, shown as it stands there.
[[noreturn]] void unsupported(const JsonObject& in, const std::string& field, element value,
                              const std::string& supported) {
    std::string shown = simdjson::minify(value);
    if (shown.size() > 200) shown = shown.substr(0, 200) + "...";
    refuse(in, fmt::format("{} {} is not supported; supported: {}", field, shown, supported));
}

std::string type_of(element value) {
    object in;
    std::string_view type;
    return !value.get(in) && !in.at_key("type").get(type) ? std::string(type) : "";
}

int32_t token_id(const JsonObject& in, const std::string& field, element value) {
    int64_t id = 0;
    if (value.get(id) || id < 0 || id >= kMaxTokens) refuse(in, field + " must be a token id");
    return static_cast<int32_t>(id);
}

std::string string_of(const JsonObject& in, const std::string& field, element value) {
    std::string_view text;
    if (value.get(text)) refuse(in, field + " must be a string");
    return std::string(text);
}

// The members of a Sequence, or the one thing itself. `key`: where a Sequence keeps its members.
std::vector<element> parts(const JsonObject& root, element value, std::string_view key) {
    if (type_of(value) != "Sequence") return {value};
    array members;
    if (object(value).at_key(key).get(members)) refuse(root, fmt::format("a Sequence lacks \"{}\"", key));
    return {members.begin(), members.end()};
}

constexpr char kPreTokenizers[] =
    "Sequence of Digits (individual_digits) and ByteLevel (no prefix space, with regex), or ByteLevel alone";

void read_pre_tokenizer(const JsonObject& root, TokenizerDefinition& definition) {
    const auto value = root.find("pre_tokenizer");
    if (!value) refuse(root, std::string("pre_tokenizer is missing; supported: ") + kPreTokenizers);
    const auto members = parts(root, *value, "pretokenizers");
    const auto flag = [&](element member, const char* key, bool missing) {
        return JsonObject(object(member), root.file(), "pre_tokenizer.").boolean(key).value_or(missing);
    };
    const auto digits = [&](element m) { return type_of(m) == "Digits" && flag(m, "individual_digits", false); };
    const auto byte_level = [&](element m) {
        return type_of(m) == "ByteLevel" && !flag(m, "add_prefix_space", true) && flag(m, "use_regex", true);
    };
    definition.isolate_digits = members.size() == 2;
    const bool supported = definition.isolate_digits ? digits(members[0]) && byte_level(members[1])
                                                     : members.size() == 1 && byte_level(members[0]);
    if (!supported) unsupported(root, "pre_tokenizer", *value, kPreTokenizers);
}

bool is_bare_template(element processor) {
    array single;
    if (type_of(processor) != "TemplateProcessing" || object(processor).at_key("single").get(single)) return false;
    bool bare = single.size() == 1;
    for (const element piece : single) {
        object in;
        element sequence;
        bare = bare && !piece.get(in) && !in.at_key("Sequence").get(sequence);
    }
    return bare;
}

void check_other_blocks(const JsonObject& root) {
    if (const auto value = root.find("normalizer")) {
        if (type_of(*value) != "Sequence" || !parts(root, *value, "normalizers").empty()) {
            unsupported(root, "normalizer", *value, "none");
        }
    }
    // ByteLevel here only moves offsets, and transformers 5 writes a template of nothing but the text; any other would
    // add tokens.
    if (const auto value = root.find("post_processor")) {
        for (const element part : parts(root, *value, "processors")) {
            if (type_of(part) != "ByteLevel" && !is_bare_template(part)) {
                unsupported(root, "post_processor", part, "none, ByteLevel, TemplateProcessing without tokens");
            }
        }
    }
    const auto decoder = root.find("decoder");
    if (!decoder) refuse(root, "decoder is missing; supported: ByteLevel");
    if (type_of(*decoder) != "ByteLevel") unsupported(root, "decoder", *decoder, "ByteLevel");
}

void read_vocabulary(const JsonObject& model, TokenizerDefinition& definition) {
    const auto vocabulary = model.object("vocab");
    if (!vocabulary) refuse(model, "model.vocab is missing");
    std::vector<std::string> tokens;
    for (const auto& [token, id_value] : vocabulary->fields()) {
        const std::string field = fmt::format("model.vocab[\"{}\"]", token);
        const int32_t id = token_id(model, field, id_value);
        if (token.empty()) refuse(model, field + ": a token must not be empty");
        if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
        if (!tokens[id].empty()) refuse(model, fmt::format("{}: the id {} is taken twice", field, id));
        tokens[id] = token;
    }
    if (tokens.empty()) refuse(model, "model.vocab is empty");
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (tokens[id].empty()) refuse(model, fmt::format("model.vocab has no token with the id {}", id));
    }
    definition.tokens = std::move(tokens);
}

// Either "a b" or ["a", "b"], the same in the whole list.
void read_merges(const JsonObject& model, TokenizerDefinition& definition) {
    array merges;
    const auto list = model.find("merges");
    if (!list || list->get(merges)) refuse(model, "model.merges must be a list");
    bool pairs = false;
    for (const element merge : merges) {
        const std::string field = fmt::format("model.merges[{}]", definition.merges.size());
        array pair;
        const bool is_pair = !merge.get(pair);
        if (definition.merges.empty()) pairs = is_pair;
        if (is_pair != pairs) refuse(model, field + ": strings and pairs are mixed");
        if (is_pair) {
            if (pair.size() != 2) refuse(model, field + " must have two tokens");
            definition.merges.emplace_back(string_of(model, field, pair.at(0)), string_of(model, field, pair.at(1)));
        } else {
            const std::string both = string_of(model, field, merge);
            const size_t space = both.find(' ');
            if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
                refuse(model, field + " must be two tokens with a space between");
            }
            definition.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
        }
    }
}

void read_model(const JsonObject& root, TokenizerDefinition& definition) {
    const auto model = root.object("model");
    if (!model) refuse(root, "model is missing");
    if (model->text("type").value_or("BPE") != "BPE") unsupported(root, "model.type", *model->find("type"), "BPE");
    if (model->number("dropout").value_or(0) != 0) unsupported(root, "model.dropout", *model->find("dropout"), "null");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        if (!model->text(key).value_or("").empty()) {
            unsupported(root, std::string("model.") + key, *model->find(key), "null");
        }
    }
    if (const auto unk = model->find("unk_token")) {
        unsupported(root, "model.unk_token", *unk, "null (bytes without a token are dropped)");
    }
    if (model->boolean("byte_fallback").value_or(false)) {
        unsupported(root, "model.byte_fallback", *model->find("byte_fallback"), "false");
    }
    definition.ignore_merges = model->boolean("ignore_merges").value_or(false);
    read_vocabulary(*model, definition);
    read_merges(*model, definition);
}

void read_added(const JsonObject& root, TokenizerDefinition& definition) {
    const auto value = root.find("added_tokens");
    if (!value) return;
    array list;
    if (value->get(list)) root.wrong("added_tokens", *value, "a list");
    for (const element entry : list) {
        const std::string field = fmt::format("added_tokens[{}]", definition.added.size());
        if (!entry.is_object()) refuse(root, field + " must be an object");
        const JsonObject in(object(entry), root.file(), field + ".");
        TokenizerDefinition::Added added;
        const auto id = in.find("id");
        if (!id) refuse(root, field + ".id is missing");
        added.id = token_id(in, field + ".id", *id);
        added.content = in.text("content").value_or("");
        if (added.content.empty()) refuse(root, field + ".content is missing or empty");
        added.special = in.boolean("special").value_or(false);
        added.normalized = in.boolean("normalized").value_or(!added.special);
        for (const char* key : {"single_word", "lstrip", "rstrip"}) {
            if (in.boolean(key).value_or(false)) {
                refuse(root, fmt::format("{}.{} true is not supported; supported: false", field, key));
            }
        }
        definition.added.push_back(std::move(added));
    }
    std::stable_sort(definition.added.begin(), definition.added.end(),
                     [](const auto& a, const auto& b) { return a.id < b.id; });
    for (size_t i = 1; i < definition.added.size(); ++i) {
        if (definition.added[i].id == definition.added[i - 1].id) {
            refuse(root, fmt::format("added_tokens has the id {} twice", definition.added[i].id));
        }
    }
}

// bos_token and the like: "<|im_end|>", or the whole added token as an object. What is known already stays.
void read_names(const JsonObject& root, TokenizerDefinition& definition) {
    const std::pair<const char*, int32_t*> named[] = {{"bos_token", &definition.bos},
                                                      {"eos_token", &definition.eos},
                                                      {"unk_token", &definition.unk},
                                                      {"pad_token", &definition.pad}};
    for (const auto& [key, id] : named) {
        const auto value = root.find(key);
        if (*id >= 0 || !value) continue;
        const std::string token =
            value->is_object() ? root.object(key)->text("content").value_or("") : root.text(key).value_or("");
        for (const auto& added : definition.added) {
            if (added.content == token) *id = added.id;
        }
        for (size_t i = 0; *id < 0 && i < definition.tokens.size(); ++i) {
            if (definition.tokens[i] == token) *id = static_cast<int32_t>(i);
        }
        if (*id < 0) refuse(root, fmt::format("{} \"{}\" is no token of tokenizer.json", key, token));
    }
}

}  // namespace

TokenizerDefinition definition_from_json(const TokenizerFiles& files) {
    TokenizerDefinition definition;
    definition.file = io::join(files.directory, "tokenizer.json");
    const JsonDocument document(files.tokenizer, definition.file);
    check_other_blocks(document.root());
    read_pre_tokenizer(document.root(), definition);
    read_model(document.root(), definition);
    read_added(document.root(), definition);
    // tokenizer_config.json wins.
    for (const auto& [name, text] : {std::pair{"tokenizer_config.json", &files.config},
                                     std::pair{"special_tokens_map.json", &files.special_tokens}}) {
        if (text->empty()) continue;
        const JsonDocument names(*text, io::join(files.directory, name));
        read_names(names.root(), definition);
    }
    return definition;
}

TokenizerDefinition definition_from_directory(const std::string& directory) {
    const auto read = [&](const char* name, bool required) {
        const std::string path = io::join(directory, name);
        if (!io::exists(path)) {
            if (!required) return std::string();
            throw Error(Exit::kBadModel, path + " is missing; copy it from the model that this one was made from");
        }
        return io::read_file(path, kMaxFile);
    };
    return definition_from_json({directory, read("tokenizer.json", true), read("tokenizer_config.json", false),
                                 read("special_tokens_map.json", false)});
}

}  // namespace orpo
