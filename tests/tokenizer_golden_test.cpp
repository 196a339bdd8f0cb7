// Equality with the reference library, from hashes and lists that tools/make_tokenizer_goldens.py wrote: on the small
// tokenizer of the tests always, on the real one when a SmolLM2 model is in the caches.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "model/gguf.h"
#include "model/resolve.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/utf8.h"
#include "tests/temp_dir.h"

using namespace orpo;
using Json = nlohmann::ordered_json;

namespace {

std::string test_folder() {
    const char* folder = std::getenv("ORPO_TEST_DATA");
    return folder != nullptr ? folder : "tests";
}

Json read_golden(const std::string& name) {
    return Json::parse(io::read_file(test_folder() + "/golden/tokenizer/" + name, 16 << 20));
}

Tokenizer small_tokenizer() {
    TokenizerSource source;
    source.directory = test_folder() + "/golden/tokenizer/small";
    return Tokenizer::load(source);
}

std::optional<Tokenizer> real_tokenizer() {
    ResolvedModel model;
    try {
        model = resolve_model("");
    } catch (const Error&) {
        std::cerr << "skipped: no model, so the real tokenizer is not compared with the reference\n";
        return std::nullopt;
    }
    TokenizerSource source;
    if (model.is_gguf) {
        source.gguf = std::make_shared<const GgufTokenizerFields>(gguf_tokenizer_fields(GgufFile::open(model.path)));
    } else {
        source.directory = model.path;
    }
    return Tokenizer::load(source);
}

// The texts of the script, made the same way.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t below(uint64_t n) {
        state_ += 0x9E3779B97F4A7C15ull;
        uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return (z ^ (z >> 31)) % n;
    }

  private:
    uint64_t state_;
};

std::string random_text(uint64_t index, const std::vector<std::string>& fragments) {
    Random random(index);
    std::string text;
    const uint64_t parts = random.below(40);
    for (uint64_t i = 0; i < parts; ++i) {
        const uint64_t kind = random.below(10);
        if (kind < 4) {
            text += fragments[random.below(fragments.size())];
            continue;
        }
        const auto code = static_cast<char32_t>(kind < 6    ? 32 + random.below(95)
                                                : kind == 6 ? random.below(0x250)
                                                : kind == 7 ? random.below(0x3100)
                                                : kind == 8 ? 0x3000 + random.below(0x8000)
                                                            : random.below(0x110000));
        append_utf8(code >= 0xD800 && code < 0xE000 ? U'X' : code, text);
    }
    return text;
}

class IdHash {
  public:
    void add(const std::vector<int32_t>& ids) {
        hash_.update(ids.data(), ids.size() * sizeof(int32_t));  // little-endian machines only, as the whole program
        constexpr uint32_t kEnd = 0xFFFFFFFFu;
        hash_.update(&kEnd, sizeof kEnd);
    }
    std::string text() { return hash_.hex().substr(0, 16); }

  private:
    Sha256 hash_;
};

void check_code_points(const Tokenizer& tokenizer, const Json& golden) {
    REQUIRE(golden["code_points"].size() == 0x110000 / 4096);
    for (char32_t block = 0; block < 0x110000; block += 4096) {
        IdHash hash;
        for (char32_t code = block; code < block + 4096; ++code) {
            if (code >= 0xD800 && code < 0xE000) continue;
            std::string c;
            append_utf8(code, c);
            for (const std::string& text : {c, "a" + c + "b", "1" + c + "2", " " + c, c + " ."}) {
                hash.add(tokenizer.encode(text));
            }
        }
        CHECK_MESSAGE(hash.text() == golden["code_points"][block / 4096].get<std::string>(),
                      "in the 4096 code points from " << static_cast<uint32_t>(block));
    }
}

void check_random(const Tokenizer& tokenizer, const Json& golden) {
    const auto fragments = golden["fragments"].get<std::vector<std::string>>();
    REQUIRE(golden["random"].size() == 100);
    for (uint64_t block = 0; block < 100; ++block) {
        IdHash hash;
        for (uint64_t i = 0; i < 1000; ++i) hash.add(tokenizer.encode(random_text(block * 1000 + i, fragments)));
        CHECK_MESSAGE(hash.text() == golden["random"][block].get<std::string>(),
                      "in the 1000 random texts from " << block * 1000);
    }
}

void check_lists(const Tokenizer& tokenizer, const Json& golden) {
    CHECK(golden["strings"].size() == 300);
    for (const auto& [string, ids] :
         golden["strings"].get<std::vector<std::pair<std::string, std::vector<int32_t>>>>()) {
        const std::string text = string;
        CAPTURE(text);
        CHECK(tokenizer.encode(text) == ids);
    }
    CHECK(golden["literal"].size() > 20);
    for (const auto& [string, ids] :
         golden["literal"].get<std::vector<std::pair<std::string, std::vector<int32_t>>>>()) {
        const std::string text = string;
        CAPTURE(text);
        CHECK(tokenizer.encode(text, SpecialText::kLiteral) == ids);
    }
    for (const auto& entry : golden["decoded"]) {
        const auto ids = entry[0].get<std::vector<int32_t>>();
        CAPTURE(entry.dump());
        CHECK(tokenizer.decode(ids) == entry[1].get<std::string>());
        CHECK(tokenizer.decode(ids, true) == entry[2].get<std::string>());
    }
}

