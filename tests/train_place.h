// A folder with a tiny model, pairs to train on, and `orpo train` in it.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/io.h"
#include "src/metrics_log.h"
#include "tests/program.h"
#include "tests/temp_dir.h"
#include "tests/tiny_model_dir.h"

namespace orpo::test {

using Words = std::vector<std::string>;

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct TrainPlace {
    TempDir dir;
    std::string model = dir / "model", data = dir / "pairs.jsonl", held_out = dir / "eval.jsonl";
    Words usual;  // flags of every run here

    // 22 pairs by 4: six steps an epoch, the last one of two pairs.
    explicit TrainPlace(Words flags = {}) : usual(std::move(flags)) {
        REQUIRE_MESSAGE(!program().empty(), "ORPO_TEST_BINARY names the program");
        write_tiny_model(model);
        io::write_file_atomic(data, tiny_pairs(22));
        io::write_file_atomic(held_out, tiny_pairs(6, 9));
    }
    // flags: "--name", "value", ...; a later value replaces an earlier one. Switches come last.
    Words train(const std::string& out, const Words& flags = {}) const {
        Words words = {"train",   data,           "--model", model,         "--eval", held_out,    "--out",
                       dir / out, "--batch-size", "4",       "--lora-rank", "4",      "--threads", "1"};
        for (const Words& more : {usual, flags})
            for (size_t i = 0; i < more.size(); i += 2) {
                const auto old = std::find(words.begin(), words.end(), more[i]);
                if (i + 1 == more.size())
                    words.push_back(more[i]);
                else if (old == words.end())
                    words.insert(words.end(), {more[i], more[i + 1]});
                else
                    *(old + 1) = more[i + 1];
            }
        return words;
    }
    Words resume(const std::string& out, const Words& flags = {}) const {
        Words words = train(out, flags);
        words.push_back("--resume");
        return words;
    }
    Ran run(const Words& words, const std::map<std::string, std::string>& environment = {}) const {
        return orpo::test::run(words, dir / "log", environment);
    }
    std::string adapter_hash(const std::string& out) const {
        return sha256_file(dir / (out + "/adapter/adapter_model.safetensors"));
    }
    std::vector<Json> lines(const std::string& out, const std::string& type = "") const {
        std::vector<Json> lines;
        const std::string text = io::read_file(dir / (out + "/metrics.jsonl"), 1 << 26);
        for (size_t begin = 0; begin < text.size();) {
            const size_t end = text.find('\n', begin);
            REQUIRE(end != std::string::npos);
            Json line = Json::parse(text.substr(begin, end - begin));
            begin = end + 1;
            if (type.empty() || line.at("type") == type) lines.push_back(std::move(line));
        }
        return lines;
    }
    // Steps, evaluations and end of a run without times, speeds and memory.
    std::string history(const std::string& out) const {
        std::string history;
        for (Json& line : lines(out)) {
            if (line.at("type") == "resume" || line.at("type") == "header") continue;
            for (const char* key : {"seconds", "tokens_per_second", "peak_bytes", "gemm_share"}) line.erase(key);
            history += line.dump() + "\n";
        }
        return history;
    }
};

}  // namespace orpo::test
