#include "src/load.h"

#include <fmt/format.h>
#include <omp.h>

#include "base/io.h"
#include "model/adapter.h"
#include "model/devices.h"
#include "model/peft_config.h"
#include "model/resolve.h"
#include "src/host_memory.h"

namespace orpo {
namespace {

constexpr uint64_t kMaxAdapterConfig = 1 << 20;

std::string adapter_directory(const std::string& path) {
    if (io::exists(io::join(path, "adapter_config.json"))) return path;
    const std::string inside = io::join(path, "adapter");
    return io::exists(io::join(inside, "adapter_config.json")) ? inside : path;
}

// The base that the adapter names, when it is to be had; "" otherwise.
std::string base_of(const std::string& adapter) {
    const std::string file = io::join(adapter, "adapter_config.json");
    if (!io::exists(file)) return "";
    const std::string base = parse_peft_config(io::read_file(file, kMaxAdapterConfig), file).base_name;
    try {
        if (!base.empty()) return resolve_model(base).path;
    } catch (const Error&) {
    }
    return "";
}

template <class T>
T parsed(bool (*parse)(std::string_view, T*), const std::string& word) {
    T value;
    ORPO_CHECK(parse(word, &value));
    return value;
}

}  // namespace

LoadedModel load_model(const std::string& spec, const std::string& adapter, Call& call) {
    const std::string directory = adapter.empty() ? "" : adapter_directory(adapter);
    const std::string base = spec.empty() && !directory.empty() ? base_of(directory) : "";
    Model model = open_model(spec.empty() ? base : spec);
    call.log->info("model {} ({}){}", model.display_name, model.path,
                   !spec.empty()   ? ""
                   : !base.empty() ? ", the adapter's base"
                                   : ", the first one found; --model takes another");
    Tokenizer tokenizer = Tokenizer::load(model.tokenizer);
    LoadedModel loaded{std::move(model), std::move(tokenizer), std::nullopt, directory};
    if (!directory.empty()) {
        loaded.adapter = read_peft_adapter(directory, loaded.model.config);
        call.log->info("adapter {}: rank {}, alpha {}", directory, loaded.adapter->rank, loaded.adapter->alpha);
        const HostWeights& weights = *loaded.model.weights;
        for (const std::string& line : adapter_warnings(
                 *loaded.adapter, directory, loaded.model, [&] { return weights.fingerprint(); }, false))
            call.log->warn(line);
    }
    return loaded;
}

std::vector<std::string> adapter_warnings(const PeftAdapter& adapter, const std::string& path, const Model& model,
                                          const std::function<std::string()>& fingerprint, bool training) {
    std::vector<std::string> lines;
    const std::string quantisation = model.weights->quantisation();
    if (!adapter.base_quant.empty() && adapter.base_quant != quantisation) {
        lines.push_back(fmt::format("{}: trained on {} weights of its base, {} has {}: expect other numbers", path,
                                    adapter.base_quant, model.path, quantisation));
    } else if (!adapter.base_fingerprint.empty()) {
        if (adapter.base_fingerprint != fingerprint())
            lines.push_back(fmt::format("{}: trained on another base than {} (the weights' fingerprints differ)", path,
                                        model.path));
    } else {
        // Written by something else: there is only a name, which may be a path of another machine.
        ModelConfig named, given;
        const std::string name = io::base_name(adapter.base_name);
        if (official_config(name, &named) && official_config(model.config.name, &given) && named.name != given.name)
            lines.push_back(fmt::format("{}: it names {} as its base, and is put on {}", path, adapter.base_name,
                                        model.display_name));
    }
    if (adapter.folded)
        lines.push_back(
            fmt::format("{}: ranks or alphas differ by module; they were brought to rank {} and alpha {}, "
                        "which computes the same{}",
                        path, adapter.rank, adapter.alpha,
                        training ? ". From here on every module is trained with that rank and scale" : ""));
    return lines;
}

std::unique_ptr<Engine> make_inference_engine(const LoadedModel& loaded, const std::string& dtype, const Call& call,
                                              TransformerSizes sizes) {
    EngineOptions options;
    if (loaded.adapter) {
        options.lora = lora_config(*loaded.adapter);
        options.lora.dropout = 0;
    } else {
        options.lora.targets.fill(false);
    }
    options.sizes = sizes;
    options.sizes.keep = Keep::kNothing;
    DeviceOptions device;
    device.device = resolve_device(call.common.device);
    device.dtype = resolve_dtype(dtype, device.device);
    device.threads = call.common.threads;
    if (device.device == "cpu") {
        const int64_t needed = plan_memory(device, loaded.model.config, options).bytes();
        if (const int64_t free = available_bytes(); needed > free)
            throw Error(Exit::kMemory,
                        fmt::format("{} and {} tokens at once need {}, {} are free; take a smaller model, or fewer "
                                    "tokens (--micro-batch-tokens, --max-length, --max-tokens)",
                                    loaded.model.display_name, sizes.tokens, human_bytes(static_cast<double>(needed)),
                                    human_bytes(static_cast<double>(free))));
    }
    auto engine = make_engine(device, loaded.model.config, loaded.model.weights.get(), options);
    if (loaded.adapter) engine->write(Arena::kParameters, 0, from_peft(engine->lora(), *loaded.adapter));
    return engine;
}

DataOptions data_options(const TrainConfig& config, const Model& model, int threads) {
    DataOptions options;
    options.semantics = parsed(parse_semantics, config.semantics);
    options.truncation = parsed(parse_truncation, config.truncation);
    options.bad_row = parsed(parse_bad_row, config.on_bad_row);
    options.special = parsed(parse_special, config.special);
    options.chat_template = choose_template(config.chat_template, model.chat_template, model.path);
    options.max_length = static_cast<int>(config.max_length);
    options.columns = parse_map(config.map);
    options.threads = threads > 0 ? threads : omp_get_max_threads();
    return options;
}

Objective objective_of(const TrainConfig& config, const Tokenizer& tokenizer) {
    Objective objective;
    objective.semantics = parsed(parse_semantics, config.semantics);
    objective.nll_scope = config.nll_scope == "response" ? NllScope::kResponse : NllScope::kFull;
    objective.eos = tokenizer.eos();
    objective.max_length = static_cast<int>(config.max_length);
    return objective;
}

}  // namespace orpo
