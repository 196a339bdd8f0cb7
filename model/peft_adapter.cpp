#include "model/peft_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/io.h"
#include "model/peft_config.h"
#include "model/safetensors.h"

namespace orpo {

namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kSuffix = ".weight";
constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
constexpr uint64_t kMaxJson = 16 << 20;

std::string module_name(int layer, Linear linear) {
    return fmt::format("model.layers.{}.{}", layer, linear_path(linear));
}

std::string stored_name(const std::string& key) { return fmt::format("{}{}{}", kPrefix, key, kSuffix); }

double scale_of(double alpha, double rank, bool rslora) { return alpha / (rslora ? std::sqrt(rank) : rank); }

[[noreturn]] void refuse(const std::string& file, const std::string& what) {
    throw Error(Exit::kBadModel, fmt::format("{}: {}", file, what));
}

// One adapted linear of one layer as the file has it: A (rank, in), B (out, rank).
struct Module {
    int layer = 0;
    Linear linear = Linear::kQ;
    int64_t rank = 0;
    const SafetensorsEntry *a = nullptr, *b = nullptr;
};

// Finds both matrices and checks their shapes; a module that is not adapted: rank 0.
Module find_module(const SafetensorsFile& file, const PeftConfig& peft, const ModelConfig& config, int layer,
                   Linear linear) {
    const std::string name = module_name(layer, linear);
    Module m{layer, linear, 0, file.find(stored_name(name + ".lora_A")), file.find(stored_name(name + ".lora_B"))};
    const std::optional<bool> wanted = peft.adapts(name, layer);
    if (!m.a && !m.b && !wanted.value_or(false)) return m;
    if (!m.a || !m.b) {
        refuse(file.path(), fmt::format("{} is missing, though {}; save the adapter again",
                                        stored_name(name + (m.a ? ".lora_B" : ".lora_A")),
                                        m.a || m.b ? "its other half is there" : "adapter_config.json promises it"));
    }
    if (!wanted.value_or(true)) {
        refuse(file.path(),
               fmt::format("holds tensors for {}, which 'target_modules' in {} leaves out; the two files do "
                           "not belong together",
                           name, peft.file));
    }
    const Shape2 shape = linear_shape(config, linear);
    m.rank = static_cast<int64_t>(peft.rank_of(name));
    const auto check = [&](const SafetensorsEntry& entry, int64_t rows, int64_t cols) {
        if (entry.shape == std::vector<int64_t>{rows, cols}) return;
        refuse(file.path(), fmt::format("'{}' has shape [{}], but rank {} on this model needs [{}, {}]; the adapter "
                                        "belongs to another model or another adapter_config.json",
                                        entry.name, fmt::join(entry.shape, ", "), m.rank, rows, cols));
    };
    check(*m.a, m.rank, shape.cols);
    check(*m.b, shape.rows, m.rank);
    return m;
}

void check_finite(const std::string& file, const std::string& name, const std::vector<float>& values) {
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
        refuse(file, fmt::format("'{}' holds NaN or infinite values; take an earlier checkpoint", name));
}

}  // namespace

double PeftAdapter::scale() const { return scale_of(alpha, rank, rslora); }

std::string adapter_key(int layer, Linear linear, char side) {
    return fmt::format("{}.lora_{}", module_name(layer, linear), side);
}

