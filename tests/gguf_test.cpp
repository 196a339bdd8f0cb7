#include "model/gguf.h"

#include <doctest/doctest.h>

#include <functional>

#include "base/io.h"
#include "model/model_files.h"
#include "model/tokenizer_spec.h"
#include "tests/expect_error.h"
#include "tests/gguf_builder.h"
#include "tests/test_data.h"

using namespace orpo;

namespace {

GgufFile parse(const std::string& bytes) { return GgufFile(io::memory_reader(bytes, "model.gguf")); }

std::string floats(std::vector<float> values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

// Two keys and two tensors, the first of which needs padding.
GgufBuilder sound() {
    GgufBuilder b;
    b.str("general.architecture", "llama").u32("answer", 42);
    b.tensor("a", {3}, 0, floats({1, 2, 3})).tensor("b", {2, 2}, 0, floats({1, 2, 3, 4}));
    return b;
}

void refused(const std::vector<std::string>& words, const std::string& bytes) {
    std::vector<std::string> all = words;
    all.push_back("model.gguf");
    expect_error(Exit::kBadModel, all, [&] { parse(bytes); });
}

// A llama of one layer: V 8, C 32, H 2, KV 1, HS 16, I 32. `spoil` may add to it before the tensors.
GgufBuilder tiny(
    const std::function<void(GgufBuilder&)>& spoil = [](GgufBuilder&) {}, bool theta = true) {
    GgufBuilder b;
    b.str("general.architecture", "llama");
    b.u32("llama.block_count", 1).u32("llama.context_length", 64).u32("llama.embedding_length", 32);
    b.u32("llama.feed_forward_length", 32).u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
    b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (theta) b.f32("llama.rope.freq_base", 100000);
    spoil(b);
    const auto matrix = [](uint64_t rows, uint64_t cols) { return floats(std::vector<float>(rows * cols, 0.5f)); };
    b.tensor("token_embd.weight", {32, 8}, 0, matrix(8, 32));
    b.tensor("blk.0.attn_norm.weight", {32}, 0, matrix(1, 32));
    b.tensor("blk.0.attn_q.weight", {32, 32}, 0, matrix(32, 32));
    b.tensor("blk.0.attn_k.weight", {32, 16}, 0, matrix(16, 32));
    b.tensor("blk.0.attn_v.weight", {32, 16}, 0, matrix(16, 32));
    b.tensor("blk.0.attn_output.weight", {32, 32}, 0, matrix(32, 32));
    b.tensor("blk.0.ffn_norm.weight", {32}, 0, matrix(1, 32));
    b.tensor("blk.0.ffn_gate.weight", {32, 32}, 0, matrix(32, 32));
    b.tensor("blk.0.ffn_up.weight", {32, 32}, 0, matrix(32, 32));
    b.tensor("blk.0.ffn_down.weight", {32, 32}, 0, matrix(32, 32));
    b.tensor("output_norm.weight", {32}, 0, matrix(1, 32));
    return b;
}

void tiny_refused(const std::vector<std::string>& words, const GgufBuilder& builder) {
    const std::string bytes = builder.bytes();
    expect_error(Exit::kBadModel, words,
                 [&] { gguf_weights(std::make_shared<const GgufFile>(io::memory_reader(bytes, "model.gguf"))); });
}

}  // namespace

TEST_CASE("a sound file: metadata, tensors, values") {
    for (const uint32_t version : {2u, 3u}) {
        GgufBuilder b = sound();
        b.version = version;
        const std::string bytes = b.bytes();
        const GgufFile file = parse(bytes);
        CHECK(file.version() == static_cast<int>(version));
        CHECK(file.text("general.architecture") == "llama");
        CHECK(file.integer("answer") == 42);
        CHECK(file.find("question") == nullptr);
        const GgufTensor* tensor = file.find_tensor("b");
        REQUIRE(tensor != nullptr);
        CHECK(tensor->shape == std::vector<int64_t>{2, 2});
        float values[3] = {0, 0, 99};
        file.read_rows(*tensor, 1, 1, values);
        CHECK(values[0] == 3);
        CHECK(values[1] == 4);
        CHECK(values[2] == 99);
        expect_error(Exit::kBadModel, {"question"}, [&] { file.integer("question"); });
        expect_error(Exit::kBadModel, {"answer"}, [&] { file.text("answer"); });
    }
    // Shapes are reversed: in the file the fastest side comes first.
    const std::string bytes = GgufBuilder().tensor("m", {3, 2}, 0, floats({1, 2, 3, 4, 5, 6})).bytes();
    CHECK(parse(bytes).find_tensor("m")->shape == std::vector<int64_t>{2, 3});
}

TEST_CASE("every kind of value") {
    GgufBuilder b;
    b.key("u8", 0, GgufBuilder::le<uint8_t>(200)).key("i8", 1, GgufBuilder::le<int8_t>(-3));
    b.key("u16", 2, GgufBuilder::le<uint16_t>(60000)).key("i16", 3, GgufBuilder::le<int16_t>(-300));
    b.key("i32", 5, GgufBuilder::le<int32_t>(-70000)).key("yes", 7, "\1");
    b.key("u64", 10, GgufBuilder::le<uint64_t>(1ull << 40)).key("i64", 11, GgufBuilder::le<int64_t>(-5));
    b.key("f64", 12, GgufBuilder::le<double>(0.1)).strings("list", {"a", "", "c"});
    b.key("numbers", 9,
          GgufBuilder::le<uint32_t>(5) + GgufBuilder::le<uint64_t>(2) + GgufBuilder::le<int32_t>(-1) +
              GgufBuilder::le<int32_t>(7));
    const std::string bytes = b.bytes();
    const GgufFile file = parse(bytes);
    CHECK(file.integer("u8") == 200);
    CHECK(file.integer("i8") == -3);
    CHECK(file.integer("u16") == 60000);
    CHECK(file.integer("i16") == -300);
    CHECK(file.integer("i32") == -70000);
    CHECK(file.find("yes")->integer == 1);
    CHECK(file.integer("u64") == 1ll << 40);
    CHECK(file.integer("i64") == -5);
    CHECK(file.real("f64") == 0.1);
    CHECK(file.find("list")->texts == std::vector<std::string>{"a", "", "c"});
    CHECK(file.find("numbers")->integers == std::vector<int64_t>{-1, 7});
}

// The kinds of damage that llama.cpp's own tests know (tests/test-gguf.cpp there), and those of published attacks.
TEST_CASE("damaged heads are refused") {
    const auto with = [](auto spoil) {
        GgufBuilder b = sound();
        spoil(b);
        return b.bytes();
    };
    refused({"too short"}, "");
    refused({"too short"}, "GGUF");
    refused({"GGUF"}, with([](auto& b) { b.magic = "FUGU"; }));
    refused({"version 0"}, with([](auto& b) { b.version = 0; }));
    refused({"version 1"}, with([](auto& b) { b.version = 1; }));
    refused({"version 4"}, with([](auto& b) { b.version = 4; }));
    refused({"big-endian"}, with([](auto& b) { b.version = 3u << 24; }));
    refused({"tensors"}, with([](auto& b) { b.extra_tensors = INT64_MAX - 2; }));
    refused({"tensors"}, with([](auto& b) { b.extra_tensors = -3; }));
    refused({"keys"}, with([](auto& b) { b.extra_keys = INT64_MAX - 2; }));
    refused({"keys"}, with([](auto& b) { b.extra_keys = -3; }));
    refused({}, with([](auto& b) { b.extra_tensors = 1; }));
    refused({}, with([](auto& b) { b.extra_keys = 1; }));
}

TEST_CASE("damaged metadata are refused") {
    const auto with = [](std::string_view name, uint32_t type, const std::string& value) {
        GgufBuilder b = sound();
        return b.key(name, type, value).bytes();
    };
    const auto array = [](uint32_t type, uint64_t n) { return GgufBuilder::le(type) + GgufBuilder::le(n); };
    refused({"a key is empty"}, with("", 4, "1234"));
    refused({"stands twice", "answer"}, with("answer", 4, "1234"));
    refused({"type 13"}, with("key", 13, "1234"));
    refused({"type 4294967295"}, with("key", UINT32_MAX, "1234"));
    refused({"too long"}, with("key", 8, GgufBuilder::le<uint64_t>(UINT64_MAX)));
    refused({"too long"}, with("key", 8, GgufBuilder::le<uint64_t>(1000)));
    refused({"neither true nor false"}, with("key", 7, "\2"));
    refused({"too large"}, with("key", 10, GgufBuilder::le<uint64_t>(1ull << 63)));
    refused({"array", "type 9"}, with("key", 9, array(9, 1)));
    refused({"array", "type 13"}, with("key", 9, array(13, 1)));
    refused({"elements"}, with("key", 9, array(0, UINT64_MAX)));
    refused({"elements"}, with("key", 9, array(10, 1ull << 61)));  // times 8 overflows
    refused({"elements"}, with("key", 9, array(8, 1000)));
    refused({"too long"}, with("key", 9, array(8, 1) + GgufBuilder::le<uint64_t>(1ull << 62)));
    GgufBuilder long_key;
    long_key.key(std::string(70000, 'k'), 4, "1234");
    refused({"too long"}, long_key.bytes());

    const auto aligned = [](uint32_t type, const std::string& value) {
        return GgufBuilder().key("general.alignment", type, value).tensor("a", {1}, 0, floats({1})).bytes();
    };
    refused({"general.alignment", "no u32"}, aligned(10, GgufBuilder::le<uint64_t>(32)));
    refused({"general.alignment", "no u32"}, aligned(8, GgufBuilder::text("32")));
    refused({"general.alignment", "power of two"}, aligned(4, GgufBuilder::le<uint32_t>(0)));
    refused({"general.alignment", "power of two"}, aligned(4, GgufBuilder::le<uint32_t>(13)));
    refused({"general.alignment", "power of two"}, aligned(4, GgufBuilder::le<uint32_t>(1u << 31)));
}

TEST_CASE("damaged tensors are refused") {
    const auto with = [](const std::vector<uint64_t>& dims, uint32_t type, int64_t offset = -1,
                         std::string name = "c") {
        return sound().tensor(name, dims, type, std::string(64, '\0'), offset).bytes();
    };
    CHECK_NOTHROW(parse(with({16}, 0)));
    refused({"too long"}, with({16}, 0, -1, std::string(64, 'n')));
    refused({"no name"}, with({16}, 0, -1, ""));
    refused({"two tensors are called 'a'"}, with({16}, 0, -1, "a"));
    refused({"0 dimensions"}, with({}, 0));
    refused({"5 dimensions"}, with({1, 1, 1, 1, 1}, 0));
    refused({"a side of 0"}, with({0}, 0));
    refused({"a side of 18446744073709551615"}, with({UINT64_MAX}, 0));
    refused({"which cannot be"}, with({1ull << 32, 1ull << 32}, 0));  // more elements than can be counted
    refused({"can be counted"}, with({1ull << 62}, 0));               // more bytes than can be counted
    refused({"reaches beyond the end"}, with({1ull << 40}, 0));
    refused({"reaches beyond the end"}, with({17}, 0));
    refused({"bytes follow the last tensor"}, with({1}, 0));
    refused({"type 99"}, with({16}, 99));
    refused({"type 4,"}, with({16}, 4));  // Q4_2, which was given up
    refused({"Q4_0", "blocks of 32"}, with({16}, 2));
    refused({"begins at 65"}, with({16}, 0, 65));
    refused({"begins at 0"}, with({16}, 0, 0));
    refused({"begins at 128"}, with({16}, 0, 128));
    refused({"begins at 9223372036854775807"}, with({16}, 0, INT64_MAX));

    const std::string whole = sound().bytes();
    for (size_t n = 0; n < whole.size(); ++n) {  // cut anywhere
        CAPTURE(n);
        refused({}, whole.substr(0, n));
    }
    refused({"bytes follow"}, whole + std::string(64, 'x'));
}

TEST_CASE("a model in a GGUF file") {
    const std::string bytes = tiny().bytes();
    const auto weights = gguf_weights(std::make_shared<const GgufFile>(io::memory_reader(bytes, "model.gguf")));
    const ModelConfig& c = weights->config();
    CHECK(c.V == 8);
    CHECK(c.C == 32);
    CHECK(c.H == 2);
    CHECK(c.KV == 1);
    CHECK(c.HS == 16);
    CHECK(c.I == 32);
    CHECK(c.rope_theta == 100000);
    CHECK(c.rms_eps == 1e-5);  // not the 9.99999974e-06 of fp32
    CHECK(c.tie_embeddings);
    CHECK(c.bos == -1);
    CHECK(c.name == "model");
    CHECK(weights->quantisation() == "F32");
}

TEST_CASE("models that are no SmolLM2 are refused by name") {
    const auto add = [](std::function<void(GgufBuilder&)> spoil) { return tiny(spoil); };
    tiny_refused({"llama.rope.freq_base", "missing"}, tiny([](GgufBuilder&) {}, false));
    tiny_refused({"rope.scaling.type", "yarn"}, add([](auto& b) { b.str("llama.rope.scaling.type", "yarn"); }));
    tiny_refused({"rope.scaling.factor"}, add([](auto& b) { b.f32("llama.rope.scaling.factor", 4); }));
    tiny_refused({"mixture"}, add([](auto& b) { b.u32("llama.expert_count", 8); }));
    tiny_refused({"adapter", "--adapter"}, add([](auto& b) { b.str("general.type", "adapter"); }));
    tiny_refused({"rope.dimension_count", "head size is 16"},
                 add([](auto& b) { b.u32("llama.rope.dimension_count", 8); }));
    tiny_refused({"token_embd.weight", "[8, 32]", "[9, 32]"}, add([](auto& b) { b.u32("llama.vocab_size", 9); }));
    tiny_refused({"attn_q.weight", "shape"}, add([](auto& b) { b.u32("llama.attention.key_length", 8); }));
    tiny_refused({"EOS"}, add([](auto& b) { b.u32("tokenizer.ggml.eos_token_id", 8); }));
    tiny_refused({"block_count", "whole number"}, GgufBuilder()
                                                      .str("general.architecture", "llama")
                                                      .u32("llama.embedding_length", 32)
                                                      .str("llama.block_count", "1"));
    tiny_refused({"general.architecture", "qwen2"}, GgufBuilder().str("general.architecture", "qwen2"));
    tiny_refused({"general.architecture", "missing"}, GgufBuilder());

    GgufBuilder layers;  // a number that would be an index out of range
    layers.str("general.architecture", "llama").u32("llama.block_count", 100000).u32("llama.vocab_size", 8);
    layers.u32("llama.context_length", 64);
    layers.u32("llama.embedding_length", 32).u32("llama.feed_forward_length", 32).u32("llama.attention.head_count", 2);
    layers.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 100000);
    tiny_refused({"number of layers", "100000"}, layers);

