#include "model/resolve.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <map>

#include "base/io.h"
#include "tests/expect_error.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

// Every variable that says where caches are, pointing into one empty directory for the life of a test.
class Caches {
  public:
    Caches() {
        for (const char* name : kNames) {
            const char* value = std::getenv(name);
            if (value != nullptr) saved_[name] = value;
            ::unsetenv(name);
        }
        ::setenv("HOME", home.path().c_str(), 1);
    }
    ~Caches() {
        for (const char* name : kNames) ::unsetenv(name);
        for (const auto& [name, value] : saved_) ::setenv(name.c_str(), value.c_str(), 1);
    }
    TempDir home;

    std::string own(const std::string& name) const { return home / ".cache/orpo/models/" + name; }
    std::string hub(const std::string& name) const { return home / ".cache/huggingface/hub/" + name; }

  private:
    static constexpr const char* kNames[] = {"HOME",         "XDG_CACHE_HOME",        "HF_HOME",
                                             "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "ORPO_MODEL"};
    std::map<std::string, std::string> saved_;
};

std::string touch(const std::string& path, const std::string& bytes = "x") {
    io::make_dirs(io::parent_dir(path));
    io::write_file_atomic(path, bytes);
    return path;
}

std::string snapshot(const std::string& folder, const std::string& commit, bool main = true, bool whole = true) {
    touch(folder + "/snapshots/" + commit + "/config.json", "{}");
    if (whole) touch(folder + "/snapshots/" + commit + "/model.safetensors");
    if (main) touch(folder + "/refs/main", commit);
    return folder + "/snapshots/" + commit;
}

}  // namespace

TEST_CASE("paths") {
    Caches caches;
    TempDir dir;
    touch(dir / "model/config.json", "{}");
    const ResolvedModel directory = resolve_model(dir / "model");
    CHECK(directory.path == dir / "model");
    CHECK(!directory.is_gguf);
    CHECK(directory.hub_id == "");
    touch(dir / "SmolLM2-135M-Instruct.gguf");
    CHECK(resolve_model(dir / "SmolLM2-135M-Instruct.gguf").is_gguf);
    CHECK(resolve_model(dir / "SmolLM2-135M-Instruct.gguf").hub_id == "");  // anybody can call a file so
    touch(dir / "renamed.bin", "GGUF\3");
    CHECK(resolve_model(dir / "renamed.bin").is_gguf);

    const auto refused = [&](const std::vector<std::string>& words, const std::string& spec) {
        expect_error(Exit::kBadModel, words, [&] { resolve_model(spec); });
    };
    touch(dir / "model/model.safetensors");
    refused({"pass the directory", dir / "model"}, dir / "model/model.safetensors");
    refused({"pass the directory", dir / "model"}, dir / "model/config.json");
    touch(dir / "text.txt", "hello");
    refused({"text.txt", "neither a GGUF file"}, dir / "text.txt");
    touch(dir / "empty", "");
    refused({"neither a GGUF file"}, dir / "empty");
    touch(dir / "adapter/adapter_config.json");
    refused({"--adapter"}, dir / "adapter");
    touch(dir / "ggufs/m.Q4_1.gguf");
    refused({"pass the GGUF file", "m.Q4_1.gguf"}, dir / "ggufs");
    io::make_dirs(dir / "nothing");
    refused({"no config.json"}, dir / "nothing");
    refused({"no such file"}, dir / "missing");
    refused({"no such file"}, "7B");
}

