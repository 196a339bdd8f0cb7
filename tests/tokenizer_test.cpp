#include "model/tokenizer.h"

#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/io.h"
#include "model/tokenizer_spec.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

using Ids = std::vector<int32_t>;

// Four merges over a handful of bytes.
GgufTokenizerFields tiny_fields() {
    GgufTokenizerFields fields;
    fields.model = "gpt2";
    fields.pre = "smollm";
    fields.tokens = {"<|end|>", "a", "b", "c", "Ġ", "1", "ab", "abc", "Ġa", "Ġab"};
    fields.types = {3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    fields.merges = {"a b", "ab c", "Ġ a", "Ġ ab"};
    fields.bos = fields.eos = 0;
    fields.file = "tiny.gguf";
    return fields;
}

Tokenizer from_gguf(const GgufTokenizerFields& fields) {
    TokenizerSource source;
    source.gguf = std::make_shared<const GgufTokenizerFields>(fields);
    return Tokenizer::load(source);
}
Tokenizer tiny() { return from_gguf(tiny_fields()); }

Tokenizer from_files(const std::string& tokenizer, const std::string& config = "", const std::string& special = "") {
    const TempDir dir;
    io::write_file_atomic(dir / "tokenizer.json", tokenizer);
    if (!config.empty()) io::write_file_atomic(dir / "tokenizer_config.json", config);
    if (!special.empty()) io::write_file_atomic(dir / "special_tokens_map.json", special);
    TokenizerSource source;
    source.directory = dir.path();
    return Tokenizer::load(source);
}

using Json = nlohmann::ordered_json;
// The tiny tokenizer's own file with something changed.
std::string changed(const std::function<void(Json&)>& change) {
    Json json = Json::parse(tiny().tokenizer_json());
    change(json);
    return json.dump();
}

// The message of the Error(exit) that `call` throws.
template <class Call>
std::string message_of(Exit exit, Call&& call) {
    try {
        call();
    } catch (const Error& error) {
        CHECK(error.exit() == exit);
        return error.what();
    }
    FAIL("no error");
    return "";
}

}  // namespace

TEST_CASE("a tokenizer of ten tokens") {
    const Tokenizer tokenizer = tiny();
    CHECK(tokenizer.encode("abc") == Ids{7});
    CHECK(tokenizer.encode(" abcab") == Ids{4, 7, 6});
    CHECK(tokenizer.encode(" ab") == Ids{9});
    CHECK(tokenizer.encode("ab1 1") == Ids{6, 5, 4, 5});
    CHECK(tokenizer.encode("<|end|>a") == Ids{0, 1});
    CHECK(tokenizer.encode("") == Ids{});
    int64_t dropped = 0;
    CHECK(tokenizer.encode("<|end|>a", SpecialText::kLiteral, &dropped) == Ids{1});
    CHECK(dropped == 7);
    CHECK_THROWS_AS(tokenizer.encode("a<|end|>", SpecialText::kError), Error);
    CHECK_THROWS_AS(tokenizer.encode("a\xff"), Error);
    CHECK(tokenizer.decode(Ids{9, 3, 0}) == " abc<|end|>");
    CHECK(tokenizer.decode(Ids{9, 3, 0}, true) == " abc");
}

TEST_CASE("a dropped byte makes its neighbours neighbours") {
    int64_t dropped = 0;
    CHECK(tiny().encode("axb", SpecialText::kParse, &dropped) == Ids{6});
    CHECK(dropped == 1);
    CHECK(tiny().encode("xyz", SpecialText::kParse, &dropped) == Ids{});
    CHECK(dropped == 3);
}

TEST_CASE("special text: the token, the letters, or refused with its place") {
    const Tokenizer tokenizer = tiny();
    CHECK(tokenizer.count_special("<|end|><|end|> <|end|") == 2);
    CHECK(tokenizer.find("<|end|>") == 0);
    CHECK(tokenizer.find("a") == -1);
    CHECK(tokenizer.is_special(0));
    CHECK_FALSE(tokenizer.is_special(1));
    CHECK_FALSE(tokenizer.is_special(-1));
    CHECK_FALSE(tokenizer.is_special(10));
    const std::string message =
        message_of(Exit::kBadData, [&] { tokenizer.encode("ab <|end|>", SpecialText::kError); });
    CHECK(message.find("<|end|> at byte 3") != std::string::npos);
}

