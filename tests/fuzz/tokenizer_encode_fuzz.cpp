// Any bytes as text. Encoding agrees with the textbook's quadratic merging, comes back when it is decoded, and refuses
// what is no UTF-8.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_definition.h"
#include "model/utf8.h"

using namespace orpo;

namespace {

std::string alphabet(std::string_view bytes) {
    std::string text;
    for (const char c : bytes) append_utf8(byte_to_char(static_cast<uint8_t>(c)), text);
    return text;
}

// All bytes but two, and merges that overlap: runs, a word in two ways, a space before it, parts of characters.
TokenizerDefinition definition() {
    TokenizerDefinition d;
    d.file = "fuzz";
    d.tokens = {"<|end|>", "<|end|><", "<s>"};
    d.added = {{0, "<|end|>", true, false}, {1, "<|end|><", true, false}, {2, "<s>", false, true}};
    for (int byte = 0; byte < 256; ++byte) {
        if (byte != 4 && byte != 'q') d.tokens.push_back(alphabet(std::string(1, static_cast<char>(byte))));
    }
    for (const auto& [left, right] : {std::pair{"a", "a"},
                                      {"aa", "aa"},
                                      {"a", "b"},
                                      {"b", "c"},
                                      {"ab", "c"},
                                      {"a", "bc"},
                                      {" ", "a"},
                                      {" ", " "},
                                      {"  ", "  "},
                                      {"\xc3", "\xa9"},
                                      {"\n", "\n"},
                                      {"aaaa", "b"},
                                      {" a", "bc"},
                                      {"!", "!"},
                                      {"!!", "!!"},
                                      {"\xe6", "\x97"},
                                      {"\xe6\x97", "\xa5"}}) {
        d.merges.emplace_back(alphabet(left), alphabet(right));
        const std::string joined = alphabet(std::string(left) + right);
        if (std::find(d.tokens.begin(), d.tokens.end(), joined) == d.tokens.end()) d.tokens.push_back(joined);
    }
    return d;
}

struct Textbook {
    TokenizerDefinition d = definition();
    std::map<std::string, int32_t> ids;
    std::map<std::pair<std::string, std::string>, size_t> ranks;

    Textbook() {
        for (size_t id = 0; id < d.tokens.size(); ++id) ids[d.tokens[id]] = static_cast<int32_t>(id);
        for (size_t rank = 0; rank < d.merges.size(); ++rank) ranks[d.merges[rank]] = rank;
    }

    void encode(std::string_view piece, std::vector<int32_t>& out) const {
        std::vector<std::string> symbols;
        for (const char c : piece) {
            if (const std::string symbol = alphabet(std::string(1, c)); ids.count(symbol)) symbols.push_back(symbol);
        }
        while (true) {
            size_t best = ranks.size(), at = 0;
            for (size_t i = 0; i + 1 < symbols.size(); ++i) {
                const auto found = ranks.find({symbols[i], symbols[i + 1]});
                if (found != ranks.end() && found->second < best) best = found->second, at = i;
            }
            if (best == ranks.size()) break;
            symbols[at] += symbols[at + 1];
            symbols.erase(symbols.begin() + static_cast<int64_t>(at) + 1);
        }
        for (const std::string& symbol : symbols) out.push_back(ids.at(symbol));
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Textbook textbook;
    static const Tokenizer tokenizer = Tokenizer::build(definition());
    static const PreTokenizer pre_tokenizer(true);
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const bool valid = find_invalid_utf8(text) == std::string_view::npos;
    if (valid != (repair_utf8(text) == text)) std::abort();
    try {
        int64_t dropped = 0;
        const auto parsed = tokenizer.encode(text, SpecialText::kParse, &dropped);
        if (!valid) std::abort();
        if (dropped == 0 && tokenizer.decode(parsed) != text) std::abort();

        const auto literal = tokenizer.encode(text, SpecialText::kLiteral, &dropped);
        if (dropped == 0 && tokenizer.decode(literal) != text) std::abort();
        if (text.find("<s>") == std::string_view::npos) {
            std::vector<int32_t> slow;
            std::string pieces;
            bool compared = true;  // the textbook's way takes seconds for a piece of thousands of bytes
            pre_tokenizer.split(text, [&](std::string_view piece) {
                if (piece.empty()) std::abort();
                pieces += piece;
                compared = compared && piece.size() <= 500;
                if (compared) textbook.encode(piece, slow);
            });
            if (pieces != text || (compared && slow != literal)) std::abort();
        }
        const bool special = tokenizer.count_special(text) > 0;
        if (special != (std::count_if(parsed.begin(), parsed.end(), [](int32_t id) { return id < 2; }) > 0)) {
            std::abort();
        }
        try {
            if (tokenizer.encode(text, SpecialText::kError) != parsed || special) std::abort();
        } catch (const Error& error) {
            if (!special || error.exit() != Exit::kBadData) std::abort();
        }
    } catch (const Error& error) {
        if (valid || error.exit() != Exit::kBadData) std::abort();
    }
    // The same bytes as ids: decoding takes what is in range and gives valid UTF-8.
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    if (find_invalid_utf8(tokenizer.decode(ids)) != std::string_view::npos) std::abort();
    return 0;
}
