// What the data tests share: a small tokenizer, and the real one where it is there.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/dataset.h"
#include "model/gguf.h"
#include "model/resolve.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/utf8.h"

namespace orpo {

inline TokenizerSource source_of(std::shared_ptr<const GgufTokenizerFields> fields) {
    TokenizerSource source;
    source.gguf = std::move(fields);
    return source;
}

// Every byte, SmolLM2's three turn tokens, and merges enough for words to cross a boundary. `base`: as the base models
// have it (BOS and EOS <|endoftext|>), else as Instruct ones (<|im_start|>, <|im_end|>).
inline Tokenizer small_tokenizer(bool base = false) {
    auto fields = std::make_shared<GgufTokenizerFields>();
    fields->model = "gpt2";
    fields->pre = "smollm";
    fields->tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    fields->types = {3, 3, 3};
    char32_t next = 256;
    std::vector<std::string> letter(256);
    for (int b = 0; b < 256; ++b) {
        const bool plain = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        append_utf8(plain ? static_cast<char32_t>(b) : next++, letter[b]);
        fields->tokens.push_back(letter[b]);
    }
    for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{{letter['\n'], letter['\n']},
                                                                               {"a", "b"},
                                                                               {"ab", "c"},
                                                                               {letter[' '], "a"},
                                                                               {letter[' '], letter[' ']},
                                                                               {"t", "h"},
                                                                               {"th", "e"},
                                                                               {letter[' '], "the"}}) {
        fields->merges.push_back(a + " " + b);
        fields->tokens.push_back(a + b);
    }
    fields->types.resize(fields->tokens.size(), 1);
    fields->bos = base ? 0 : 1;
    fields->eos = fields->pad = base ? 0 : 2;
    return Tokenizer::load(source_of(fields));
}

// The fields of the real model's tokenizer, or null with a loud word.
inline std::shared_ptr<GgufTokenizerFields> real_tokenizer_fields() {
    try {
        const ResolvedModel model = resolve_model("");
        if (model.is_gguf)
            return std::make_shared<GgufTokenizerFields>(gguf_tokenizer_fields(GgufFile::open(model.path)));
    } catch (const Error&) {
    }
    MESSAGE("skipped: no model (a .gguf in the cache, or ORPO_MODEL)");
    return nullptr;
}

inline std::string test_file(const std::string& name) {
    const char* root = std::getenv("ORPO_TEST_DATA");
    return (std::filesystem::path(root == nullptr ? "tests" : root) / name).string();
}

// Real data that is not part of the project: ORPO_TEST_SHARED, else ../shared/data beside the repository.
inline std::optional<std::string> shared_file(const std::string& name) {
    const char* set = std::getenv("ORPO_TEST_SHARED");
    const char* root = std::getenv("ORPO_TEST_DATA");
    std::filesystem::path folder = set != nullptr ? set : "";
    if (set == nullptr) folder = std::filesystem::path(root == nullptr ? "tests" : root) / "../../shared/data";
    if (!std::filesystem::exists(folder / name)) return std::nullopt;
    return (folder / name).string();
}

// The message of the Error that `run` throws; checks its exit code.
template <class Run>
std::string message_of(Exit exit, Run run) {
    try {
        run();
    } catch (const Error& e) {
        CHECK(static_cast<int>(e.exit()) == static_cast<int>(exit));
        return e.what();
    }
    FAIL("nothing was thrown");
    return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace orpo