PeftAdapter parse_peft_adapter(std::string_view json, const std::string& path, const SafetensorsFile& file,
                               const ModelConfig& config) {
    const PeftConfig peft = parse_peft_config(json, path);
    std::vector<Module> modules;
    size_t used = 0;
    for (int layer = 0; layer < config.L; ++layer)
        for (int i = 0; i < kLinears; ++i) {
            const Module m = find_module(file, peft, config, layer, static_cast<Linear>(i));
            modules.push_back(m);
            used += m.rank > 0 ? 2 : 0;
        }
    if (used != file.entries().size()) {
        for (const SafetensorsEntry& entry : file.entries()) {
            const bool known = std::any_of(modules.begin(), modules.end(),
                                           [&](const Module& m) { return m.a == &entry || m.b == &entry; });
            if (!known) {
                refuse(file.path(),
                       fmt::format("'{}' belongs to no linear of this model; the adapter belongs to another "
                                   "model or is not plain LoRA",
                                   entry.name));
            }
        }
    }
    if (used == 0) refuse(file.path(), "holds no adapter tensors; save the adapter again");

    PeftAdapter adapter;
    adapter.alpha = peft.alpha;
    adapter.rslora = peft.rslora;
    adapter.dropout = peft.dropout;
    adapter.base_name = peft.base_name;
    const auto metadata = [&](const char* key) {
        const auto found = file.metadata().find(key);
        return found == file.metadata().end() ? std::string() : found->second;
    };
    adapter.base_fingerprint = metadata("orpo.base_fingerprint");
    adapter.base_quant = metadata("orpo.base_quantisation");

    // One rank and one scale for all: the largest rank, with alpha such that the scale stays r's.
    std::array<bool, kLinears> adapted = {};
    for (const Module& m : modules) {
        adapter.rank = std::max(adapter.rank, static_cast<int>(m.rank));
        adapted[static_cast<int>(m.linear)] |= m.rank > 0;
    }
    if (adapter.rank != peft.rank)
        adapter.alpha = peft.alpha * scale_of(1, peft.rank, peft.rslora) / scale_of(1, adapter.rank, peft.rslora);
    for (int i = 0; i < kLinears; ++i)
        if (adapted[i]) adapter.targets.emplace_back(linear_name(static_cast<Linear>(i)));

    for (const Module& m : modules) {
        if (!adapted[static_cast<int>(m.linear)]) continue;
        const Shape2 shape = linear_shape(config, m.linear);
        const int64_t R = adapter.rank;
        AdapterMatrix a{R, shape.cols, std::vector<float>(static_cast<size_t>(R * shape.cols))};
        AdapterMatrix b{shape.rows, R, std::vector<float>(static_cast<size_t>(shape.rows * R))};
        if (m.rank > 0) {
            const std::string name = module_name(m.layer, m.linear);
            const double scale = scale_of(peft.alpha_of(name), static_cast<double>(m.rank), peft.rslora);
            const double factor = std::abs(scale / adapter.scale() - 1) < 1e-12 ? 1 : scale / adapter.scale();
            adapter.folded |= factor != 1 || m.rank != R;
            std::vector<float> stored(static_cast<size_t>(m.b->elements()));
            file.read(*m.a, a.values.data());
            file.read(*m.b, stored.data());
            for (int64_t row = 0; row < shape.rows; ++row)
                for (int64_t r = 0; r < m.rank; ++r)
                    b.values[static_cast<size_t>(row * R + r)] =
                        static_cast<float>(factor * stored[static_cast<size_t>(row * m.rank + r)]);
            check_finite(file.path(), m.a->name, a.values);
            check_finite(file.path(), m.b->name, b.values);
        }
        adapter.tensors.emplace(adapter_key(m.layer, m.linear, 'A'), std::move(a));
        adapter.tensors.emplace(adapter_key(m.layer, m.linear, 'B'), std::move(b));
    }
    return adapter;
}

PeftAdapter read_peft_adapter(const std::string& directory, const ModelConfig& config) {
    const std::string json = io::join(directory, kConfigFile), tensors = io::join(directory, kTensorFile);
    if (!io::is_directory(directory))
        refuse(directory, "no such directory; --adapter takes one that PEFT or orpo wrote");
    if (!io::exists(json)) {
        const std::string inner = io::join(directory, "adapter");
        refuse(directory, io::exists(io::join(inner, kConfigFile)) ? "is a run; pass its adapter: " + inner
                                                                   : "has no adapter_config.json, so it is no adapter");
    }
    if (!io::exists(tensors)) {
        refuse(directory, io::exists(io::join(directory, "adapter_model.bin"))
                              ? "adapter_model.bin is not supported; save the adapter as safetensors"
                              : "has no adapter_model.safetensors; copy the whole adapter");
    }
    return parse_peft_adapter(io::read_file(json, kMaxJson), json, SafetensorsFile::open(tensors), config);
}

void write_peft_adapter(const std::string& directory, const PeftAdapter& adapter) {
    io::make_dirs(directory);
    std::vector<SafetensorsTensor> tensors;
    for (const auto& [key, matrix] : adapter.tensors) {
        ORPO_CHECK(static_cast<int64_t>(matrix.values.size()) == matrix.rows * matrix.cols);
        tensors.push_back({stored_name(key), DType::kF32, {matrix.rows, matrix.cols}, matrix.values.data()});
    }
    std::map<std::string, std::string> metadata;
    if (!adapter.base_fingerprint.empty()) metadata["orpo.base_fingerprint"] = adapter.base_fingerprint;
    if (!adapter.base_quant.empty()) metadata["orpo.base_quantisation"] = adapter.base_quant;
    write_safetensors(io::join(directory, kTensorFile), tensors, metadata);

    // The small set of keys that every PEFT since 0.5 knows; newer switches only where they are on. Old readers want
    // lora_alpha as an integer.
    using Json = nlohmann::ordered_json;
    const bool whole = adapter.alpha == std::floor(adapter.alpha) && adapter.alpha < 1e15;
    Json config = {
        {"alpha_pattern", Json::object()},
        {"auto_mapping", nullptr},
        {"base_model_name_or_path", adapter.base_name.empty() ? Json() : Json(adapter.base_name)},
        {"bias", "none"},
        {"fan_in_fan_out", false},
        {"inference_mode", true},
        {"init_lora_weights", true},
        {"layers_pattern", nullptr},
        {"layers_to_transform", nullptr},
        {"lora_alpha", whole ? Json(static_cast<int64_t>(adapter.alpha)) : Json(adapter.alpha)},
        {"lora_dropout", adapter.dropout},
        {"modules_to_save", nullptr},
        {"peft_type", "LORA"},
        {"r", adapter.rank},
        {"rank_pattern", Json::object()},
        {"revision", nullptr},
        {"target_modules", adapter.targets},
        {"task_type", "CAUSAL_LM"},
    };
    if (adapter.rslora) config["use_rslora"] = true;
    const std::string text = config.dump(2, ' ', false, Json::error_handler_t::replace);
    io::write_file_atomic(io::join(directory, kConfigFile), text + "\n");
}

}  // namespace orpo
