#include "model/peft_adapter.h"

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/io.h"
#include "model/safetensors.h"
#include "tests/expect_error.h"
#include "tests/temp_dir.h"
#include "tests/test_data.h"

using namespace orpo;
using Json = nlohmann::ordered_json;

namespace {

std::string golden(const std::string& name) { return test_data("golden/formats/" + name); }

ModelConfig tiny_config() {
    return parse_hf_config(io::read_file(golden("tiny/config.json"), 1 << 20), "tiny/config.json");
}

// Element (i, j) of scale B A for one module.
double delta(const PeftAdapter& adapter, const std::string& module, int64_t i, int64_t j) {
    const AdapterMatrix &a = adapter.tensors.at(module + ".lora_A"), &b = adapter.tensors.at(module + ".lora_B");
    REQUIRE(a.rows == adapter.rank);
    REQUIRE(b.cols == adapter.rank);
    double sum = 0;
    for (int64_t r = 0; r < adapter.rank; ++r)
        sum += double{b.values[static_cast<size_t>(i * b.cols + r)]} * a.values[static_cast<size_t>(r * a.cols + j)];
    return adapter.scale() * sum;
}

double delta_norm(const PeftAdapter& adapter, const std::string& module) {
    double sum = 0;
    for (int64_t i = 0; i < adapter.tensors.at(module + ".lora_B").rows; ++i)
        for (int64_t j = 0; j < adapter.tensors.at(module + ".lora_A").cols; ++j)
            sum += std::pow(delta(adapter, module, i, j), 2);
    return std::sqrt(sum);
}

// A copy of an adapter whose configuration and tensors a test may spoil.
struct Copy {
    explicit Copy(const std::string& name = "peft-list") {
        for (const char* file : {"adapter_config.json", "adapter_model.safetensors"})
            std::filesystem::copy(golden(name) + "/" + file, dir / file);
    }
    PeftAdapter read() const { return read_peft_adapter(dir.path(), tiny_config()); }
    void config(const std::function<void(Json&)>& change) const {
        Json json = Json::parse(io::read_file(dir / "adapter_config.json", 1 << 20));
        change(json);
        io::write_file_atomic(dir / "adapter_config.json", json.dump());
    }
    // change: of the tensors as a list of (name, shape, values)
    struct Tensor {
        std::string name;
        std::vector<int64_t> shape;
        std::vector<float> values;
    };
    void tensors(const std::function<void(std::vector<Tensor>&)>& change) const {
        std::vector<Tensor> list;
        {
            const SafetensorsFile file = SafetensorsFile::open(dir / "adapter_model.safetensors");
            for (const SafetensorsEntry& e : file.entries()) {
                list.push_back({e.name, e.shape, std::vector<float>(static_cast<size_t>(e.elements()))});
                file.read(e, list.back().values.data());
            }
        }
        change(list);
        std::vector<SafetensorsTensor> out;
        for (const Tensor& t : list) out.push_back({t.name, DType::kF32, t.shape, t.values.data()});
        write_safetensors(dir / "adapter_model.safetensors", out);
    }
    TempDir dir;
};

void refused(const std::vector<std::string>& words, const Copy& copy) {
    expect_error(Exit::kBadModel, words, [&] { copy.read(); });
}

}  // namespace

TEST_CASE("adapters that PEFT wrote add what PEFT adds") {
    for (const char* name : {"peft-list", "peft-all-linear", "peft-regex", "peft-layers", "peft-patterns"}) {
        CAPTURE(name);
        const PeftAdapter adapter = read_peft_adapter(golden(name), tiny_config());
        const Json rows = Json::parse(io::read_file(golden(name) + "/delta.json", 1 << 20));
        double total = 0;
        for (const Json& row : rows) {
            const std::string module = row["module"];
            CAPTURE(module);
            CHECK(std::abs(delta_norm(adapter, module) - double{row["norm"]}) <= 1e-6 * double{row["norm"]});
            for (const Json& value : row["values"])
                CHECK(std::abs(delta(adapter, module, value[0], value[1]) - double{value[2]}) <= 1e-6);
            total += std::pow(double{row["norm"]}, 2);
        }
        // And nothing else: modules that PEFT does not adapt add zero.
        double ours = 0;
        for (const auto& [key, matrix] : adapter.tensors)
            if (key.ends_with(".lora_A")) ours += std::pow(delta_norm(adapter, key.substr(0, key.size() - 7)), 2);
        CHECK(total > 0);
        CHECK(std::abs(ours - total) <= 1e-6 * total);
        CHECK(adapter.tensors.size() == adapter.targets.size() * 2 * 2);  // both layers, both sides
    }
}

