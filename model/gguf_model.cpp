// What a GGUF file's metadata means: the model's shape, its tokenizer, the names of its tensors.
#include <fmt/format.h>

#include <cstdlib>

#include "base/error.h"
#include "model/gguf.h"
#include "model/tokenizer_spec.h"

namespace orpo {

namespace {

[[noreturn]] void unsupported(const GgufFile& file, const std::string& what) {
    throw Error(Exit::kBadModel,
                fmt::format("{}: {}; supported are SmolLM2 models and others of exactly that form", file.path(), what));
}

int small_integer(const GgufFile& file, std::string_view key) {
    const int64_t value = file.integer(key);
    if (value < 0 || value > INT32_MAX)
        throw Error(Exit::kBadModel,
                    fmt::format("{}: '{}' is {}, which no model has; get the file again", file.path(), key, value));
    return static_cast<int>(value);
}

int token_id(const GgufFile& file, std::string_view key) {
    const GgufValue* value = file.find(key);
    // Some converters write 2^32 - 1 for "none".
    if (value == nullptr || (value->type == 4 && value->integer == UINT32_MAX)) return -1;
    return small_integer(file, key);
}

// Metadata stores these as fp32: 9.99999974e-06. The shortest decimal that is the same fp32 is what was meant: 1e-05.
double shortest(double stored) {
    const std::string text = fmt::format("{}", static_cast<float>(stored));
    return std::strtod(text.c_str(), nullptr);
}

void refuse_other_traits(const GgufFile& file) {
    const std::string type = file.find("general.type") != nullptr ? file.text("general.type") : "model";
    if (type == "adapter") {
        throw Error(Exit::kBadModel, file.path() +
                                         ": is an adapter, not a model; orpo reads adapters in PEFT's form, with "
                                         "--adapter");
    }
    if (type != "model") unsupported(file, fmt::format("'general.type' is \"{}\"", type));
    const std::string architecture = file.text("general.architecture");
    if (architecture != "llama")
        unsupported(file, fmt::format("'general.architecture' is \"{}\", not \"llama\"", architecture));
    if (file.find("llama.rope.scaling.type") != nullptr && file.text("llama.rope.scaling.type") != "none")
        unsupported(file, fmt::format("'llama.rope.scaling.type' is \"{}\"", file.text("llama.rope.scaling.type")));
    for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"})
        if (file.find(key) != nullptr && file.real(key) != 1) unsupported(file, fmt::format("'{}' is not 1", key));
    if (file.find("llama.expert_count") != nullptr && file.integer("llama.expert_count") != 0)
        unsupported(file, "the model is a mixture of experts");
}

}  // namespace

ModelConfig gguf_config(const GgufFile& file) {
    refuse_other_traits(file);
    const auto field = [&](const char* key) { return small_integer(file, fmt::format("llama.{}", key)); };
    ModelConfig c;
    c.C = field("embedding_length");
    c.L = field("block_count");
    c.I = field("feed_forward_length");
    c.H = field("attention.head_count");
    c.KV = file.find("llama.attention.head_count_kv") != nullptr ? field("attention.head_count_kv") : c.H;
    c.max_positions = field("context_length");
    if (file.find("llama.attention.key_length") != nullptr) {
        c.HS = field("attention.key_length");
    } else {
        if (c.H <= 0 || c.C % c.H != 0) {
            unsupported(file,
                        fmt::format("'llama.embedding_length' {} is not a multiple of 'llama.attention.head_count' {}",
                                    c.C, c.H));
        }
        c.HS = c.C / c.H;
    }
    for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
        if (file.find(fmt::format("llama.{}", key)) != nullptr && field(key) != c.HS)
            unsupported(file, fmt::format("'llama.{}' is {}, but the head size is {}", key, field(key), c.HS));
    }
    if (file.find("llama.rope.freq_base") == nullptr) {
        throw Error(Exit::kBadModel,
                    file.path() +
                        ": the key 'llama.rope.freq_base' is missing, and a guess would be quietly wrong; convert the "
                        "model again with a newer converter");
    }
    c.rope_theta = shortest(file.real("llama.rope.freq_base"));
    c.rms_eps = shortest(file.real("llama.attention.layer_norm_rms_epsilon"));