// Time that this process was given: the machine may be busy with other tests.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

void check_runs(const Tokenizer& tokenizer, const Json& golden) {
    for (const auto& [piece, count, expected] :
         golden["runs"].get<std::vector<std::tuple<std::string, int, std::string>>>()) {
        const std::string unit = piece;
        std::string text;
        for (int i = 0; i < count; ++i) text += unit;
        const double start = cpu_seconds();
        const auto ids = tokenizer.encode(text);
        const double seconds = cpu_seconds() - start;
        CAPTURE(unit);
        IdHash hash;
        hash.add(ids);
        CHECK(hash.text() == expected);
#ifndef __SANITIZE_ADDRESS__
        CHECK(seconds < 1.0);
#endif
        MESSAGE("1 MB of \"" << unit << "\": " << seconds << " s");
    }
}

void check_all(const Tokenizer& tokenizer, const Json& golden) {
    SUBCASE("every code point, alone and between others") { check_code_points(tokenizer, golden); }
    SUBCASE("100,000 random texts") { check_random(tokenizer, golden); }
    SUBCASE("chosen texts and ids") { check_lists(tokenizer, golden); }
    SUBCASE("a megabyte of one thing") { check_runs(tokenizer, golden); }
}

void encode_strings(const Json& value, const Tokenizer& tokenizer, IdHash& hash) {
    if (value.is_string()) {
        hash.add(tokenizer.encode(value.get_ref<const std::string&>()));
    } else if (value.is_structured()) {
        for (const Json& item : value) encode_strings(item, tokenizer, hash);
    }
}

}  // namespace

TEST_CASE("the small tokenizer equals the reference") { check_all(small_tokenizer(), read_golden("small.json")); }

TEST_CASE("SmolLM2's tokenizer equals the reference") {
    const auto tokenizer = real_tokenizer();
    if (tokenizer) check_all(*tokenizer, read_golden("smollm2.json"));
}

TEST_CASE("SmolLM2's tokenizer on real data equals the reference") {
    const auto tokenizer = real_tokenizer();
    if (!tokenizer) return;
    const char* shared = std::getenv("ORPO_TEST_SHARED");
    const std::string folder = shared != nullptr ? shared : test_folder() + "/../../shared/data";
    for (const auto& [file, expected] : read_golden("smollm2.json")["data"].items()) {
        const std::string name = file;
        const std::string path = folder + "/" + name;
        if (!io::exists(path)) {
            std::cerr << "skipped: no " << name << " (ORPO_TEST_SHARED names its folder)\n";
            continue;
        }
        const std::string lines = io::read_file(path, 1 << 30);
        IdHash hash;
        for (size_t at = 0; at < lines.size();) {
            const size_t end = std::min(lines.find('\n', at), lines.size());
            encode_strings(
                Json::parse(lines.begin() + static_cast<int64_t>(at), lines.begin() + static_cast<int64_t>(end)),
                *tokenizer, hash);
            at = end + 1;
        }
        CAPTURE(name);
        CHECK(hash.text() == expected.get<std::string>());
    }
}

// The small file in the tree was written by us and read by the reference; the real one is the official file to the
// byte, although it comes from the arrays of a GGUF file.
TEST_CASE("the tokenizer.json that we write") {
    const Tokenizer small = small_tokenizer();
    const std::string folder = test_folder() + "/golden/tokenizer/small/";
    CHECK(small.tokenizer_json() == io::read_file(folder + "tokenizer.json", 1 << 20));
    CHECK(small.tokenizer_config_json("", 8192) == io::read_file(folder + "tokenizer_config.json", 1 << 20));
    if (const auto real = real_tokenizer()) {
        // HuggingFaceTB/SmolLM2-135M-Instruct and -360M-Instruct, tokenizer.json, 2,104,556 bytes.
        CHECK(sha256_hex(real->tokenizer_json()) == "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c");
        const TempDir dir;
        io::write_file_atomic(dir / "tokenizer.json", real->tokenizer_json());
        io::write_file_atomic(dir / "tokenizer_config.json", real->tokenizer_config_json("", 8192));
        TokenizerSource source;
        source.directory = dir.path();
        const Tokenizer again = Tokenizer::load(source);
        CHECK(again.fingerprint() == real->fingerprint());
        CHECK(again.bos() == real->bos());
        CHECK(again.eos() == real->eos());
        CHECK(again.pad() == real->pad());
    }
}
