// A whole small model on disk: config.json, model.safetensors with random weights, a byte-level tokenizer without
// merges, and preference data to train it on. Made in milliseconds, trained at hundreds of steps a second.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/io.h"
#include "base/philox.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/tokenizer_definition.h"

namespace orpo::test {

inline ModelConfig tiny_dir_config() {
    ModelConfig c;
    c.V = 259, c.C = 32, c.L = 2, c.H = 2, c.KV = 1, c.HS = 16, c.I = 48;
    c.rope_theta = 10000, c.rms_eps = 1e-5, c.max_positions = 2048;
    c.bos = 256, c.eos = 257, c.pad = 258;
    c.name = "tiny";
    return c;
}

// Characters as UTF-8; the byte alphabet needs no more than two bytes.
inline std::string utf8_of(char32_t c) {
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
}

// One that the CUDA kernels take: heads of 64, widths that are multiples of 8.
inline ModelConfig tiny_gpu_dir_config() {
    ModelConfig c = tiny_dir_config();
    c.V = 264, c.C = 48, c.H = 3, c.KV = 1, c.HS = 64, c.I = 72;
    return c;
}

// seed: other weights. Norms about 1, the rest uniform.
inline void write_tiny_model(const std::string& directory, uint64_t seed = 1,
                             const ModelConfig& config = tiny_dir_config()) {
    io::make_dirs(directory);
    io::write_file_atomic(directory + "/config.json", hf_config_json(config));
    TokenizerDefinition tokenizer;
    for (int byte = 0; byte < 256; ++byte)
        tokenizer.tokens.push_back(utf8_of(byte_to_char(static_cast<uint8_t>(byte))));
    tokenizer.added = {{256, "<|start|>"}, {257, "<|end|>"}, {258, "<|pad|>"}};
    for (int id = 259; id < config.V; ++id) tokenizer.added.push_back({id, "<|unused-" + std::to_string(id) + "|>"});
    tokenizer.bos = 256, tokenizer.eos = 257, tokenizer.pad = 258;
    io::write_file_atomic(directory + "/tokenizer.json", tokenizer_json(tokenizer));
    io::write_file_atomic(directory + "/tokenizer_config.json",
                          tokenizer_config_json(tokenizer, "", config.max_positions));
    std::vector<std::vector<float>> values;
    std::vector<SafetensorsTensor> tensors;
    for (const TensorShape& t : model_tensors(config)) {
        int64_t n = 1;
        for (const int64_t extent : t.shape) n *= extent;
        const bool norm = t.shape.size() == 1;
        const double scale = norm ? 0.1 : std::sqrt(3.0 / static_cast<double>(t.shape.back()));
        std::vector<float>& v = values.emplace_back(n);
        for (int64_t i = 0; i < n; ++i) {
            const auto words = philox(fnv1a(t.name) ^ seed, {static_cast<uint32_t>(i / 4), 0, 0, 0});
            v[i] = static_cast<float>((norm ? 1 : 0) + scale * (2 * uniform(words[i % 4]) - 1));
        }
        tensors.push_back({t.name, DType::kF32, t.shape, nullptr});
    }
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = values[i].data();
    write_safetensors(directory + "/model.safetensors", tensors);
}

// `count` pairs of short answers; chosen ones are of small letters, rejected ones of capitals.
inline std::string tiny_pairs(int count, uint64_t seed = 1) {
    std::string text;
    const auto word = [&](uint32_t i, uint32_t part, char first, uint32_t longest) {
        const auto length = philox(seed, {i, part, 0, 1});
        std::string s;
        for (uint32_t k = 0; k < 2 + length[0] % longest; ++k)
            s += static_cast<char>(first + static_cast<char>(philox(seed, {i, part, k, 2})[0] % 26));
        return s;
    };
    for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i)
        text += "{\"prompt\": \"" + std::to_string(i) + word(i, 0, 'a', 12) + "\", \"chosen\": \" " +
                word(i, 1, 'a', 10) + "\", \"rejected\": \" " + word(i, 2, 'A', 10) + "\"}\n";
    return text;
}

}  // namespace orpo::test
