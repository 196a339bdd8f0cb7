#include "model/tokenizer.h"

#include <doctest/doctest.h>

#include <memory>

#include "base/error.h"
#include "model/tokenizer_spec.h"

using namespace orpo;

namespace {

// Four merges over a handful of bytes.
Tokenizer tiny() {
    auto fields = std::make_shared<GgufTokenizerFields>();
    fields->model = "gpt2";
    fields->pre = "smollm";
    fields->tokens = {"<|end|>", "a", "b", "c", "Ġ", "1", "ab", "abc", "Ġa", "Ġab"};
    fields->types = {3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    fields->merges = {"a b", "ab c", "Ġ a", "Ġ ab"};
    fields->bos = fields->eos = 0;
    TokenizerSource source;
    source.gguf = fields;
    return Tokenizer::load(source);
}

}  // namespace

TEST_CASE("a tokenizer of ten tokens") {
    const Tokenizer tokenizer = tiny();
    using Ids = std::vector<int32_t>;
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
