#include "model/weights.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/hash.h"
#include "base/io.h"
#include "model/dequant.h"
#include "model/gguf.h"
#include "model/model_files.h"
#include "model/resolve.h"
#include "model/safetensors.h"
#include "model/tokenizer_spec.h"
#include "tests/expect_error.h"
#include "tests/temp_dir.h"
#include "tests/test_data.h"

using namespace orpo;
using Tensors = std::map<std::string, std::vector<float>>;

namespace {

const std::string kTiny = test_data("golden/formats/tiny");

ModelConfig tiny_config() {
    const std::string path = kTiny + "/config.json";
    return parse_hf_config(io::read_file(path, 1 << 20), path);
}

Tensors read_all(const HostWeights& weights) {
    Tensors tensors;
    for (const TensorShape& tensor : model_tensors(weights.config())) {
        const Shape2 shape = weights.shape(tensor.name);
        std::vector<float>& values = tensors[tensor.name];
        values.assign(static_cast<size_t>(shape.rows * shape.cols) + 1, 12345.0f);
        weights.read(tensor.name, values.data());
        CHECK(values.back() == 12345.0f);
        values.pop_back();
    }
    return tensors;
}

// Writes some tensors of the tiny model as bf16.
void write_part(const std::string& path, const Tensors& tensors, const ModelConfig& config,
                const std::function<bool(const std::string&)>& take) {
    std::vector<SafetensorsTensor> list;
    for (const TensorShape& tensor : model_tensors(config))
        if (take(tensor.name))
            list.push_back({tensor.name, DType::kBF16, tensor.shape, tensors.at(tensor.name).data()});
    write_safetensors(path, list);
}

}  // namespace

TEST_CASE("one model, two layouts: the same tensors") {
    const auto hf = hf_weights(tiny_config(), kTiny);
    const std::string path = test_data("golden/formats/tiny.gguf");
    const auto gguf = gguf_weights(std::make_shared<const GgufFile>(GgufFile::open(path)));
    ModelConfig config = gguf->config();
    CHECK(config.name == "tiny");
    CHECK(config == hf->config());
    const Tensors a = read_all(*hf), b = read_all(*gguf);
    CHECK(a.size() == 20);
    for (const auto& [tensor, values] : a) {
        const std::string name = tensor;
        CAPTURE(name);
        CHECK(values == b.at(name));
        CHECK(hf->shape(name) == gguf->shape(name));
    }
    // Negative control: without undoing the permutation, q would differ.
    const GgufFile file = GgufFile::open(path);
    std::vector<float> stored(32 * 32);
    file.read_rows(*file.find_tensor("blk.1.attn_q.weight"), 0, 32, stored.data());
    CHECK(stored != a.at("model.layers.1.self_attn.q_proj.weight"));

    // Any range of rows, also one that cuts heads.
    const std::string q = "model.layers.1.self_attn.q_proj.weight";
    for (const auto& weights : {hf, gguf}) {
        for (int64_t first = 0; first <= 32; ++first) {
            for (int64_t count = 0; first + count <= 32; ++count) {
                std::vector<float> rows(static_cast<size_t>(count * 32));
                weights->read_rows(q, first, count, rows.data());
                if (!std::equal(rows.begin(), rows.end(), a.at(q).begin() + first * 32)) FAIL_CHECK(first, " ", count);
            }
        }
    }
    CHECK(hf->quantisation() == "BF16");
    CHECK(gguf->quantisation() == "BF16");
    CHECK(hf->fingerprint().size() == 64);
    CHECK(hf->fingerprint() != gguf->fingerprint());  // q and k are stored in another order
}

TEST_CASE("a sharded copy is the same model") {
    TempDir dir;
    const ModelConfig config = tiny_config();
    const auto whole = hf_weights(config, kTiny);
    const Tensors tensors = read_all(*whole);
    nlohmann::json index;
    const auto first = [](const std::string& name) { return name.find("layers.0") != std::string::npos; };
    for (const auto& [name, values] : tensors)
        index["weight_map"][name] = first(name) ? "a.safetensors" : "b.safetensors";
    const auto write_index = [&](const nlohmann::json& json) {
        io::write_file_atomic(dir / "model.safetensors.index.json", json.dump());
    };
    const auto open = [&] { return hf_weights(config, dir.path()); };
    write_part(dir / "a.safetensors", tensors, config, first);
    write_part(dir / "b.safetensors", tensors, config, std::not_fn(first));
    write_index(index);
    CHECK(read_all(*open()) == tensors);
    CHECK(open()->fingerprint() == whole->fingerprint());
    CHECK(open()->stored_bytes() == whole->stored_bytes());

    nlohmann::json wrong = index;  // the index lies about one tensor's file
    wrong["weight_map"]["model.norm.weight"] = "a.safetensors";
    write_index(wrong);
    expect_error(Exit::kBadModel, {"model.norm.weight", "index"}, open);
    wrong = index;
    wrong["weight_map"].erase("model.norm.weight");
    write_index(wrong);
    expect_error(Exit::kBadModel, {"model.norm.weight", "index"}, open);
    wrong = index;
    wrong["weight_map"]["ghost"] = "a.safetensors";
    write_index(wrong);
    expect_error(Exit::kBadModel, {"ghost", "index"}, open);
    wrong["weight_map"]["ghost"] = "c.safetensors";
    write_index(wrong);
    expect_error(Exit::kBadModel, {"c.safetensors", "missing"}, open);
    wrong["weight_map"]["ghost"] = "../b.safetensors";
    write_index(wrong);
    expect_error(Exit::kBadModel, {"../b.safetensors"}, open);
}

