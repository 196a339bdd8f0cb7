#include "model/resolve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "base/error.h"
#include "base/io.h"
#include "model/config.h"

namespace orpo {

namespace {

constexpr const char* kOwner = "HuggingFaceTB";
// In the order of preference: what someone with no wishes should train.
constexpr const char* kOfficial[] = {"SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct", "SmolLM2-1.7B-Instruct",
                                     "SmolLM2-135M",          "SmolLM2-360M",          "SmolLM2-1.7B"};
constexpr const char* kGetDefault = "`sh tools/fetch_model.sh` in the orpo folder (SmolLM2-135M-Instruct, 98 MB)";

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

std::string user_cache() {
    const std::string xdg = environment("XDG_CACHE_HOME");
    return xdg.empty() ? io::join(environment("HOME"), ".cache") : xdg;
}

// The places where huggingface_hub keeps snapshots, its own variables first.
std::vector<std::string> hub_caches() {
    std::vector<std::string> caches;
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
        if (!environment(name).empty()) caches.push_back(environment(name));
    if (!environment("HF_HOME").empty()) caches.push_back(io::join(environment("HF_HOME"), "hub"));
    caches.push_back(io::join(io::join(user_cache(), "huggingface"), "hub"));
    return caches;
}

bool has_weights(const std::string& directory) {
    return io::exists(io::join(directory, "config.json")) &&
           (io::exists(io::join(directory, "model.safetensors")) ||
            io::exists(io::join(directory, "model.safetensors.index.json")));
}

bool is_name(std::string_view part) {
    return !part.empty() && part != "." && part != ".." &&
           part.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
               std::string_view::npos;
}

// "owner/name", as the hub spells it.
bool is_hub_id(std::string_view spec) {
    const size_t slash = spec.find('/');
    return slash != std::string_view::npos && is_name(spec.substr(0, slash)) && is_name(spec.substr(slash + 1));
}

std::string hub_folder(std::string_view id) {
    const size_t slash = id.find('/');
    return fmt::format("models--{}--{}", id.substr(0, slash), id.substr(slash + 1));
}

// The snapshot that refs/main names, else the only one that is whole. `looked` collects the places for the message.
std::optional<std::string> find_in_hub_caches(std::string_view id, std::vector<std::string>* looked) {
    for (const std::string& cache : hub_caches()) {
        const std::string folder = io::join(cache, hub_folder(id));
        if (!io::is_directory(folder)) {
            looked->push_back(folder);
            continue;
        }
        const std::string snapshots = io::join(folder, "snapshots"), ref = io::join(io::join(folder, "refs"), "main");
        if (io::exists(ref)) {
            std::string commit = io::read_file(ref, 4096);
            commit.erase(commit.find_last_not_of(" \r\n\t") + 1);
            if (is_name(commit) && has_weights(io::join(snapshots, commit))) return io::join(snapshots, commit);
        }
        std::vector<std::string> whole;
        if (io::is_directory(snapshots)) {
            for (const std::string& commit : io::list_dir(snapshots))
                if (has_weights(io::join(snapshots, commit))) whole.push_back(io::join(snapshots, commit));
        }
        if (whole.size() == 1) return whole.front();
        looked->push_back(folder +
                          (whole.empty() ? " (not downloaded whole)" : " (several revisions, none of them main)"));
    }
    return std::nullopt;
}

// Our own cache: a directory or a GGUF file called after the model.
std::optional<ResolvedModel> find_in_own_cache(const std::string& name, std::vector<std::string>* looked) {
    const std::string folder = io::join(cache_dir(), "models");
    const std::string id = fmt::format("{}/{}", kOwner, name);
    if (has_weights(io::join(folder, name))) return ResolvedModel{io::join(folder, name), id, false};
    if (io::is_directory(folder)) {
        for (const std::string& file : io::list_dir(folder)) {
            // "SmolLM2-135M-Instruct.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"; not "SmolLM2-135M-Instruct" for "-135M"
            const bool named = file == name + ".gguf" || (file.starts_with(name + ".") && file.ends_with(".gguf"));
            if (named) return ResolvedModel{io::join(folder, file), id, true};
        }
    }
    looked->push_back(io::join(folder, name + "*.gguf"));
    return std::nullopt;
}

std::optional<ResolvedModel> find_official(const std::string& name, std::vector<std::string>* looked) {
    if (auto own = find_in_own_cache(name, looked)) return own;
    const std::string id = fmt::format("{}/{}", kOwner, name);
    if (auto snapshot = find_in_hub_caches(id, looked)) return ResolvedModel{*snapshot, id, false};
    return std::nullopt;
}

std::string list(const std::vector<std::string>& looked) {
    return fmt::format("looked in {}", fmt::join(looked, ", "));
}

// ".../models--owner--name/snapshots/commit" -> "owner/name"
std::string hub_id_of_snapshot(const std::string& directory) {
    std::string path = directory;
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    const std::string snapshots = io::parent_dir(path);
    if (io::base_name(snapshots) != "snapshots") return "";
    const std::string folder = io::base_name(io::parent_dir(snapshots));
    constexpr std::string_view kPrefix = "models--";
    const size_t split = folder.find("--", kPrefix.size());
    if (!folder.starts_with(kPrefix) || split == std::string::npos) return "";
    const std::string id = folder.substr(kPrefix.size(), split - kPrefix.size()) + "/" + folder.substr(split + 2);
    return is_hub_id(id) ? id : "";
}

// A file of our own cache that is called after an official model.
std::string hub_id_of_file(const std::string& path) {
    if (io::parent_dir(path) != io::join(cache_dir(), "models")) return "";
    const std::string file = io::base_name(path);
    for (const char* name : kOfficial)
        if (file.starts_with(std::string(name) + ".")) return fmt::format("{}/{}", kOwner, name);
    return "";
}

ResolvedModel resolve_path(const std::string& path) {
    const auto refuse = [&](const std::string& what) { throw Error(Exit::kBadModel, path + ": " + what); };
    if (io::is_directory(path)) {
        if (io::exists(io::join(path, "config.json"))) return {path, hub_id_of_snapshot(path), false};
        if (io::exists(io::join(path, "adapter_config.json")))
            refuse("is an adapter, not a model; pass it with --adapter, its base with --model");
        for (const std::string& file : io::list_dir(path))
            if (file.ends_with(".gguf"))
                refuse("has no config.json; pass the GGUF file itself: " + io::join(path, file));
        refuse("has no config.json, so it is no model directory");
    }
    char magic[4] = {};
    const auto reader = io::open_reader(path);
    if (reader->size() >= 4) reader->read_at(0, magic, 4);
    if (path.ends_with(".gguf") || std::string_view(magic, 4) == "GGUF") return {path, hub_id_of_file(path), true};
    const std::string name = io::base_name(path);
    if (name == "config.json" || name.ends_with(".safetensors"))
        refuse("pass the directory that holds it: " + io::parent_dir(path));
    refuse("is neither a GGUF file nor a directory with config.json and safetensors");
    return {};
}

}  // namespace

std::string cache_dir() { return io::join(user_cache(), "orpo"); }

ResolvedModel find_default_model() {
    std::vector<std::string> looked;
    for (const char* name : kOfficial)
        if (auto found = find_official(name, &looked)) return *found;
    std::vector<std::string> folders = {io::join(cache_dir(), "models")};
    for (const std::string& cache : hub_caches()) folders.push_back(cache);
    throw Error(Exit::kBadModel,
                fmt::format("no model was given and no official one was found ({}); get one with {}, or "
                            "name yours with --model",
                            list(folders), kGetDefault));
}

ResolvedModel resolve_model(const std::string& spec) {
    if (spec.empty()) {
        const std::string preset = environment("ORPO_MODEL");
        return preset.empty() ? find_default_model() : resolve_model(preset);
    }
    if (io::exists(spec)) return resolve_path(spec);

    std::vector<std::string> looked = {spec};
    ModelConfig official;
    const std::string owner = fmt::format("{}/", kOwner);
    if (official_config(spec.starts_with(owner) ? spec.substr(owner.size()) : spec, &official)) {
        if (auto found = find_official(official.name, &looked)) return *found;
        const bool is_default = official.name == kOfficial[0];
        throw Error(Exit::kBadModel,
                    fmt::format("model {} is not on this machine ({}); get it with {}", official.name, list(looked),
                                is_default ? kGetDefault : fmt::format("`hf download {}/{}`", kOwner, official.name)));
    }
    if (is_hub_id(spec)) {
        if (auto snapshot = find_in_hub_caches(spec, &looked)) return {*snapshot, spec, false};
        throw Error(Exit::kBadModel, fmt::format("model {} is not on this machine ({}); get it with `hf download {}`",
                                                 spec, list(looked), spec));
    }
    throw Error(Exit::kBadModel,
                fmt::format("{}: no such file or directory, and no model is called so; --model takes a directory with "
                            "config.json and safetensors, a .gguf file, a hub id or 135M, 360M, 1.7B with or without "
                            "-Instruct",
                            spec));
}

}  // namespace orpo