    GgufBuilder b = tiny();
    tiny_refused({"rope_freqs.weight"}, b.tensor("rope_freqs.weight", {8}, 0, floats(std::vector<float>(8))));
    GgufBuilder missing = tiny([](auto& b) { b.u32("llama.vocab_size", 8); });
    missing.extra_tensors = -1;
    tiny_refused({}, missing);  // the last tensor's info is read as data: something is wrong somewhere
}

TEST_CASE("a format that is not supported is named, with those that are") {
    GgufBuilder b;
    b.str("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.context_length", 64);
    b.u32("llama.embedding_length", 32).u32("llama.feed_forward_length", 32).u32("llama.attention.head_count", 2);
    b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 100000);
    b.tensor("token_embd.weight", {32, 8}, 20, std::string(8 * 18, '\0'));
    const std::string bytes = b.bytes();
    const GgufFile file = parse(bytes);  // it can be listed
    CHECK(file.tensors()[0].bytes == 144);
    tiny_refused({"token_embd.weight", "IQ4_NL", "Q4_1"}, b);
}

TEST_CASE("non-finite weights are refused by name") {
    std::string bytes = tiny().bytes();
    const std::string infinity = GgufBuilder::le<uint32_t>(0x7f800000);
    bytes.replace(bytes.size() - 4, 4, infinity);  // the last value of the last tensor
    const auto weights = gguf_weights(std::make_shared<const GgufFile>(io::memory_reader(bytes, "model.gguf")));
    float values[32];
    CHECK_NOTHROW(weights->read("model.layers.0.input_layernorm.weight", values));
    expect_error(Exit::kBadModel, {"model.gguf", "model.norm.weight", "NaN"},
                 [&] { weights->read("model.norm.weight", values); });
}

