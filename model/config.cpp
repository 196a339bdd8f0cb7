#include "model/config.h"

#include <fmt/format.h>
#include <strings.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/io.h"
#include "model/json_document.h"

namespace orpo {

namespace {

[[noreturn]] void unsupported(const std::string& what) {
    throw Error(Exit::kBadModel, what + "; supported are SmolLM2 models and others of exactly that form");
}

int to_int(const JsonObject& root, std::string_view key, std::optional<int64_t> value) {
    if (!value) throw Error(Exit::kBadModel, root.place(key) + " is missing; take the config.json of the model's page");
    if (*value < 0 || *value > INT32_MAX) {
        throw Error(Exit::kBadModel,
                    fmt::format("{} is {}, which no model has; get the file again", root.place(key), *value));
    }
    return static_cast<int>(*value);
}

void refuse_other_architectures(const JsonObject& root) {
    if (root.has("peft_type")) {
        throw Error(Exit::kBadModel,
                    root.file() + ": describes an adapter, not a model; pass it with --adapter, its base with --model");
    }
    const auto type = root.text("model_type");
    const auto architectures = root.texts("architectures");
    if (!type && !architectures)
        throw Error(Exit::kBadModel,
                    root.place("model_type") + " is missing; take the config.json of the model's page");
    if (type && *type != "llama") unsupported(fmt::format("{} is \"{}\"", root.place("model_type"), *type));
    if (architectures && *architectures != std::vector<std::string>{"LlamaForCausalLM"}) {
        unsupported(fmt::format("{} is \"{}\", not \"LlamaForCausalLM\"", root.place("architectures"),
                                architectures->empty() ? "" : architectures->front()));
    }
}

void refuse_other_traits(const JsonObject& root) {
    for (const char* key : {"attention_bias", "mlp_bias"})
        if (root.boolean(key).value_or(false)) unsupported(root.place(key) + " is true");
    const std::string act = root.text("hidden_act").value_or("silu");
    if (act != "silu" && act != "swish")
        unsupported(fmt::format("{} is \"{}\", not \"silu\"", root.place("hidden_act"), act));
    if (root.has("quantization_config")) {
        throw Error(Exit::kBadModel, root.place("quantization_config") +
                                         ": weights quantised this way are not supported; take the unquantised model "
                                         "or a GGUF file");
    }
}

// transformers 5 keeps rope_theta inside rope_parameters, older ones at the top beside rope_scaling.
double parse_rope(const JsonObject& root) {
    std::optional<double> theta = root.number("rope_theta");
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        const auto rope = root.object(key);
        if (!rope) continue;
        for (const char* type_key : {"rope_type", "type"}) {
            const std::string type = rope->text(type_key).value_or("default");
            if (type != "default") unsupported(fmt::format("{} is \"{}\"", rope->place(type_key), type));
        }
        if (rope->number("partial_rotary_factor").value_or(1) != 1)
            unsupported(rope->place("partial_rotary_factor") + " is not 1");
        const auto inner = rope->number("rope_theta");
        if (inner && theta && *inner != *theta) {
            throw Error(Exit::kBadModel, fmt::format("{} is {}, but 'rope_theta' is {}; keep the right one",
                                                     rope->place("rope_theta"), *inner, *theta));
        }
        if (inner) theta = inner;
    }
    if (!theta) {
        throw Error(Exit::kBadModel, root.place("rope_theta") +
                                         " is missing, and a guess would be quietly wrong; SmolLM2 135M and 360M have "
                                         "100000, 1.7B has 130000");
    }
    return *theta;
}

// A token id or a list of them; none: an empty list.
std::vector<int64_t> token_ids(const JsonObject& root, std::string_view key) {
    const auto value = root.find(key);
    if (!value) return {};
    if (!value->is_array()) return {*root.integer(key)};
    std::vector<int64_t> ids;
    for (const simdjson::dom::element item : simdjson::dom::array(*value)) {
        int64_t id = 0;
        if (item.get(id) != simdjson::SUCCESS) root.wrong(key, item, "a token id or a list of them");
        ids.push_back(id);
    }
    return ids;
}

int first_id(const JsonObject& root, std::string_view key) {
    const std::vector<int64_t> ids = token_ids(root, key);
    if (ids.empty() || ids.front() == -1) return -1;
    return to_int(root, key, ids.front());
}

std::string model_name(const JsonObject& root) {
    std::string name = io::base_name(root.text("_name_or_path").value_or(""));
    if (name.empty() || name == "." || name == "/") name = io::base_name(io::parent_dir(root.file()));
    return name == "." || name == "/" ? "model" : name;
}

}  // namespace