TEST_CASE("what the configuration says") {
    const ModelConfig config = tiny_config();
    PeftAdapter a = read_peft_adapter(golden("peft-list"), config);
    CHECK(a.rank == 4);
    CHECK(a.alpha == 8);
    CHECK(a.scale() == 2);
    CHECK(a.dropout == 0.05);
    CHECK(!a.rslora);
    CHECK(!a.folded);
    CHECK(a.targets == std::vector<std::string>{"q_proj", "v_proj", "down_proj"});
    a = read_peft_adapter(golden("peft-all-linear"), config);
    CHECK(a.targets.size() == 7);
    CHECK(a.rslora);
    CHECK(a.scale() == 3);
    CHECK(!a.folded);
    a = read_peft_adapter(golden("peft-regex"), config);
    CHECK(a.targets == std::vector<std::string>{"k_proj", "up_proj"});
    a = read_peft_adapter(golden("peft-patterns"), config);
    CHECK(a.rank == 6);
    CHECK(a.folded);

    const Copy copy("peft-all-linear");  // as a user writes it by hand
    copy.config([](Json& j) { j["target_modules"] = "all-linear"; });
    CHECK(copy.read().targets.size() == 7);
    copy.config([](Json& j) { j["rank_pattern"] = {{"q_proj", 4}}, j["alpha_pattern"] = {{R"(.*layers\.0.*)", 6}}; });
    CHECK(!copy.read().folded);  // patterns that change nothing
}

TEST_CASE("what we write we read, bit by bit; and a second time the same bytes") {
    TempDir dir;
    const ModelConfig config = tiny_config();
    PeftAdapter a = read_peft_adapter(golden("peft-all-linear"), config);
    a.base_name = "HuggingFaceTB/SmolLM2-135M-Instruct";
    a.base_fingerprint = std::string(64, 'f');
    a.base_quant = "Q4_1";
    write_peft_adapter(dir / "new/adapter", a);
    const PeftAdapter b = read_peft_adapter(dir / "new/adapter", config);
    CHECK(b.rank == a.rank);
    CHECK(b.alpha == a.alpha);
    CHECK(b.rslora == a.rslora);
    CHECK(b.dropout == a.dropout);
    CHECK(b.targets == a.targets);
    CHECK(b.base_name == a.base_name);
    CHECK(b.base_fingerprint == a.base_fingerprint);
    CHECK(b.base_quant == a.base_quant);
    REQUIRE(b.tensors.size() == a.tensors.size());
    for (const auto& [key, matrix] : a.tensors) CHECK(b.tensors.at(key).values == matrix.values);
    write_peft_adapter(dir / "again", b);
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"})
        CHECK(io::read_file(dir / ("again/" + std::string(file)), 1 << 24) ==
              io::read_file(dir / ("new/adapter/" + std::string(file)), 1 << 24));

    const Json json = Json::parse(io::read_file(dir / "again/adapter_config.json", 1 << 20));
    CHECK(json["lora_alpha"].is_number_integer());
    CHECK(json["use_rslora"] == true);
    a.rslora = false;
    a.alpha = 2.5;
    write_peft_adapter(dir / "again", a);
    const Json plain = Json::parse(io::read_file(dir / "again/adapter_config.json", 1 << 20));
    CHECK(plain["lora_alpha"] == 2.5);
    CHECK(!plain.contains("use_rslora"));  // PEFT before 0.7 does not know it
}

TEST_CASE("a full disk keeps the old adapter") {
    TempDir dir;
    const ModelConfig config = tiny_config();
    const PeftAdapter a = read_peft_adapter(golden("peft-list"), config);
    write_peft_adapter(dir.path(), a);
    PeftAdapter b = a;
    for (auto& [key, matrix] : b.tensors) matrix.values[0] += 1;
    {
        io::ScopedFaults faults({io::Op::kWrite, 1, ENOSPC, true, false});
        expect_error(Exit::kIo, {dir.path()}, [&] { write_peft_adapter(dir.path(), b); });
    }
    CHECK(read_peft_adapter(dir.path(), config).tensors.begin()->second.values == a.tensors.begin()->second.values);
    CHECK(io::list_dir(dir.path()).size() == 2);
}

