// Writing tokenizer.json and tokenizer_config.json.
#include <nlohmann/json.hpp>

#include "model/tokenizer_definition.h"

namespace orpo {
namespace {

using Json = nlohmann::ordered_json;

Json added_token(const TokenizerDefinition::Added& added) {
    return {{"content", added.content}, {"single_word", false},           {"lstrip", false},
            {"rstrip", false},          {"normalized", added.normalized}, {"special", added.special}};
}

// The decoder's add_prefix_space does nothing; the official file has it true, and ours is that file byte for byte.
Json byte_level(bool add_prefix_space) {
    return {{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", true}};
}

const std::string& token_text(const TokenizerDefinition& definition, int32_t id) {
    for (const auto& added : definition.added) {
        if (added.id == id) return added.content;
    }
    return definition.tokens[id];
}

}  // namespace

std::string tokenizer_json(const TokenizerDefinition& definition) {
    Json added = Json::array();
    for (const auto& token : definition.added) {
        Json entry = {{"id", token.id}};
        entry.update(added_token(token));
        added.push_back(std::move(entry));
    }
    Json pre_tokenizer = byte_level(false);
    if (definition.isolate_digits) {
        pre_tokenizer = {{"type", "Sequence"},
                         {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level(false)}}};
    }
    Json vocabulary = Json::object();
    for (size_t id = 0; id < definition.tokens.size(); ++id) {
        // Appended unseen: ordered_json looks through all keys at every [], and the tokens are known to differ.
        vocabulary.get_ref<Json::object_t&>().emplace_back(definition.tokens[id], id);
    }
    // "a b" is what every version reads; a token with a space in it needs the pair.
    bool spaces = false;
    for (const auto& [left, right] : definition.merges) {
        spaces = spaces || left.find(' ') != std::string::npos || right.find(' ') != std::string::npos;
    }
    Json merges = Json::array();
    for (const auto& [left, right] : definition.merges) {
        merges.push_back(spaces ? Json::array({left, right}) : Json(left + " " + right));
    }
    const Json root = {{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", std::move(added)},
                       {"normalizer", nullptr},
                       {"pre_tokenizer", std::move(pre_tokenizer)},
                       {"post_processor", nullptr},
                       {"decoder", byte_level(true)},
                       {"model",
                        {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"ignore_merges", definition.ignore_merges},
                         {"vocab", std::move(vocabulary)},
                         {"merges", std::move(merges)}}}};
    return root.dump(2);
}

std::string tokenizer_config_json(const TokenizerDefinition& definition, std::string_view chat_template,
                                  int max_positions) {
    Json decoder = Json::object();
    for (const auto& token : definition.added) decoder[std::to_string(token.id)] = added_token(token);
    Json root = {{"add_prefix_space", false}, {"added_tokens_decoder", std::move(decoder)}};
    const auto name = [&](const char* key, int32_t id) {
        if (id >= 0) root[key] = token_text(definition, id);
    };
    name("bos_token", definition.bos);
    if (!chat_template.empty()) root["chat_template"] = chat_template;
    root["clean_up_tokenization_spaces"] = false;
    name("eos_token", definition.eos);
    root["model_max_length"] = max_positions;
    name("pad_token", definition.pad);
    // Not SmolLM2's own "GPT2Tokenizer": transformers 5 builds that class anew and leaves the digit splitting out.
    root["tokenizer_class"] = "PreTrainedTokenizerFast";
    name("unk_token", definition.unk);
    return root.dump(2) + "\n";
}

}  // namespace orpo