TEST_CASE("our own cache") {
    Caches caches;
    CHECK(cache_dir() == caches.home / ".cache/orpo");
    const std::string file = touch(caches.own("SmolLM2-135M-Instruct.Q4_1.gguf"));
    for (const char* spec : {"SmolLM2-135M-Instruct", "135M-Instruct", "smollm2-135m-instruct",
                             "HuggingFaceTB/SmolLM2-135M-Instruct", ""}) {
        CAPTURE(spec);
        const ResolvedModel model = resolve_model(spec);
        CHECK(model.path == file);
        CHECK(model.is_gguf);
        CHECK(model.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct");
    }
    CHECK(resolve_model(file).hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct");
    // The base model is another one.
    expect_error(Exit::kBadModel, {"SmolLM2-135M ", "hf download HuggingFaceTB/SmolLM2-135M"},
                 [] { resolve_model("135M"); });

    ::setenv("XDG_CACHE_HOME", (caches.home / "elsewhere").c_str(), 1);
    CHECK(cache_dir() == caches.home / "elsewhere/orpo");
    expect_error(Exit::kBadModel, {"no official one was found", "elsewhere", "fetch_model"}, [] { resolve_model(""); });
}

TEST_CASE("the hub's cache") {
    Caches caches;
    const std::string base = caches.hub("models--HuggingFaceTB--SmolLM2-360M");
    const std::string path = snapshot(base, "abc123");
    for (const char* spec : {"HuggingFaceTB/SmolLM2-360M", "360M", "SmolLM2-360M", ""}) {
        CAPTURE(spec);
        CHECK(resolve_model(spec).path == path);
        CHECK(resolve_model(spec).hub_id == "HuggingFaceTB/SmolLM2-360M");
    }
    CHECK(resolve_model(path).hub_id == "HuggingFaceTB/SmolLM2-360M");
    CHECK(resolve_model(path + "/").hub_id == "HuggingFaceTB/SmolLM2-360M");

    snapshot(base, "newer");  // refs/main moves on
    CHECK(io::base_name(resolve_model("360M").path) == "newer");
    touch(base + "/refs/main", "not-there\n");  // two whole ones, and main is neither
    expect_error(Exit::kBadModel, {"several revisions"}, [] { resolve_model("360M"); });
    touch(base + "/refs/main", "../../../../etc");
    expect_error(Exit::kBadModel, {"several revisions"}, [] { resolve_model("360M"); });

    const std::string mine = caches.hub("models--me--my.model_1");
    const std::string shard = snapshot(mine, "c0ffee", true, false);
    expect_error(Exit::kBadModel, {"me/my.model_1", "not downloaded whole", "hf download me/my.model_1"},
                 [] { resolve_model("me/my.model_1"); });
    touch(shard + "/model.safetensors.index.json");
    CHECK(resolve_model("me/my.model_1").path == shard);
    CHECK(resolve_model("me/my.model_1").hub_id == "me/my.model_1");
    expect_error(Exit::kBadModel, {"me/other", "not on this machine"}, [] { resolve_model("me/other"); });
    for (const char* spec : {"me/../x", "../x", "/me", "me/", "a/b/c", "m e/x"})
        expect_error(Exit::kBadModel, {"no such file"}, [&] { resolve_model(spec); });

    ::setenv("HF_HOME", (caches.home / "hf").c_str(), 1);
    const std::string there = snapshot(caches.home / "hf/hub/models--me--other", "1");
    CHECK(resolve_model("me/other").path == there);
    ::setenv("HF_HUB_CACHE", (caches.home / "hub").c_str(), 1);
    const std::string first = snapshot(caches.home / "hub/models--me--other", "2");
    CHECK(resolve_model("me/other").path == first);
}

TEST_CASE("the default: Instruct before base, small before large, our cache before the hub's; ORPO_MODEL before all") {
    Caches caches;
    snapshot(caches.hub("models--HuggingFaceTB--SmolLM2-135M"), "1");
    CHECK(find_default_model().hub_id == "HuggingFaceTB/SmolLM2-135M");
    snapshot(caches.hub("models--HuggingFaceTB--SmolLM2-1.7B-Instruct"), "1");
    CHECK(find_default_model().hub_id == "HuggingFaceTB/SmolLM2-1.7B-Instruct");
    snapshot(caches.hub("models--HuggingFaceTB--SmolLM2-360M-Instruct"), "1");
    CHECK(find_default_model().hub_id == "HuggingFaceTB/SmolLM2-360M-Instruct");
    snapshot(caches.hub("models--HuggingFaceTB--SmolLM2-135M-Instruct"), "1");
    CHECK(!find_default_model().is_gguf);
    const std::string file = touch(caches.own("SmolLM2-135M-Instruct.gguf"));
    CHECK(find_default_model().path == file);
    ::setenv("ORPO_MODEL", "1.7B-Instruct", 1);
    CHECK(resolve_model("").hub_id == "HuggingFaceTB/SmolLM2-1.7B-Instruct");
    CHECK(find_default_model().path == file);
}