TEST_CASE("what is no plain LoRA is refused by name") {
    const auto config = [](const std::vector<std::string>& words, const std::function<void(Json&)>& change) {
        const Copy copy;
        copy.config(change);
        std::vector<std::string> all = words;
        all.push_back("adapter_config.json");
        refused(all, copy);
    };
    config({"peft_type", "PROMPT_TUNING"}, [](Json& j) { j["peft_type"] = "PROMPT_TUNING"; });
    config({"peft_type", "missing"}, [](Json& j) { j.erase("peft_type"); });
    config({"use_dora"}, [](Json& j) { j["use_dora"] = true; });
    config({"use_qalora"}, [](Json& j) { j["use_qalora"] = true; });
    config({"bias", "all"}, [](Json& j) { j["bias"] = "all"; });
    config({"lora_bias"}, [](Json& j) { j["lora_bias"] = true; });
    config({"modules_to_save"}, [](Json& j) { j["modules_to_save"] = {"lm_head"}; });
    config({"trainable_token_indices"}, [](Json& j) { j["trainable_token_indices"] = {1, 2}; });
    config({"loftq_config"}, [](Json& j) { j["loftq_config"] = {{"loftq_bits", 4}}; });
    config({"init_lora_weights", "pissa", "base"}, [](Json& j) { j["init_lora_weights"] = "pissa"; });
    config({"target_modules", "lm_head"}, [](Json& j) {
        j["target_modules"] = {"q_proj", "v_proj", "down_proj", "lm_head"};
    });
    config({"target_modules", "empty"}, [](Json& j) { j["target_modules"] = Json::array(); });
    config({"target_modules", "missing"}, [](Json& j) { j.erase("target_modules"); });
    config({"target_modules", "list of strings"}, [](Json& j) { j["target_modules"] = {1, 2}; });
    config({"target_modules", "list of strings"}, [](Json& j) { j["target_modules"] = 7; });
    config({"'r'", "0"}, [](Json& j) { j["r"] = 0; });
    config({"'r'", "100000"}, [](Json& j) { j["r"] = 100000; });
    config({"'r'", "whole number"}, [](Json& j) { j["r"] = "4"; });
    config({"'r'", "missing"}, [](Json& j) { j.erase("r"); });
    config({"lora_alpha", "missing"}, [](Json& j) { j.erase("lora_alpha"); });
    config({"lora_alpha", "-1"}, [](Json& j) { j["lora_alpha"] = -1; });
    config({"lora_dropout"}, [](Json& j) { j["lora_dropout"] = 1; });
    config({"rank_pattern", "0"}, [](Json& j) { j["rank_pattern"] = {{"q_proj", 0}}; });
    config({"rank_pattern", "2.5"}, [](Json& j) { j["rank_pattern"] = {{"q_proj", 2.5}}; });
    config({"alpha_pattern", "regular expression"}, [](Json& j) { j["alpha_pattern"] = {{".*0.*", 99}}; });
}

TEST_CASE("tensors that do not fit are refused by name") {
    using List = std::vector<Copy::Tensor>;
    const auto tensors = [](const std::vector<std::string>& words, const std::function<void(List&)>& change) {
        const Copy copy;
        copy.tensors(change);
        refused(words, copy);
    };
    const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
    const auto find = [](List& list, const std::string& name) -> Copy::Tensor& {
        for (Copy::Tensor& t : list)
            if (t.name == name) return t;
        throw std::runtime_error("no tensor " + name);
    };
    tensors({q + "A.weight", "other half"},
            [&](List& list) { std::erase_if(list, [&](auto& t) { return t.name == q + "A.weight"; }); });
    tensors({q + "A.weight", "promises"},
            [&](List& list) { std::erase_if(list, [&](auto& t) { return t.name.starts_with(q); }); });
    const Copy empty("peft-regex");  // here the tensors alone say what is adapted
    empty.tensors([](List& list) { list.clear(); });
    refused({"no adapter tensors"}, empty);
    tensors({"no linear", "magnitude"}, [&](List& list) {
        list.push_back({"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", {1}, {1}});
    });
    tensors({"no linear", "layers.2"}, [](List& list) {
        list.push_back({"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", {1}, {1}});
    });
    tensors({"leaves out", "k_proj"}, [](List& list) {
        list.push_back(
            {"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", {4, 32}, std::vector<float>(128)});
        list.push_back(
            {"base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight", {16, 4}, std::vector<float>(64)});
    });
    tensors({q + "B.weight", "[4, 32]", "[32, 4]"}, [&](List& list) { find(list, q + "B.weight").shape = {4, 32}; });
    tensors({q + "A.weight", "[128]"}, [&](List& list) { find(list, q + "A.weight").shape = {128}; });
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        tensors({q + "A.weight", "NaN"}, [&](List& list) { find(list, q + "A.weight").values[5] = value; });
        tensors({q + "B.weight", "NaN"}, [&](List& list) { find(list, q + "B.weight").values[5] = value; });
    }
    const Copy rank;
    rank.config([](Json& j) { j["r"] = 8; });
    refused({"rank 8", "[4, 32]", "[8, 32]"}, rank);
    const Copy model;
    ModelConfig other = tiny_config();
    other.C = 64;
    expect_error(Exit::kBadModel, {"another model"}, [&] { read_peft_adapter(model.dir.path(), other); });
}

TEST_CASE("directories that are no adapter") {
    TempDir dir;
    const ModelConfig config = tiny_config();
    const auto read = [&](const std::string& path) { return read_peft_adapter(path, config); };
    expect_error(Exit::kBadModel, {"no such directory"}, [&] { read(dir / "missing"); });
    expect_error(Exit::kBadModel, {"no adapter_config.json"}, [&] { read(dir.path()); });
    io::make_dirs(dir / "adapter");
    io::write_file_atomic(dir / "adapter/adapter_config.json", "{}");
    expect_error(Exit::kBadModel, {"is a run", dir / "adapter"}, [&] { read(dir.path()); });
    expect_error(Exit::kBadModel, {"no adapter_model.safetensors"}, [&] { read(dir / "adapter"); });
    io::write_file_atomic(dir / "adapter/adapter_model.bin", "x");
    expect_error(Exit::kBadModel, {"adapter_model.bin"}, [&] { read(dir / "adapter"); });
    io::write_file_atomic(dir / "adapter/adapter_model.safetensors", "x");
    expect_error(Exit::kBadModel, {"adapter_model.safetensors", "1 bytes"}, [&] { read(dir / "adapter"); });
}
