#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/io.h"
#include "model/config.h"
#include "tests/expect_error.h"
#include "tests/test_data.h"

using namespace orpo;
using Json = nlohmann::json;

namespace {

// SmolLM2-135M-Instruct as its page has it.
Json official() {
    return Json::parse(R"({
      "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
      "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
      "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
      "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
      "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
      "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
      "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": true,
      "vocab_size": 49152})");
}

ModelConfig parse(const Json& json) { return parse_hf_config(json.dump(), "SmolLM2-135M-Instruct/config.json"); }

}  // namespace

TEST_CASE("the official configuration, old and new spelling") {
    ModelConfig wanted;
    REQUIRE(official_config("135M-Instruct", &wanted));
    CHECK(parse(official()) == wanted);

    Json json = official();  // transformers 5
    json.erase("rope_theta");
    json.erase("rope_scaling");
    json.erase("torch_dtype");
    json["dtype"] = "bfloat16";
    json["head_dim"] = 64;
    json["rope_parameters"] = {{"rope_theta", 100000.0}, {"rope_type", "default"}};
    CHECK(parse(json) == wanted);
    json["rope_theta"] = 100000;  // both, and they agree
    CHECK(parse(json) == wanted);

    json = official();
    json.erase("num_key_value_heads");  // plain multi-head attention
    CHECK(parse(json).KV == 9);
    json.erase("tie_word_embeddings");  // transformers' default for Llama
    CHECK(!parse(json).tie_embeddings);
    json["pad_token_id"] = nullptr;
    CHECK(parse(json).pad == -1);
}

TEST_CASE("what transformers 5 wrote is read") {
    const std::string path = test_data("golden/formats/tiny/config.json");
    const ModelConfig c = parse_hf_config(io::read_file(path, 1 << 20), path);
    CHECK(c.V == 96);
    CHECK(c.C == 32);
    CHECK(c.HS == 8);
    CHECK(c.KV == 2);
    CHECK(c.rope_theta == 100000);
    CHECK(c.name == "tiny");
}

TEST_CASE("several end tokens") {
    Json json = official();
    json["eos_token_id"] = {2, 0};
    const std::string text = json.dump();
    CHECK(parse_hf_config(text, "config.json").eos == 2);
    CHECK(parse_hf_config(text, "config.json", R"({"eos_token_id": 0})").eos == 0);
    CHECK(parse_hf_config(text, "config.json", R"({"eos_token_id": [7, 2]})").eos == 7);
    CHECK(parse_hf_config(official().dump(), "config.json", R"({"eos_token_id": 0})").eos == 2);
    expect_error(Exit::kBadModel, {"generation_config.json"},
                 [&] { parse_hf_config(text, "config.json", R"({"eos_token_id": "x"})"); });
}

TEST_CASE("what is written is read back") {
    for (const char* size :
         {"135M", "360m", "1.7B", "SmolLM2-135M-Instruct", "smollm2-360m-instruct", "1.7b-instruct"}) {
        ModelConfig c;
        REQUIRE(official_config(size, &c));
        CHECK(parse_hf_config(hf_config_json(c), c.name + "/config.json") == c);
    }
    ModelConfig c;
    for (const char* size : {"", "7B", "SmolLM2-", "-Instruct", "135", "SmolLM2-135M-Instruct-x"})
        CHECK(!official_config(size, &c));
}

TEST_CASE("sizes of the official models") {
    const auto count = [](const char* size) {
        ModelConfig c;
        REQUIRE(official_config(size, &c));
        return std::pair(parameter_count(c), model_tensors(c).size());
    };
    CHECK(count("135M") == std::pair<int64_t, size_t>(134'515'008, 272));
    CHECK(count("360M") == std::pair<int64_t, size_t>(361'821'120, 290));
    CHECK(count("1.7B") == std::pair<int64_t, size_t>(1'711'376'384, 218));
}

TEST_CASE("everything that is not SmolLM2's form is refused by name") {
    const auto refused = [](const std::vector<std::string>& words, const char* key, const Json& value) {
        Json json = official();
        if (value.is_discarded()) {
            json.erase(key);
        } else {
            json[key] = value;
        }
        std::vector<std::string> all = words;
        all.push_back("config.json");
        CAPTURE(key);
        expect_error(Exit::kBadModel, all, [&] { parse(json); });
    };
    const Json gone = Json(Json::value_t::discarded);
    refused({"model_type", "qwen2"}, "model_type", "qwen2");
    refused({"architectures", "MistralForCausalLM"}, "architectures", {"MistralForCausalLM"});
    refused({"architectures"}, "architectures", Json::array());
    refused({"architectures", "list of strings"}, "architectures", "LlamaForCausalLM");
    refused({"attention_bias"}, "attention_bias", true);
    refused({"mlp_bias"}, "mlp_bias", true);
    refused({"hidden_act", "gelu"}, "hidden_act", "gelu");
    refused({"quantization_config"}, "quantization_config", {{"quant_method", "gptq"}});
    refused({"rope_scaling", "linear"}, "rope_scaling", {{"type", "linear"}, {"factor", 2.0}});
    refused({"rope_scaling", "llama3"}, "rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}});
    refused({"rope_parameters", "5000", "100000"}, "rope_parameters", {{"rope_theta", 5000}, {"rope_type", "default"}});
    refused({"rope_parameters.partial_rotary_factor"}, "rope_parameters", {{"partial_rotary_factor", 0.5}});
    refused({"rope_theta", "130000"}, "rope_theta", gone);
    refused({"adapter", "--adapter"}, "peft_type", "LORA");
    for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "max_position_embeddings", "rms_norm_eps"}) {
        refused({key, "missing"}, key, gone);
        refused({key}, key, "576");
        refused({key}, key, Json::array({576}));
        refused({}, key, 0);
        refused({}, key, -576);
        refused({}, key, 1e30);
    }
    refused({"hidden_size", "whole number"}, "hidden_size", 576.0);
    refused({"vocab_size", "1099511627776"}, "vocab_size", 1ll << 40);
    refused({"vocabulary", "1073741824"}, "vocab_size", 1 << 30);
    refused({"layers", "1000"}, "num_hidden_layers", 1000);
    refused({"multiple"}, "num_attention_heads", 10);
    refused({"evenly"}, "num_key_value_heads", 2);
    refused({"odd"}, "head_dim", 63);
    refused({"head size"}, "head_dim", 1 << 20);
    refused({"rope_theta"}, "rope_theta", -1);
    refused({"rope_theta"}, "rope_theta", 0.5);
    refused({"rms_norm_eps"}, "rms_norm_eps", 1.5);
    refused({"BOS"}, "bos_token_id", 49152);
    refused({"EOS"}, "eos_token_id", {49152, 2});
    refused({"eos_token_id"}, "eos_token_id", {2, "x"});
    refused({"eos_token_id"}, "eos_token_id", -7);
}

TEST_CASE("files that are no configuration") {
    const auto refused = [](const std::vector<std::string>& words, std::string_view json) {
        expect_error(Exit::kBadModel, words, [&] { parse_hf_config(json, "x/config.json"); });
    };
    refused({"x/config.json", "empty"}, "");
    refused({"x/config.json", "JSON"}, "{");
    refused({"x/config.json", "JSON"}, "\xff\xfe{}");
    refused({"x/config.json", "JSON"}, std::string(2000, '['));
    refused({"x/config.json", "object", "a list"}, "[]");
    refused({"x/config.json", "model_type", "missing"}, "{}");
    refused({"x/config.json", "'vocab_size' stands twice"}, R"({"vocab_size":1,"vocab_size":2})");
}
