#include "src/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "data/dataset.h"
#include "data/rows.h"
#include "model/peft_adapter.h"
#include "model/resolve.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "src/checkpoint.h"
#include "src/terminal.h"

namespace orpo {
namespace {

bool has(const std::string& directory, const char* name) { return io::exists(io::join(directory, name)); }

// Every value of every tensor, in pieces; a NaN is thrown by the reader.
void read_all(const HostWeights& weights) {
    std::vector<float> values;
    for (const TensorShape& tensor : model_tensors(weights.config())) {
        const Shape2 shape = weights.shape(tensor.name);
        const int64_t piece = std::max<int64_t>(1, (1 << 20) / shape.cols);
        values.resize(static_cast<size_t>(piece * shape.cols));
        for (int64_t row = 0; row < shape.rows; row += piece)
            weights.read_rows(tensor.name, row, std::min(piece, shape.rows - row), values.data());
    }
}

Inspection inspect_model(const std::string& spec) {
    const Model model = open_model(spec);
    read_all(*model.weights);
    const Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    const ModelConfig& c = model.config;
    Inspection found{"model", {}, {}, {}};
    found.facts = {
        {"path", model.path},
        {"name", model.display_name},
        {"hub id", model.hub_id.empty() ? "none known" : model.hub_id},
        {"parameters", parameter_count(c)},
        {"layers", c.L},
        {"hidden size", c.C},
        {"heads", fmt::format("{} of {}, {} for keys and values", c.H, c.HS, c.KV)},
        {"intermediate size", c.I},
        {"vocabulary", c.V},
        {"positions", c.max_positions},
        {"rope theta", c.rope_theta},
        {"head", c.tie_embeddings ? "tied to the embedding" : "its own"},
        {"stored as", model.weights->quantisation()},
        {"bytes", model.weights->stored_bytes()},
        {"chat template", model.chat_template.empty() ? "none" : "its own"},
        {"fingerprint", model.weights->fingerprint()},
        {"tokenizer fingerprint", tokenizer.fingerprint()},
    };
    if (tokenizer.vocabulary() != c.V) {
        found.notes.push_back(
            fmt::format("the tokenizer has {} tokens, the embedding {} rows", tokenizer.vocabulary(), c.V));
    }
    ModelConfig official;
    if (official_config(c.name, &official) && official.rope_theta != c.rope_theta) {
        found.notes.push_back(fmt::format("the official {} has rope theta {}, this one {}", official.name,
                                          official.rope_theta, c.rope_theta));
    }
    return found;
}

Inspection inspect_safetensors(const std::string& path) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    Inspection found{"safetensors file", {}, {}, {}};
    int64_t values = 0;
    std::vector<float> piece(1 << 16);
    for (const SafetensorsEntry& entry : file.entries()) {
        values += entry.elements();
        bool finite = true;
        for (int64_t at = 0; at < entry.elements(); at += static_cast<int64_t>(piece.size())) {
            const int64_t n = std::min<int64_t>(static_cast<int64_t>(piece.size()), entry.elements() - at);
            file.read(entry, at, n, piece.data());
            finite = finite && std::all_of(piece.begin(), piece.begin() + n, [](float v) { return std::isfinite(v); });
        }
        if (!finite) found.faults.push_back(fmt::format("tensor '{}' holds NaN or infinite values", entry.name));
    }
    found.facts = {{"path", path}, {"tensors", file.entries().size()}, {"values", values}};
    for (const auto& [key, value] : file.metadata()) found.facts["metadata " + key] = value;
    return found;
}

// The shape of the base: --model, or what the adapter names, as far as it is here.
std::optional<ModelConfig> base_config(const std::string& spec) {
    if (spec.empty()) return std::nullopt;
    ModelConfig config;
    if (official_config(io::base_name(spec), &config)) return config;
    try {
        return open_model(spec).config;
    } catch (const Error&) {
        return std::nullopt;
    }
}

Inspection inspect_adapter(const std::string& directory, const std::string& model) {
    const std::string json = io::read_file(io::join(directory, "adapter_config.json"), 16 << 20);
    // The name alone, before anything is checked; the real reader judges the rest.
    const auto parsed = nlohmann::json::parse(json, nullptr, false);
    std::string base = model;
    if (base.empty() && parsed.is_object()) {
        const auto name = parsed.find("base_model_name_or_path");
        if (name != parsed.end() && name->is_string()) base = *name;
    }
    const std::optional<ModelConfig> config = model.empty() ? base_config(base) : open_model(model).config;
    if (!config) {
        Inspection found = inspect_safetensors(io::join(directory, "adapter_model.safetensors"));
        found.kind = "adapter";
        found.facts["path"] = directory;
        const std::string where = base.empty() ? "it names no base" : "its base " + base + " is not on this machine";
        found.notes.push_back(where + ", so that shapes and configuration were not checked; name one with --model");
        return found;
    }
    const PeftAdapter adapter = read_peft_adapter(directory, *config);
    int64_t parameters = 0;
    double norm = 0;
    for (const auto& [key, matrix] : adapter.tensors) {
        parameters += matrix.rows * matrix.cols;
        if (key.back() == 'B')
            for (const float v : matrix.values) norm += double{v} * v;
    }
    Inspection found{"adapter", {}, {}, {}};
    found.facts = {
        {"path", directory},
        {"base", adapter.base_name.empty() ? "not named" : adapter.base_name},
        {"checked against", config->name},
        {"rank", adapter.rank},
        {"alpha", adapter.alpha},
        {"scale", adapter.scale()},
        {"rank-stabilised", adapter.rslora ? "yes" : "no"},
        {"dropout", adapter.dropout},
        {"targets", fmt::format("{}", fmt::join(adapter.targets, " "))},
        {"parameters", parameters},
        {"norm of B", std::sqrt(norm)},
    };
    if (!adapter.base_quant.empty()) found.facts["trained on a base stored as"] = adapter.base_quant;
    if (!adapter.base_fingerprint.empty()) found.facts["base fingerprint"] = adapter.base_fingerprint;
    if (norm == 0) found.notes.push_back("every B is zero: the adapter changes nothing");
    if (adapter.folded) {
        found.notes.push_back("ranks or alphas differ by module; they were brought to one, which computes the same");
    }
    return found;
}

Inspection inspect_checkpoint(const std::string& directory) {
    const Checkpoint checkpoint = load_checkpoint(directory);
    Inspection found{"checkpoint", {}, {}, {}};
    found.facts = {{"path", directory},
                   {"step", checkpoint.step},
                   {"epoch", checkpoint.epoch},
                   {"pairs of the epoch done", checkpoint.position},
                   {"parameters", checkpoint.masters.size()},
                   {"best evaluation kept", checkpoint.best.empty() ? "no" : "yes"}};
    return found;
}

Inspection inspect_run(const std::string& directory) {
    Inspection found{"run", {}, {}, {}};
    const std::vector<int64_t> steps = list_checkpoints(directory);
    int64_t sound = 0, newest = -1;
    for (const int64_t step : steps) {
        try {
            newest = std::max(newest, load_checkpoint(checkpoint_path(directory, step)).step);
            ++sound;
        } catch (const Error& error) {
            found.faults.push_back(error.what());
        }
    }
    found.facts = {{"path", directory},
                   {"checkpoints", steps.size()},
                   {"sound checkpoints", sound},
                   {"adapter", has(directory, "adapter/adapter_config.json") ? "yes" : "not yet"}};
    if (newest >= 0) found.facts["newest sound step"] = newest;
    return found;
}

Inspection inspect_data(const std::string& path, const std::string& spec) {
    std::string bytes = io::read_file(path, uint64_t{4} << 30);
    Inspection found{"data", {}, {}, {}};
    std::optional<Model> model;
    try {
        model = open_model(spec);
    } catch (const Error&) {
        if (!spec.empty()) throw;
    }
    if (!model) {
        found.facts = {{"path", path}, {"sha256", sha256_hex(bytes)}};
        found.facts["rows"] = cut_rows(std::move(bytes), path).rows.size();
        found.notes.push_back(
            "no model is on this machine, so that the rows were counted, not read; name one with --model");
        return found;
    }
    DataOptions options;
    options.bad_row = BadRow::kSkip;
    options.chat_template = choose_template("auto", model->chat_template, model->path);
    const Dataset set = parse_dataset(std::move(bytes), path, Tokenizer::load(model->tokenizer), options);
    found.facts = {{"path", path},
                   {"sha256", set.fingerprint},
                   {"rows", set.report.rows},
                   {"pairs", set.pairs.size()},
                   {"read for", model->display_name}};
    for (const auto& [line, why] : set.report.bad_rows)
        found.faults.push_back(fmt::format("{}:{}: {}", path, line, why));
    for (int i = 0; i < kRemarks; ++i) {
        const Remark remark = static_cast<Remark>(i);
        const int64_t count = set.report.count(remark);
        if (count > 0 && remark != Remark::kBadRow)
            found.notes.push_back(fmt::format("{} rows: {}", count, remark_text(remark)));
    }
    found.notes.push_back("`orpo data` shows more");
    return found;
}

}  // namespace

Inspection inspect(const std::string& path, const std::string& model) {
    if (io::is_directory(path)) {
        if (has(path, "manifest.json")) return inspect_checkpoint(path);
        if (has(path, "adapter_config.json")) return inspect_adapter(path, model);
        if (has(path, "metrics.jsonl") || io::is_directory(io::join(path, "checkpoints"))) return inspect_run(path);
        return inspect_model(path);
    }
    if (!io::exists(path)) return inspect_model(path);  // a hub id or a model's name
    char magic[16] = {};
    const auto reader = io::open_reader(path);
    reader->read_at(0, magic, static_cast<size_t>(std::min<uint64_t>(sizeof magic, reader->size())));
    const std::string_view head(magic, sizeof magic);
    if (path.ends_with(".gguf") || head.starts_with("GGUF")) return inspect_model(path);
    if (path.ends_with(".safetensors")) return inspect_safetensors(path);
    if (head.starts_with("SQLite format 3"))
        throw Error(Exit::kUsage, path + ": a database; `orpo search report` reads studies");
    return inspect_data(path, model);
}

}  // namespace orpo