    const GgufValue* tokens = file.find("tokenizer.ggml.tokens");
    const GgufTensor* embedding = file.find_tensor("token_embd.weight");
    if (file.find("llama.vocab_size") != nullptr) {
        c.V = field("vocab_size");
    } else if (tokens != nullptr) {
        c.V = static_cast<int>(tokens->texts.size());
    } else if (embedding != nullptr && embedding->shape[0] <= INT32_MAX) {
        c.V = static_cast<int>(embedding->shape[0]);
    }
    c.tie_embeddings = file.find_tensor("output.weight") == nullptr;
    c.bos = token_id(file, "tokenizer.ggml.bos_token_id");
    c.eos = token_id(file, "tokenizer.ggml.eos_token_id");
    c.pad = token_id(file, "tokenizer.ggml.padding_token_id");

    c.name = io::base_name(file.path());
    if (c.name.ends_with(".gguf")) c.name.resize(c.name.size() - 5);
    check_config(c, file.path());
    return c;
}

GgufTokenizerFields gguf_tokenizer_fields(const GgufFile& file) {
    const auto bad = [&](const std::string& what) {
        throw Error(Exit::kBadModel, fmt::format("{}: {}; convert the model again", file.path(), what));
    };
    const auto optional_text = [&](const char* key) {
        return file.find(key) != nullptr ? file.text(key) : std::string();
    };
    const GgufValue* tokens = file.find("tokenizer.ggml.tokens");
    if (file.find("tokenizer.ggml.model") == nullptr || tokens == nullptr) bad("the file holds no tokenizer");
    if (tokens->kind != GgufValue::Kind::kArray || tokens->texts.empty())
        bad("'tokenizer.ggml.tokens' is no list of texts");

    GgufTokenizerFields fields;
    fields.file = file.path();
    fields.model = file.text("tokenizer.ggml.model");
    fields.pre = optional_text("tokenizer.ggml.pre");
    fields.tokens = tokens->texts;
    if (const GgufValue* types = file.find("tokenizer.ggml.token_type")) {
        if (types->integers.size() != fields.tokens.size())
            bad(fmt::format("'tokenizer.ggml.token_type' has {} entries for {} tokens", types->integers.size(),
                            fields.tokens.size()));
        for (const int64_t type : types->integers) {
            if (type < 0 || type > INT32_MAX) bad(fmt::format("'tokenizer.ggml.token_type' holds {}", type));
            fields.types.push_back(static_cast<int32_t>(type));
        }
    }
    if (const GgufValue* merges = file.find("tokenizer.ggml.merges")) {
        if (merges->kind != GgufValue::Kind::kArray || (merges->texts.empty() && merges->element_type != 8))
            bad("'tokenizer.ggml.merges' is no list of texts");
        fields.merges = merges->texts;
    }
    const auto id = [&](const char* key) {
        const int value = token_id(file, key);
        if (value >= static_cast<int64_t>(fields.tokens.size()))
            bad(fmt::format("'{}' is {}, but there are {} tokens", key, value, fields.tokens.size()));
        return value;
    };
    fields.bos = id("tokenizer.ggml.bos_token_id");
    fields.eos = id("tokenizer.ggml.eos_token_id");
    fields.unk = id("tokenizer.ggml.unknown_token_id");
    fields.pad = id("tokenizer.ggml.padding_token_id");
    if (const GgufValue* add_bos = file.find("tokenizer.ggml.add_bos_token")) fields.add_bos = add_bos->integer != 0;
    fields.chat_template = optional_text("tokenizer.chat_template");
    return fields;
}

std::string gguf_tensor_name(std::string_view hf_name) {
    if (hf_name == "model.embed_tokens.weight") return "token_embd.weight";
    if (hf_name == "model.norm.weight") return "output_norm.weight";
    if (hf_name == "lm_head.weight") return "output.weight";
    constexpr std::string_view kPrefix = "model.layers.";
    if (!hf_name.starts_with(kPrefix)) return "";
    hf_name.remove_prefix(kPrefix.size());
    const size_t dot = hf_name.find('.');
    if (dot == std::string_view::npos || dot == 0 ||
        hf_name.substr(0, dot).find_first_not_of("0123456789") != std::string_view::npos)
        return "";
    constexpr std::pair<std::string_view, std::string_view> kNames[] = {
        {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},   {"self_attn.v_proj", "attn_v"},
        {"self_attn.o_proj", "attn_output"}, {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},       {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"},
    };
    for (const auto& [hf, gguf] : kNames)
        if (hf_name.substr(dot + 1) == fmt::format("{}.weight", hf))
            return fmt::format("blk.{}.{}.weight", hf_name.substr(0, dot), gguf);
    return "";
}

}  // namespace orpo
