#include "src/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "model/peft_adapter.h"

namespace orpo {
namespace {

static_assert(std::endian::native == std::endian::little, "state.f32 is written as it lies in memory");

constexpr const char* kFormat = "orpo-checkpoint";
constexpr int kVersion = 1;
constexpr uint64_t kLargestManifest = 64 << 20;
constexpr const char* kTemporary = ".tmp-";  // a checkpoint being written
constexpr const char* kReplaced = ".old-";   // one that makes way for another of the same step

std::string checkpoints_dir(const std::string& run) { return io::join(run, "checkpoints"); }

[[noreturn]] void damaged(const std::string& file, const std::string& what) {
    throw Error(Exit::kCannotResume, file + ": damaged checkpoint: " + what);
}

Json describe_file(const std::string& directory, const std::string& name) {
    const std::string path = io::join(directory, name);
    return {{"name", name}, {"bytes", io::file_size(path)}, {"sha256", sha256_file(path)}};
}

// The manifest's text: the object with the hash of itself as its last member.
std::string seal(Json manifest) {
    manifest.erase("manifest_sha256");
    manifest["manifest_sha256"] = sha256_hex(manifest.dump(1));
    return manifest.dump(1) + "\n";
}

Json read_manifest(const std::string& file) {
    std::string text;
    try {
        text = io::read_file(file, kLargestManifest);
    } catch (const Error& error) {
        damaged(file, error.what());
    }
    Json manifest = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!manifest.is_object()) damaged(file, "not JSON");
    // Equal to what is written for this content, to the last byte: so the hash covers all of the text.
    if (!manifest.contains("manifest_sha256") || seal(manifest) != text) damaged(file, "its checksum does not match");
    if (manifest.value("format", "") != kFormat) damaged(file, "not a manifest of this program");
    if (manifest.value("version", 0) != kVersion)
        throw Error(Exit::kCannotResume,
                    file + ": written by another version of this program, which is needed to resume");
    return manifest;
}

void check_file(const std::string& directory, const Json& entry) {
    const std::string path = io::join(directory, entry.at("name").get<std::string>());
    if (!io::exists(path)) damaged(path, "the file is missing");
    const uint64_t bytes = entry.at("bytes").get<uint64_t>(), found = io::file_size(path);
    if (found != bytes) damaged(path, std::to_string(found) + " bytes, expected " + std::to_string(bytes));
    std::string hash;
    try {
        hash = sha256_file(path);
    } catch (const Error& error) {
        damaged(path, error.what());
    }
    if (hash != entry.at("sha256").get<std::string>()) damaged(path, "its checksum does not match");
}

void read_floats(const io::Reader& reader, uint64_t first, std::vector<float>& out) {
    reader.read_at(first * sizeof(float), out.data(), out.size() * sizeof(float));
}

}  // namespace

std::string checkpoint_path(const std::string& run, int64_t step) {
    return io::join(checkpoints_dir(run), "step-" + std::to_string(step));
}

std::vector<int64_t> list_checkpoints(const std::string& run) {
    std::vector<int64_t> steps;
    if (!io::is_directory(checkpoints_dir(run))) return steps;
    for (const std::string& name : io::list_dir(checkpoints_dir(run))) {
        constexpr std::string_view prefix = "step-";
        if (!name.starts_with(prefix)) continue;
        int64_t step = 0;
        const char* end = name.data() + name.size();
        const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
        if (error == std::errc() && stop == end && step >= 0) steps.push_back(step);
    }
    std::sort(steps.begin(), steps.end());
    return steps;
}

