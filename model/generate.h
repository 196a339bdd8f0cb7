// Text from a model, with a key/value cache: prompts go through once, then one new row per sequence and step.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/engine.h"
#include "model/tokenizer.h"

namespace orpo {

struct Sampling : SampleRule {
    int max_tokens = 128;
    uint64_t seed = 0;
    uint32_t first = 0;              // number of the first prompt: prompts in several calls draw as in one
    std::vector<std::string> stops;  // text that ends a sequence; it is cut off
    std::vector<int32_t> stop_ids;   // tokens that end a sequence; they are cut off

    void check() const;  // Error(kUsage) names the flag of an impossible value
};

struct Generated {
    std::vector<int32_t> ids;  // new tokens only
    std::string text;
    bool stopped = false;  // by a stop id or text; else max_tokens or the engine's longest sequence was reached
};

// sequence, and the next piece of its text: whole characters, held back while they might be part of a stop.
using OnText = std::function<void(size_t sequence, std::string_view piece)>;

// Sequence i draws from Philox by (seed, first + i, place in the text): it does not depend on what runs beside it. Runs
// engine.sizes().sequences prompts at a time. tokenizer may be null: then there is no text. Error(kUsage) for a prompt
// that is empty or longer than the engine's sizes.
std::vector<Generated> generate(Engine& engine, const Tokenizer* tokenizer,
                                std::span<const std::vector<int32_t>> prompts, const Sampling& sampling, int slot = 0,
                                const OnText& on_text = {});

}  // namespace orpo
