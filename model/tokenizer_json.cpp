// tokenizer.json, tokenizer_config.json and special_tokens_map.json, as Hugging Face tokenizers and transformers write
// them. Only one kind of tokenizer is read; each part that is another is refused by its name.
#include <simdjson.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "base/io.h"
#include "model/tokenizer_definition.h"

namespace orpo {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr uint64_t kMaxFile = 256ull << 20;
constexpr int64_t kMaxTokens = 1 << 24;

// One JSON document and the words for what is wrong with it.
class Document {
  public:
    Document(std::string file, const std::string& text) : file_(std::move(file)) {
        element root;
        if (const auto error = parser_.parse(text).get(root)) {
            refuse(std::string("is no valid JSON: ") + simdjson::error_message(error));
        }
        if (root.get(root_)) refuse("must be a JSON object");
    }

    [[noreturn]] void refuse(const std::string& what) const { throw Error(Exit::kBadModel, file_ + ": " + what); }
    [[noreturn]] void refuse_value(const std::string& field, element value, const std::string& supported) const {
        std::string shown = simdjson::to_string(value);
        if (shown.size() > 200) shown = shown.substr(0, 200) + "...";
        refuse(field + " " + shown + " is not supported; supported: " + supported);
    }
    const object& root() const { return root_; }

    // False when the key is missing or null.
    bool find(const object& in, std::string_view key, element* value) const {
        return !in.at_key(key).get(*value) && !value->is_null();
    }
    bool flag(const object& in, const std::string& field, std::string_view key, bool missing) const {
        element value;
        if (!find(in, key, &value)) return missing;
        bool flag = false;
        if (value.get(flag)) refuse(field + "." + std::string(key) + " must be true or false");
        return flag;
    }
    std::string text(element value, const std::string& field) const {
        std::string_view text;
        if (value.get(text)) refuse(field + " must be a string");
        return std::string(text);
    }
    int32_t token_id(element value, const std::string& field) const {
        int64_t id = 0;
        if (value.get(id) || id < 0 || id >= kMaxTokens) refuse(field + " must be a token id");
        return static_cast<int32_t>(id);
    }
    std::string type(element value) const {
        object in;
        std::string_view type;
        return !value.get(in) && !in.at_key("type").get(type) ? std::string(type) : "";
    }

  private:
    std::string file_;
    simdjson::dom::parser parser_;
    object root_;
};

// The members of a Sequence, or the one thing itself. `key`: where a Sequence keeps its members.
std::vector<element> parts(const Document& document, element value, std::string_view key) {
    if (document.type(value) != "Sequence") return {value};
    array members;
    object in;
    if (value.get(in) || in.at_key(key).get(members)) {
        document.refuse("a Sequence lacks \"" + std::string(key) + "\"");
    }
    return {members.begin(), members.end()};
}

constexpr char kPreTokenizers[] =
    "Sequence of Digits (individual_digits) and ByteLevel (no prefix space, with regex), or ByteLevel alone";

void read_pre_tokenizer(const Document& document, TokenizerDefinition& definition) {
    element value;
    if (!document.find(document.root(), "pre_tokenizer", &value)) {
        document.refuse(std::string("pre_tokenizer is missing; supported: ") + kPreTokenizers);
    }
    const auto members = parts(document, value, "pretokenizers");
    const auto digits = [&](element member) {
        object in;
        return document.type(member) == "Digits" && !member.get(in) &&
               document.flag(in, "pre_tokenizer", "individual_digits", false);
    };
    const auto byte_level = [&](element member) {
        object in;
        return document.type(member) == "ByteLevel" && !member.get(in) &&
               !document.flag(in, "pre_tokenizer", "add_prefix_space", true) &&
               document.flag(in, "pre_tokenizer", "use_regex", true);
    };
    definition.isolate_digits = members.size() == 2;
    const bool supported = definition.isolate_digits ? digits(members[0]) && byte_level(members[1])
                                                     : members.size() == 1 && byte_level(members[0]);
    if (!supported) document.refuse_value("pre_tokenizer", value, kPreTokenizers);
}

void check_other_blocks(const Document& document) {
    element value;
    if (document.find(document.root(), "normalizer", &value)) {
        if (document.type(value) != "Sequence" || !parts(document, value, "normalizers").empty()) {
            document.refuse_value("normalizer", value, "none");
        }
    }
    // ByteLevel here only moves offsets; anything else would add tokens.
    if (document.find(document.root(), "post_processor", &value)) {
        for (const element part : parts(document, value, "processors")) {
            if (document.type(part) != "ByteLevel") document.refuse_value("post_processor", part, "none, ByteLevel");
        }
    }
    if (!document.find(document.root(), "decoder", &value)) document.refuse("decoder is missing; supported: ByteLevel");
    if (document.type(value) != "ByteLevel") document.refuse_value("decoder", value, "ByteLevel");
}

void read_model(const Document& document, TokenizerDefinition& definition) {
    object model;
    if (document.root().at_key("model").get(model)) document.refuse("model is missing");
    element value;
    if (document.find(model, "type", &value) && document.text(value, "model.type") != "BPE") {
        document.refuse_value("model.type", value, "BPE");
    }
    double dropout = 0;
    if (document.find(model, "dropout", &value) && (value.get(dropout) || dropout != 0)) {
        document.refuse_value("model.dropout", value, "null");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        if (document.find(model, key, &value) && !document.text(value, key).empty()) {
            document.refuse_value(std::string("model.") + key, value, "null");
        }
    }
    if (document.find(model, "unk_token", &value)) {
        document.refuse_value("model.unk_token", value, "null (bytes without a token are dropped)");
    }
    if (document.flag(model, "model", "byte_fallback", false)) {
        document.refuse("model.byte_fallback true is not supported; supported: false");
    }
    definition.ignore_merges = document.flag(model, "model", "ignore_merges", false);

    object vocabulary;
    if (model.at_key("vocab").get(vocabulary)) document.refuse("model.vocab must be an object of token: id");
    std::vector<std::string> tokens;
    for (const auto& [token, id_value] : vocabulary) {
        const std::string field = "model.vocab[\"" + std::string(token) + "\"]";
        const int32_t id = document.token_id(id_value, field);
        if (token.empty()) document.refuse(field + ": a token must not be empty");
        if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
        if (!tokens[id].empty()) document.refuse(field + ": the id " + std::to_string(id) + " is taken twice");
        tokens[id] = token;
    }
    if (tokens.empty()) document.refuse("model.vocab is empty");
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (tokens[id].empty()) document.refuse("model.vocab has no token with the id " + std::to_string(id));
    }
    definition.tokens = std::move(tokens);