TEST_CASE("bad text and bad ids name their place") {
    const Tokenizer tokenizer = tiny();
    for (const auto& [text, at] : {std::pair<std::string, int>{"a\xff", 1},
                                   {"\xc3", 0},
                                   {"ab\xe2\x82", 2},
                                   {"\xc0\x80", 0},
                                   {"a\xed\xa0\x80", 1},
                                   {"\xf4\x90\x80\x80", 0},
                                   {std::string(100, 'a') + "\x80", 100}}) {
        const std::string message = message_of(Exit::kBadData, [&, &text = text] { tokenizer.encode(text); });
        CHECK(message.find("byte " + std::to_string(at) + ";") != std::string::npos);
    }
    for (const int32_t id : {-1, 10, INT32_MAX, INT32_MIN}) {
        message_of(Exit::kBadData, [&] { tokenizer.decode(Ids{1, id}); });
        message_of(Exit::kBadData, [&] { tokenizer.token_bytes(id); });
    }
}

TEST_CASE("decoding repairs broken UTF-8, one mark for each broken part") {
    GgufTokenizerFields fields = tiny_fields();
    fields.tokens = {"<|end|>", "Ã", "©", "ð", "Ł", "ĺ", "a"};  // the bytes C3 A9 F0 9F 98 in the alphabet
    fields.types = {3, 1, 1, 1, 1, 1, 1};
    fields.merges = {};
    const Tokenizer tokenizer = from_gguf(fields);
    CHECK(tokenizer.decode(Ids{1, 2}) == "é");
    CHECK(tokenizer.decode(Ids{2, 1}) == "\uFFFD\uFFFD");
    CHECK(tokenizer.decode(Ids{1, 6}) == "\uFFFDa");
    CHECK(tokenizer.decode(Ids{3, 4, 5, 6}) == "\uFFFDa");  // a sequence that lacks its end is one part
    CHECK(tokenizer.token_bytes(1) == "\xc3");
}

