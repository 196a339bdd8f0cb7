// Weights that lie in a Hugging Face directory: config.json and one or several safetensors files.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "model/json_document.h"
#include "model/model_files.h"
#include "model/safetensors.h"

namespace orpo {

namespace {

constexpr uint64_t kMaxJson = 64 << 20;

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

struct Place {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
};

class HfWeights : public HostWeights {
  public:
    HfWeights(ModelConfig config, const std::string& directory)
        : HostWeights(std::move(config)), directory_(directory) {
        std::map<std::string, Place> stored = open_files();
        // Old checkpoints keep the rotation's frequencies, which follow from the configuration.
        std::erase_if(stored, [](const auto& item) { return item.first.ends_with(".rotary_emb.inv_freq"); });

        std::vector<std::string> missing;
        for (const TensorShape& wanted : model_tensors(this->config())) {
            const auto found = stored.find(wanted.name);
            if (found == stored.end()) {
                missing.push_back(wanted.name);
                continue;
            }
            if (found->second.entry->shape != wanted.shape) {
                refuse(
                    fmt::format("tensor '{}' has shape {}, but config.json asks for {}; the two do not belong together",
                                wanted.name, shape_text(found->second.entry->shape), shape_text(wanted.shape)));
            }
            tensors_.insert(*found);
        }
        if (!missing.empty()) {
            refuse(fmt::format("{} tensors are missing, the first is '{}'; get the model again", missing.size(),
                               missing.front()));
        }
        for (const auto& [name, place] : stored) {
            if (tensors_.contains(name)) continue;
            if (name == "lm_head.weight") {
                check_tied_head(place);
                continue;
            }
            refuse(fmt::format("tensor '{}' is none that a SmolLM2 model has; the model is not supported", name));
        }
    }

    std::string quantisation() const override {
        std::map<std::string, uint64_t> bytes;
        for (const auto& [name, place] : tensors_)
            if (place.entry->shape.size() == 2 && name != "model.embed_tokens.weight" && name != "lm_head.weight")
                bytes[std::string(dtype_name(place.entry->dtype))] += place.entry->end - place.entry->begin;
        return std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; })
            ->first;
    }

    uint64_t stored_bytes() const override {
        uint64_t bytes = 0;
        for (const auto& [name, place] : tensors_) bytes += place.entry->end - place.entry->begin;
        return bytes;
    }

  protected:
    std::string place() const override { return directory_; }

    void load_rows(const std::string& name, int64_t first, int64_t count, float* out) const override {
        const Place& place = tensors_.at(name);
        const int64_t cols = place.entry->shape.back();
        place.file->read(*place.entry, first * cols, count * cols, out);
    }