    // Either "a b" or ["a", "b"], the same in the whole list.
    array merges;
    if (model.at_key("merges").get(merges)) document.refuse("model.merges must be a list");
    bool pairs = false;
    for (const element merge : merges) {
        const std::string field = "model.merges[" + std::to_string(definition.merges.size()) + "]";
        array pair;
        const bool is_pair = !merge.get(pair);
        if (definition.merges.empty()) pairs = is_pair;
        if (is_pair != pairs) document.refuse(field + ": strings and pairs are mixed");
        if (is_pair) {
            if (pair.size() != 2) document.refuse(field + " must have two tokens");
            definition.merges.emplace_back(document.text(pair.at(0).value(), field),
                                           document.text(pair.at(1).value(), field));
        } else {
            const std::string both = document.text(merge, field);
            const size_t space = both.find(' ');
            if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
                document.refuse(field + " must be two tokens with a space between");
            }
            definition.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
        }
    }
}

void read_added(const Document& document, TokenizerDefinition& definition) {
    element value;
    if (!document.find(document.root(), "added_tokens", &value)) return;
    array list;
    if (value.get(list)) document.refuse("added_tokens must be a list");
    for (const element entry : list) {
        const std::string field = "added_tokens[" + std::to_string(definition.added.size()) + "]";
        object in;
        if (entry.get(in)) document.refuse(field + " must be an object");
        TokenizerDefinition::Added added;
        if (!document.find(in, "id", &value)) document.refuse(field + ".id is missing");
        added.id = document.token_id(value, field + ".id");
        if (!document.find(in, "content", &value)) document.refuse(field + ".content is missing");
        added.content = document.text(value, field + ".content");
        added.special = document.flag(in, field, "special", false);
        added.normalized = document.flag(in, field, "normalized", !added.special);
        for (const char* key : {"single_word", "lstrip", "rstrip"}) {
            if (document.flag(in, field, key, false)) {
                document.refuse(field + "." + key + " true is not supported; supported: false");
            }
        }
        definition.added.push_back(std::move(added));
    }
    std::stable_sort(definition.added.begin(), definition.added.end(),
                     [](const auto& a, const auto& b) { return a.id < b.id; });
    for (size_t i = 1; i < definition.added.size(); ++i) {
        if (definition.added[i].id == definition.added[i - 1].id) {
            document.refuse("added_tokens has the id " + std::to_string(definition.added[i].id) + " twice");
        }
    }
}

}  // namespace

TokenizerDefinition definition_from_json(const TokenizerFiles& files) {
    TokenizerDefinition definition;
    definition.file = io::join(files.directory, "tokenizer.json");
    const Document document(definition.file, files.tokenizer);
    check_other_blocks(document);
    read_pre_tokenizer(document, definition);
    read_model(document, definition);
    read_added(document, definition);

    // "<|im_end|>", or the whole added token as an object. tokenizer_config.json wins.
    struct Named {
        const char* key;
        int32_t* id;
    };
    const Named named[] = {{"bos_token", &definition.bos},
                           {"eos_token", &definition.eos},
                           {"unk_token", &definition.unk},
                           {"pad_token", &definition.pad}};
    const auto read_names = [&](const char* name, const std::string& text) {
        if (text.empty()) return;
        const Document names(io::join(files.directory, name), text);
        for (const auto& [key, id] : named) {
            element value;
            object in;
            if (*id >= 0 || !names.find(names.root(), key, &value)) continue;
            if (!value.get(in) && !names.find(in, "content", &value)) {
                names.refuse(std::string(key) + ".content is missing");
            }
            const std::string token = names.text(value, key);
            for (const auto& added : definition.added) {
                if (added.content == token) *id = added.id;
            }
            for (size_t i = 0; *id < 0 && i < definition.tokens.size(); ++i) {
                if (definition.tokens[i] == token) *id = static_cast<int32_t>(i);
            }
            if (*id < 0) names.refuse(std::string(key) + " \"" + token + "\" is no token of tokenizer.json");
        }
    };
    read_names("tokenizer_config.json", files.config);
    read_names("special_tokens_map.json", files.special_tokens);
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