ModelConfig parse_hf_config(std::string_view json, const std::string& file, std::string_view generation_json) {
    const JsonDocument document(json, file);
    const JsonObject& root = document.root();
    refuse_other_architectures(root);
    refuse_other_traits(root);
    const auto field = [&](std::string_view key) { return to_int(root, key, root.integer(key)); };

    ModelConfig c;
    c.V = field("vocab_size");
    c.C = field("hidden_size");
    c.I = field("intermediate_size");
    c.L = field("num_hidden_layers");
    c.H = field("num_attention_heads");
    c.KV = root.has("num_key_value_heads") ? field("num_key_value_heads") : c.H;
    if (root.has("head_dim")) {
        c.HS = field("head_dim");
    } else {
        if (c.H <= 0 || c.C % c.H != 0) {
            throw Error(
                Exit::kBadModel,
                fmt::format("{}: 'hidden_size' {} is not a multiple of 'num_attention_heads' {}", file, c.C, c.H));
        }
        c.HS = c.C / c.H;
    }
    c.max_positions = field("max_position_embeddings");
    c.rope_theta = parse_rope(root);
    const auto eps = root.number("rms_norm_eps");
    if (!eps)
        throw Error(Exit::kBadModel,
                    root.place("rms_norm_eps") + " is missing; take the config.json of the model's page");
    c.rms_eps = *eps;
    c.tie_embeddings = root.boolean("tie_word_embeddings").value_or(false);
    c.bos = first_id(root, "bos_token_id");
    c.eos = first_id(root, "eos_token_id");
    if (!generation_json.empty() && token_ids(root, "eos_token_id").size() != 1) {
        const JsonDocument generation(generation_json, io::join(io::parent_dir(file), "generation_config.json"));
        const int eos = first_id(generation.root(), "eos_token_id");
        if (eos >= 0) c.eos = eos;
    }
    c.pad = first_id(root, "pad_token_id");
    c.name = model_name(root);
    check_config(c, file);
    return c;
}

void check_config(const ModelConfig& c, const std::string& file) {
    const auto refuse = [&](const std::string& what) {
        throw Error(Exit::kBadModel, fmt::format("{}: {}; the file is damaged or not a SmolLM2 model", file, what));
    };
    // Caps far above any real model: every product of them fits 64 bits.
    const auto between = [&](const char* what, int64_t value, int64_t low, int64_t high) {
        if (value < low || value > high) refuse(fmt::format("{} is {}, not within {} to {}", what, value, low, high));
    };
    between("the vocabulary", c.V, 1, 1 << 22);
    between("the hidden size", c.C, 1, 1 << 16);
    between("the number of layers", c.L, 1, 512);
    between("the number of attention heads", c.H, 1, 1024);
    between("the number of key/value heads", c.KV, 1, 1024);
    between("the head size", c.HS, 2, 1024);
    between("the intermediate size", c.I, 1, 1 << 18);
    between("the number of positions", c.max_positions, 1, 1 << 26);
    if (c.H % c.KV != 0) refuse(fmt::format("{} attention heads cannot share {} key/value heads evenly", c.H, c.KV));
    if (c.HS % 2 != 0) refuse(fmt::format("the head size {} is odd, so that no rotation by pairs is possible", c.HS));
    if (!(c.rope_theta >= 1 && c.rope_theta <= 1e12)) refuse(fmt::format("rope_theta is {}", c.rope_theta));
    if (!(c.rms_eps > 0 && c.rms_eps <= 0.1)) refuse(fmt::format("rms_norm_eps is {}", c.rms_eps));
    between("the BOS token", c.bos, -1, c.V - 1);
    between("the EOS token", c.eos, -1, c.V - 1);
    between("the padding token", c.pad, -1, c.V - 1);
}

std::string_view linear_name(Linear linear) {
    const std::string_view path = linear_path(linear);
    return path.substr(path.find('.') + 1);
}

std::string_view linear_path(Linear linear) {
    switch (linear) {
        case Linear::kQ:
            return "self_attn.q_proj";
        case Linear::kK:
            return "self_attn.k_proj";
        case Linear::kV:
            return "self_attn.v_proj";
        case Linear::kO:
            return "self_attn.o_proj";
        case Linear::kGate:
            return "mlp.gate_proj";
        case Linear::kUp:
            return "mlp.up_proj";
        case Linear::kDown:
            return "mlp.down_proj";
    }
    ORPO_CHECK(!"one of the seven linears");
}