void save_checkpoint(const std::string& run, const CheckpointView& state, const PeftAdapter& adapter) {
    const std::string parent = checkpoints_dir(run), final_path = checkpoint_path(run, state.step);
    const std::string stamp = "step-" + std::to_string(state.step) + "-" + std::to_string(::getpid());
    const std::string temporary = io::join(parent, kTemporary + stamp);
    ORPO_CHECK(state.m.size() == state.masters.size() && state.v.size() == state.masters.size());
    ORPO_CHECK(state.best.empty() || state.best.size() == state.masters.size());
    io::make_dirs(parent);
    io::remove_tree(temporary);
    try {
        io::make_dirs(temporary);
        write_peft_adapter(io::join(temporary, "adapter"), adapter);
        {
            io::AtomicFile file(io::join(temporary, "state.f32"));
            for (const auto& part : {state.masters, state.m, state.v, state.best})
                file.write(part.data(), part.size_bytes());
            file.commit();
        }
        Json manifest = {{"format", kFormat},
                         {"version", kVersion},
                         {"step", state.step},
                         {"epoch", state.epoch},
                         {"position", state.position},
                         {"parameters", state.masters.size()},
                         {"has_best", !state.best.empty()},
                         {"trainer", *state.trainer},
                         {"identity", *state.identity},
                         {"files", Json::array()}};
        for (const char* name : {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "state.f32"})
            manifest["files"].push_back(describe_file(temporary, name));
        io::write_file_atomic(io::join(temporary, "manifest.json"), seal(std::move(manifest)));
        io::sync_dir(temporary);
        if (io::exists(final_path)) io::rename_durable(final_path, io::join(parent, kReplaced + stamp));
        io::rename_durable(temporary, final_path);
    } catch (...) {
        try {
            io::remove_tree(temporary);
        } catch (const Error&) {
            // The first failure is the one to report; the next run removes what is left.
        }
        throw;
    }
    io::remove_tree(io::join(parent, kReplaced + stamp));
}

Checkpoint load_checkpoint(const std::string& directory) {
    const std::string file = io::join(directory, "manifest.json");
    if (!io::exists(file)) damaged(file, "the file is missing");
    const Json manifest = read_manifest(file);
    Checkpoint checkpoint;
    try {
        checkpoint.step = manifest.at("step").get<int64_t>();
        checkpoint.epoch = manifest.at("epoch").get<int64_t>();
        checkpoint.position = manifest.at("position").get<int64_t>();
        checkpoint.trainer = manifest.at("trainer");
        checkpoint.identity = manifest.at("identity");
        const auto n = manifest.at("parameters").get<uint64_t>();
        const bool has_best = manifest.at("has_best").get<bool>();
        for (const Json& entry : manifest.at("files")) check_file(directory, entry);
        const auto reader = io::open_reader(io::join(directory, "state.f32"));
        const uint64_t parts = has_best ? 4 : 3;
        if (n > UINT64_MAX / 16 || reader->size() != n * parts * sizeof(float)) damaged(reader->name(), "wrong size");
        checkpoint.masters.resize(n), checkpoint.m.resize(n), checkpoint.v.resize(n);
        if (has_best) checkpoint.best.resize(n);
        read_floats(*reader, 0, checkpoint.masters);
        read_floats(*reader, n, checkpoint.m);
        read_floats(*reader, 2 * n, checkpoint.v);
        if (has_best) read_floats(*reader, 3 * n, checkpoint.best);
    } catch (const nlohmann::json::exception& error) {
        damaged(file, error.what());
    }
    return checkpoint;
}

std::optional<Checkpoint> newest_checkpoint(const std::string& run,
                                            const std::function<void(const std::string&)>& warn) {
    const std::vector<int64_t> steps = list_checkpoints(run);
    std::string last;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
        try {
            return load_checkpoint(checkpoint_path(run, *step));
        } catch (const Error& error) {
            last = error.what();
            warn(last + "; looking for an older one");
        }
    }
    if (!steps.empty())
        throw Error(Exit::kCannotResume, run + ": none of its " + std::to_string(steps.size()) +
                                             " checkpoints is sound (" + last +
                                             "). Start again with another --out; adapters that are whole can be "
                                             "continued from with --adapter");
    return std::nullopt;
}

void prune_checkpoints(const std::string& run, int64_t keep) {
    const std::string parent = checkpoints_dir(run);
    if (!io::is_directory(parent)) return;
    for (const std::string& name : io::list_dir(parent))
        if (name.starts_with(kTemporary) || name.starts_with(kReplaced)) io::remove_tree(io::join(parent, name));
    if (keep <= 0) return;
    const std::vector<int64_t> steps = list_checkpoints(run);
    for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i)
        io::remove_tree(checkpoint_path(run, steps[i]));
}

}  // namespace orpo