    void hash_tensor(const std::string& name, Sha256& hash) const override {
        const Place& place = tensors_.at(name);
        const uint64_t bytes = place.entry->end - place.entry->begin;
        hash.update(fmt::format("{} {} {}\n", name, dtype_name(place.entry->dtype), shape_text(place.entry->shape)));
        std::vector<char> buffer(1 << 20);
        for (uint64_t done = 0; done < bytes; done += buffer.size()) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), bytes - done));
            place.file->read_raw(*place.entry, done, buffer.data(), n);
            hash.update(buffer.data(), n);
        }
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(Exit::kBadModel, fmt::format("{}: {}", directory_, what));
    }

    std::map<std::string, Place> open_files() {
        std::map<std::string, Place> stored;
        const std::string single = io::join(directory_, "model.safetensors");
        const std::string index = io::join(directory_, "model.safetensors.index.json");
        if (io::exists(single)) {
            files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(single)));
            for (const SafetensorsEntry& entry : files_.back()->entries())
                stored[entry.name] = {files_.back().get(), &entry};
            return stored;
        }
        if (!io::exists(index)) {
            refuse(
                "holds neither model.safetensors nor model.safetensors.index.json; older .bin files are not supported: "
                "save the model with safe_serialization=True");
        }
        // The index and the files' own headers must agree both ways.
        const auto map = parse_safetensors_index(io::read_file(index, kMaxJson), index);
        std::set<std::string> names;
        for (const auto& [tensor, file] : map) names.insert(file);
        for (const std::string& name : names) {
            const std::string path = io::join(directory_, name);
            if (!io::exists(path)) refuse(fmt::format("the file {} that the index names is missing; get it", name));
            files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(path)));
            for (const SafetensorsEntry& entry : files_.back()->entries()) {
                const auto found = map.find(entry.name);
                if (found == map.end() || found->second != name)
                    refuse(fmt::format("{} holds '{}', but the index says otherwise; get the files again", name,
                                       entry.name));
                stored[entry.name] = {files_.back().get(), &entry};
            }
        }
        for (const auto& [tensor, file] : map)
            if (!stored.contains(tensor))
                refuse(fmt::format("the index says that {} holds '{}', but it does not", file, tensor));
        return stored;
    }

    // config.json says that the head is the embedding; a file that stores it all the same must store the same.
    void check_tied_head(const Place& head) const {
        const Place& embedding = tensors_.at("model.embed_tokens.weight");
        bool same = head.entry->dtype == embedding.entry->dtype && head.entry->shape == embedding.entry->shape;
        const uint64_t bytes = head.entry->end - head.entry->begin;
        std::vector<char> a(1 << 20), b(1 << 20);
        for (uint64_t done = 0; same && done < bytes; done += a.size()) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(a.size(), bytes - done));
            head.file->read_raw(*head.entry, done, a.data(), n);
            embedding.file->read_raw(*embedding.entry, done, b.data(), n);
            same = std::memcmp(a.data(), b.data(), n) == 0;
        }
        if (!same) {
            refuse(
                "config.json says 'tie_word_embeddings': true, but 'lm_head.weight' differs from "
                "'model.embed_tokens.weight'; set it to false if the separate head is meant");
        }
    }

    std::string directory_;
    std::vector<std::unique_ptr<SafetensorsFile>> files_;
    std::map<std::string, Place> tensors_;
};

// chat_template.jinja wins over tokenizer_config.json, whose field may be a list of named templates.
std::string hf_chat_template(const std::string& directory) {
    const std::string jinja = io::join(directory, "chat_template.jinja");
    if (io::exists(jinja)) return io::read_file(jinja, kMaxJson);
    const std::string file = io::join(directory, "tokenizer_config.json");
    if (!io::exists(file)) return "";
    const JsonDocument document(io::read_file(file, kMaxJson), file);
    const auto value = document.root().find("chat_template");
    if (!value) return "";
    if (!value->is_array()) return document.root().text("chat_template").value_or("");
    for (const simdjson::dom::element item : simdjson::dom::array(*value)) {
        simdjson::dom::object named;
        if (item.get(named) != simdjson::SUCCESS) document.root().wrong("chat_template", item, "a list of objects");
        const JsonObject entry(named, file, "chat_template.");
        if (entry.text("name") == "default") return entry.text("template").value_or("");
    }
    return "";
}

}  // namespace

std::shared_ptr<const HostWeights> hf_weights(const ModelConfig& config, const std::string& directory) {
    return std::make_shared<HfWeights>(config, directory);
}

Model open_hf_model(const std::string& directory) {
    const std::string config = io::join(directory, "config.json");
    const std::string generation = io::join(directory, "generation_config.json");
    Model model;
    model.config = parse_hf_config(io::read_file(config, kMaxJson), config,
                                   io::exists(generation) ? io::read_file(generation, kMaxJson) : std::string());
    model.weights = hf_weights(model.config, directory);
    if (!io::exists(io::join(directory, "tokenizer.json"))) {
        throw Error(Exit::kBadModel, directory + ": tokenizer.json is missing; copy it from the model's page");
    }
    model.tokenizer.directory = directory;
    model.chat_template = hf_chat_template(directory);
    return model;
}

}  // namespace orpo