TEST_CASE("tokenizer fields") {
    const auto fields = [](const std::function<void(GgufBuilder&)>& add) {
        GgufBuilder b;
        add(b);
        const std::string bytes = b.bytes();
        return gguf_tokenizer_fields(parse(bytes));
    };
    const auto list = [](const std::vector<int32_t>& values) {
        std::string bytes = GgufBuilder::le<uint32_t>(5) + GgufBuilder::le<uint64_t>(values.size());
        for (const int32_t value : values) bytes += GgufBuilder::le(value);
        return bytes;
    };
    const GgufTokenizerFields f = fields([&](GgufBuilder& b) {
        b.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "smollm");
        b.strings("tokenizer.ggml.tokens", {"<e>", "a", "b", "ab"}).strings("tokenizer.ggml.merges", {"a b"});
        b.key("tokenizer.ggml.token_type", 9, list({3, 1, 1, 1}));
        b.u32("tokenizer.ggml.eos_token_id", 0).u32("tokenizer.ggml.unknown_token_id", UINT32_MAX);
        b.key("tokenizer.ggml.add_bos_token", 7, "\1").str("tokenizer.chat_template", "{{x}}");
    });
    CHECK(f.model == "gpt2");
    CHECK(f.pre == "smollm");
    CHECK(f.tokens == std::vector<std::string>{"<e>", "a", "b", "ab"});
    CHECK(f.types == std::vector<int32_t>{3, 1, 1, 1});
    CHECK(f.merges == std::vector<std::string>{"a b"});
    CHECK(f.eos == 0);
    CHECK(f.bos == -1);
    CHECK(f.unk == -1);
    CHECK(f.add_bos);
    CHECK(f.chat_template == "{{x}}");

    const auto bad = [&](const std::vector<std::string>& words, const std::function<void(GgufBuilder&)>& add) {
        expect_error(Exit::kBadModel, words, [&] { fields(add); });
    };
    bad({"no tokenizer"}, [](GgufBuilder&) {});
    bad({"no tokenizer"}, [](GgufBuilder& b) { b.str("tokenizer.ggml.model", "gpt2"); });
    bad({"no list of texts"},
        [](GgufBuilder& b) { b.str("tokenizer.ggml.model", "gpt2").u32("tokenizer.ggml.tokens", 5); });
    bad({"2 entries for 1 tokens"}, [&](GgufBuilder& b) {
        b.str("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", {"a"});
        b.key("tokenizer.ggml.token_type", 9, list({1, 1}));
    });
    bad({"bos_token_id", "there are 1 tokens"}, [](GgufBuilder& b) {
        b.str("tokenizer.ggml.model", "gpt2")
            .strings("tokenizer.ggml.tokens", {"a"})
            .u32("tokenizer.ggml.bos_token_id", 1);
    });
}