TEST_CASE("tokenizer.json: both spellings of merges, and where the special tokens are named") {
    const Tokenizer strings = from_files(tiny().tokenizer_json());
    CHECK(strings.fingerprint() == tiny().fingerprint());
    CHECK(strings.bos() == -1);
    const Tokenizer pairs = from_files(changed([](Json& json) {
        for (Json& merge : json["model"]["merges"]) {
            const std::string both = merge;
            merge = Json::array({both.substr(0, both.find(' ')), both.substr(both.find(' ') + 1)});
        }
    }));
    CHECK(pairs.fingerprint() == tiny().fingerprint());

    const Tokenizer named = from_files(tiny().tokenizer_json(), R"({"bos_token": "<|end|>", "pad_token": null})",
                                       R"({"bos_token": "a", "eos_token": {"content": "b", "lstrip": false}})");
    CHECK(named.bos() == 0);
    CHECK(named.eos() == 2);
    CHECK(named.pad() == -1);

    // What transformers 5 writes: no digit splitting, empty strings for null, a template that adds nothing.
    const auto add_space_one = [](Json& json) {
        json["model"]["vocab"]["Ġ1"] = 10;
        json["model"]["merges"].push_back("Ġ 1");
    };
    const Tokenizer gpt2 = from_files(changed([&](Json& json) {
        add_space_one(json);
        json["pre_tokenizer"] = json["pre_tokenizer"]["pretokenizers"][1];
        json["model"]["continuing_subword_prefix"] = "";
        json["model"]["end_of_word_suffix"] = "";
        json["truncation"] = {{"max_length", 4}};
        json["post_processor"] = {{"type", "TemplateProcessing"},
                                  {"single", Json::array({{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
                                  {"special_tokens", Json::object()}};
    }));
    CHECK(gpt2.fingerprint() != tiny().fingerprint());
    CHECK(gpt2.encode("a 1 11") == Ids{1, 10, 10, 5});
    const Tokenizer digits = from_files(changed(add_space_one));
    CHECK(digits.encode("a 1 11") == Ids{1, 4, 5, 4, 5, 5});

    // A token that was added later, above the vocabulary, not special.
    const Tokenizer added = from_files(changed([](Json& json) {
        json["added_tokens"].push_back({{"id", 10}, {"content", "ca"}, {"special", false}, {"normalized", true}});
    }));
    CHECK(added.vocabulary() == 11);
    CHECK(added.encode("abcab", SpecialText::kLiteral) == Ids{6, 10, 2});
    CHECK(added.decode(Ids{10}) == "ca");
}

TEST_CASE("other tokenizers are refused by name") {
    const auto refused = [](const std::string& names, const std::function<void(Json&)>& change) {
        const std::string message = message_of(Exit::kBadModel, [&] { from_files(changed(change)); });
        CAPTURE(message);
        CHECK(message.find("tokenizer.json: ") != std::string::npos);
        CHECK(message.find(names) != std::string::npos);
    };
    refused("Unigram", [](Json& j) { j["model"]["type"] = "Unigram"; });
    refused("WordPiece", [](Json& j) { j["model"]["type"] = "WordPiece"; });
    refused("NFC", [](Json& j) { j["normalizer"] = {{"type", "NFC"}}; });
    refused("Metaspace", [](Json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; });
    refused("add_prefix_space", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; });
    refused("individual_digits", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false; });
    refused("pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; });
    refused("Split", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Split"}}; });
    refused("WordPiece", [](Json& j) { j["decoder"] = {{"type", "WordPiece"}}; });
    refused("decoder", [](Json& j) { j.erase("decoder"); });
    refused("BertProcessing", [](Json& j) { j["post_processor"] = {{"type", "BertProcessing"}}; });
    refused("SpecialToken", [](Json& j) {
        j["post_processor"] = {{"type", "TemplateProcessing"},
                               {"single", Json::array({{{"SpecialToken", {{"id", "<s>"}}}}})}};
    });
    refused("dropout", [](Json& j) { j["model"]["dropout"] = 0.1; });
    refused("unk_token", [](Json& j) { j["model"]["unk_token"] = "a"; });
    refused("byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = true; });
    refused("end_of_word_suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
    refused("lstrip", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; });
    refused("model is missing", [](Json& j) { j.erase("model"); });
}

TEST_CASE("damaged tokenizer files name the place") {
    const auto refused = [](const std::string& place, const std::function<void(Json&)>& change) {
        const std::string message = message_of(Exit::kBadModel, [&] { from_files(changed(change)); });
        CAPTURE(message);
        CHECK(message.find(place) != std::string::npos);
    };
    refused("model.vocab", [](Json& j) { j["model"].erase("vocab"); });
    refused("no token with the id 10", [](Json& j) { j["model"]["vocab"]["z"] = 12; });
    refused("taken twice", [](Json& j) { j["model"]["vocab"]["z"] = 3; });
    refused("token id", [](Json& j) { j["model"]["vocab"]["z"] = -1; });
    refused("token id", [](Json& j) { j["model"]["vocab"]["z"] = 1ull << 40; });
    refused("token id", [](Json& j) { j["model"]["vocab"]["z"] = "10"; });
    refused("model.merges[0]", [](Json& j) { j["model"]["merges"][0] = "ab"; });
    refused("model.merges[1]", [](Json& j) { j["model"]["merges"][1] = "a b c"; });
    refused("model.merges[2]", [](Json& j) { j["model"]["merges"][2] = Json::array({"a", "b"}); });
    refused("merge 1", [](Json& j) { j["model"]["merges"][1] = "c ab"; });
    refused("merge 0", [](Json& j) { j["model"]["merges"][0] = "a z"; });
    refused("added token 3", [](Json& j) { j["added_tokens"][0]["id"] = 3; });
    refused("added token 12", [](Json& j) {
        j["added_tokens"].push_back({{"id", 12}, {"content", "new"}, {"special", true}});
    });
    refused("added_tokens[0].content", [](Json& j) { j["added_tokens"][0]["content"] = ""; });
    refused("twice", [](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); });
    CHECK(message_of(Exit::kBadModel, [] { from_files("{"); }).find("JSON") != std::string::npos);
    CHECK(message_of(Exit::kBadModel, [] {
              from_files(tiny().tokenizer_json(), R"({"eos_token": "</s>"})");
          }).find("</s>") != std::string::npos);
    const TempDir empty;
    TokenizerSource source;
    source.directory = empty.path();
    CHECK(message_of(Exit::kBadModel, [&] { Tokenizer::load(source); }).find("tokenizer.json") != std::string::npos);
}

TEST_CASE("damaged or other GGUF tokenizers name the field") {
    const auto refused = [](const std::string& place, const std::function<void(GgufTokenizerFields&)>& change) {
        GgufTokenizerFields fields = tiny_fields();
        change(fields);
        const std::string message = message_of(Exit::kBadModel, [&] { from_gguf(fields); });
        CAPTURE(message);
        CHECK(message.find("tiny.gguf: ") == 0);
        CHECK(message.find(place) != std::string::npos);
    };
    refused("\"llama\"", [](auto& f) { f.model = "llama"; });
    refused("\"qwen2\"", [](auto& f) { f.pre = "qwen2"; });
    refused("add_bos_token", [](auto& f) { f.add_bos = true; });
    refused("tokens is empty", [](auto& f) { f.tokens.clear(); });
    refused("token_type", [](auto& f) { f.types.clear(); });
    refused("tokens[1]", [](auto& f) { f.types[1] = 6; });
    refused("tokens[2]", [](auto& f) { f.tokens[2] = "\xff"; });
    refused("same as token 1", [](auto& f) { f.tokens[2] = "a"; });
    refused("token 2 is empty", [](auto& f) { f.tokens[2] = ""; });
    refused("merges[0]", [](auto& f) { f.merges[0] = "ab"; });
    refused("merges[0]", [](auto& f) { f.merges[0] = " ab"; });
    refused("merges[1]", [](auto& f) { f.merges[1] = "a b c"; });
    refused("merge 3", [](auto& f) { f.merges[3] = "b a"; });
    refused("id 10", [](auto& f) { f.eos = 10; });
}