Shape2 linear_shape(const ModelConfig& c, Linear linear) {
    const int64_t q = int64_t{c.H} * c.HS, kv = int64_t{c.KV} * c.HS;
    switch (linear) {
        case Linear::kQ:
            return {q, c.C};
        case Linear::kK:
        case Linear::kV:
            return {kv, c.C};
        case Linear::kO:
            return {c.C, q};
        case Linear::kGate:
        case Linear::kUp:
            return {c.I, c.C};
        case Linear::kDown:
            return {c.C, c.I};
    }
    ORPO_CHECK(!"one of the seven linears");
}

std::vector<TensorShape> model_tensors(const ModelConfig& c) {
    std::vector<TensorShape> tensors;
    tensors.push_back({"model.embed_tokens.weight", {c.V, c.C}});
    for (int layer = 0; layer < c.L; ++layer) {
        const std::string prefix = fmt::format("model.layers.{}.", layer);
        const auto add_linear = [&](Linear linear) {
            const Shape2 shape = linear_shape(c, linear);
            tensors.push_back({prefix + std::string(linear_path(linear)) + ".weight", {shape.rows, shape.cols}});
        };
        tensors.push_back({prefix + "input_layernorm.weight", {c.C}});
        for (const Linear linear : {Linear::kQ, Linear::kK, Linear::kV, Linear::kO}) add_linear(linear);
        tensors.push_back({prefix + "post_attention_layernorm.weight", {c.C}});
        for (const Linear linear : {Linear::kGate, Linear::kUp, Linear::kDown}) add_linear(linear);
    }
    tensors.push_back({"model.norm.weight", {c.C}});
    if (!c.tie_embeddings) tensors.push_back({"lm_head.weight", {c.V, c.C}});
    return tensors;
}

int64_t parameter_count(const ModelConfig& config) {
    int64_t count = 0;
    for (const TensorShape& tensor : model_tensors(config)) {
        int64_t n = 1;
        for (const int64_t d : tensor.shape) n *= d;
        count += n;
    }
    return count;
}

std::string hf_config_json(const ModelConfig& c, std::string_view dtype) {
    const auto id = [](int token) { return token >= 0 ? nlohmann::ordered_json(token) : nlohmann::ordered_json(); };
    nlohmann::ordered_json json = {
        {"architectures", {"LlamaForCausalLM"}},
        {"attention_bias", false},
        {"attention_dropout", 0.0},
        {"bos_token_id", id(c.bos)},
        {"eos_token_id", id(c.eos)},
        {"head_dim", c.HS},
        {"hidden_act", "silu"},
        {"hidden_size", c.C},
        {"initializer_range", 0.02},
        {"intermediate_size", c.I},
        {"max_position_embeddings", c.max_positions},
        {"mlp_bias", false},
        {"model_type", "llama"},
        {"num_attention_heads", c.H},
        {"num_hidden_layers", c.L},
        {"num_key_value_heads", c.KV},
        {"pad_token_id", id(c.pad)},
        {"pretraining_tp", 1},
        {"rms_norm_eps", c.rms_eps},
        {"rope_scaling", nullptr},
        {"rope_theta", c.rope_theta},
        {"tie_word_embeddings", c.tie_embeddings},
        {"torch_dtype", dtype},
        {"use_cache", true},
        {"vocab_size", c.V},
    };
    return json.dump(2) + "\n";
}

bool official_config(std::string_view size, ModelConfig* out) {
    std::string name(size);
    const auto strip = [&name](bool front, std::string_view part) {
        if (name.size() < part.size()) return false;
        const size_t at = front ? 0 : name.size() - part.size();
        if (strncasecmp(name.c_str() + at, part.data(), part.size()) != 0) return false;
        name.erase(at, part.size());
        return true;
    };
    strip(true, "SmolLM2-");
    const bool instruct = strip(false, "-Instruct");
    ModelConfig c;
    c.V = 49152;
    c.HS = 64;
    c.rms_eps = 1e-5;
    c.rope_theta = 100000;
    c.max_positions = 8192;
    if (strcasecmp(name.c_str(), "135M") == 0) {
        c.C = 576, c.I = 1536, c.L = 30, c.H = 9, c.KV = 3, c.name = "SmolLM2-135M";
    } else if (strcasecmp(name.c_str(), "360M") == 0) {
        c.C = 960, c.I = 2560, c.L = 32, c.H = 15, c.KV = 5, c.name = "SmolLM2-360M";
    } else if (strcasecmp(name.c_str(), "1.7B") == 0) {
        c.C = 2048, c.I = 8192, c.L = 24, c.H = 32, c.KV = 32, c.name = "SmolLM2-1.7B", c.rope_theta = 130000;
    } else {
        return false;
    }
    c.bos = instruct ? 1 : 0;
    c.eos = instruct ? 2 : 0;
    c.pad = instruct ? 2 : -1;
    if (instruct) c.name += "-Instruct";
    *out = c;
    return true;
}

}  // namespace orpo