TEST_CASE("tensor names") {
    CHECK(gguf_tensor_name("model.embed_tokens.weight") == "token_embd.weight");
    CHECK(gguf_tensor_name("model.layers.3.self_attn.q_proj.weight") == "blk.3.attn_q.weight");
    CHECK(gguf_tensor_name("model.layers.29.post_attention_layernorm.weight") == "blk.29.ffn_norm.weight");
    CHECK(gguf_tensor_name("lm_head.weight") == "output.weight");
    for (const char* name : {"model.layers.x.self_attn.q_proj.weight", "model.layers..mlp.up_proj.weight",
                             "model.layers.3", "model.layers.3.self_attn.q_proj.bias", ""})
        CHECK(gguf_tensor_name(name) == "");
}

TEST_CASE("the row permutation of q and k") {
    // One head of 4: the file has rows 0, 2, 1, 3 of Hugging Face's order: pairs (j, j + 2) become neighbours.
    CHECK(gguf_row(0, 4) == 0);
    CHECK(gguf_row(1, 4) == 2);
    CHECK(gguf_row(2, 4) == 1);
    CHECK(gguf_row(3, 4) == 3);
    for (const auto& [rows, HS] : {std::pair{576, 64}, {192, 64}, {960, 64}, {320, 64}, {2048, 64}, {32, 8}}) {
        std::vector<int> seen(static_cast<size_t>(rows));
        for (int64_t h = 0; h < rows / HS; ++h)
            for (int64_t t = 0; t < 2; ++t)
                for (int64_t j = 0; j < HS / 2; ++j) {
                    CHECK(gguf_row(h * HS + t * HS / 2 + j, HS) == h * HS + 2 * j + t);
                    ++seen[static_cast<size_t>(h * HS + 2 * j + t)];
                }
        for (const int count : seen) CHECK(count == 1);
    }
}