TEST_CASE("weights that do not fit config.json") {
    TempDir dir;
    const ModelConfig config = tiny_config();
    const Tensors tensors = read_all(*hf_weights(config, kTiny));
    const auto open = [&](const ModelConfig& c) { return hf_weights(c, dir.path()); };
    expect_error(Exit::kBadModel, {"neither model.safetensors"}, [&] { open(config); });

    const auto all = [](const std::string&) { return true; };
    write_part(dir / "model.safetensors", tensors, config, all);
    CHECK_NOTHROW(open(config));
    ModelConfig other = config;
    other.L = 3;
    expect_error(Exit::kBadModel, {"9 tensors are missing", "model.layers.2.input_layernorm.weight"},
                 [&] { open(other); });
    other.L = 1;
    expect_error(Exit::kBadModel, {"model.layers.1", "not supported"}, [&] { open(other); });
    other = config;
    other.V = 95;
    expect_error(Exit::kBadModel, {"model.embed_tokens.weight", "[96, 32]", "[95, 32]"}, [&] { open(other); });
    other = config;
    other.KV = 4;
    expect_error(Exit::kBadModel, {"k_proj", "[16, 32]", "[32, 32]"}, [&] { open(other); });

    // A tied head that is stored all the same must be the embedding.
    const auto with_head = [&](float change) {
        std::vector<SafetensorsTensor> list;
        for (const TensorShape& t : model_tensors(config))
            list.push_back({t.name, DType::kBF16, t.shape, tensors.at(t.name).data()});
        std::vector<float> head = tensors.at("model.embed_tokens.weight");
        head.back() += change;
        list.push_back({"lm_head.weight", DType::kBF16, {config.V, config.C}, head.data()});
        const std::vector<float> freq(4, 1.0f);
        list.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {4}, freq.data()});
        write_safetensors(dir / "model.safetensors", list);
    };
    with_head(0);
    CHECK(read_all(*open(config)) == tensors);
    with_head(1);
    expect_error(Exit::kBadModel, {"tie_word_embeddings", "lm_head.weight"}, [&] { open(config); });
    ModelConfig untied = config;
    untied.tie_embeddings = false;
    CHECK(read_all(*open(untied)).at("lm_head.weight").back() == tensors.at("model.embed_tokens.weight").back() + 1);
}

TEST_CASE("opening a directory: tokenizer, chat template, names") {
    TempDir dir;
    const std::string model = dir / "my-model";
    std::filesystem::copy(kTiny, model);
    expect_error(Exit::kBadModel, {"tokenizer.json", "missing"}, [&] { open_model(model); });
    io::write_file_atomic(model + "/tokenizer.json", "{}");
    Model m = open_model(model);
    CHECK(m.display_name == "my-model BF16");
    CHECK(m.hub_id == "");
    CHECK(m.path == model);
    CHECK(m.tokenizer.directory == model);
    CHECK(m.tokenizer.gguf == nullptr);
    CHECK(m.chat_template == "");
    io::write_file_atomic(model + "/tokenizer_config.json", R"({"chat_template": "one"})");
    CHECK(open_model(model).chat_template == "one");
    io::write_file_atomic(
        model + "/tokenizer_config.json",
        R"({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "two"}]})");
    CHECK(open_model(model).chat_template == "two");
    io::write_file_atomic(model + "/chat_template.jinja", "three\n");
    CHECK(open_model(model).chat_template == "three\n");
    io::write_file_atomic(model + "/generation_config.json", R"({"eos_token_id": [0, 2]})");
    CHECK(open_model(model).config.eos == 2);
    io::write_file_atomic(model + "/tokenizer_config.json", "");
    std::filesystem::remove(model + "/chat_template.jinja");
    expect_error(Exit::kBadModel, {"tokenizer_config.json", "empty"}, [&] { open_model(model); });
}

TEST_CASE("the real model: every tensor as transformers reads it") {
    ResolvedModel found;
    try {
        found = resolve_model("SmolLM2-135M-Instruct");
    } catch (const Error& error) {
        MESSAGE("skipped: no model (", error.what(), ")");
        return;
    }
    const auto golden = nlohmann::json::parse(io::read_file(test_data("golden/formats/real_model.json"), 1 << 20));
    if (!found.is_gguf || sha256_file(found.path) != golden["file_sha256"]) {
        MESSAGE("skipped: ", found.path, " is not the file of the golden numbers");
        return;
    }
    const Model model = open_model(found.path);
    CHECK(model.display_name == "SmolLM2-135M-Instruct Q4_1");
    CHECK(model.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct");
    ModelConfig official;
    REQUIRE(official_config("135M-Instruct", &official));
    official.name = model.config.name;
    CHECK(model.config == official);
    CHECK(model.tokenizer.gguf->tokens.size() == 49152);
    CHECK(model.tokenizer.gguf->merges.size() == 48900);
    CHECK(model.tokenizer.gguf->pre == "smollm");
    CHECK(model.chat_template.find("named SmolLM") != std::string::npos);

    const auto& tensors = golden["tensors"];
    const std::vector<TensorShape> list = model_tensors(model.config);
    REQUIRE(tensors.size() == list.size());
    std::vector<std::string> sums(list.size());
    std::atomic<size_t> next = 0;
    const auto work = [&] {  // reading is safe from several threads
        for (size_t i; (i = next++) < list.size();) {
            const Shape2 shape = model.weights->shape(list[i].name);
            std::vector<float> values(static_cast<size_t>(shape.rows * shape.cols));
            model.weights->read(list[i].name, values.data());
            sums[i] = sha256_hex({reinterpret_cast<const char*>(values.data()), values.size() * 4});
        }
    };
    std::thread other(work);
    work();
    other.join();
    for (size_t i = 0; i < list.size(); ++i) {
        CAPTURE(list[i].name);
        CHECK(sums[i] == tensors.value(list[i].name, ""));
    }
}
