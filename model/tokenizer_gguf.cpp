// From the arrays of a GGUF file to a tokenizer's definition.
#include "base/error.h"
#include "model/tokenizer_definition.h"
#include "model/utf8.h"

namespace orpo {
namespace {

// tokenizer.ggml.token_type
enum TokenType { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

}  // namespace

TokenizerDefinition definition_from_gguf(const GgufTokenizerFields& fields, const std::string& file) {
    const auto refuse = [&](const std::string& what) { throw Error(Exit::kBadModel, file + ": " + what); };
    if (fields.model != "gpt2") {
        refuse("tokenizer.ggml.model \"" + fields.model + "\" is not supported; supported: gpt2");
    }
    if (fields.pre != "smollm" && fields.pre != "gpt-2") {
        refuse("tokenizer.ggml.pre \"" + fields.pre + "\" is not supported; supported: smollm, gpt-2");
    }
    if (fields.add_bos) refuse("tokenizer.ggml.add_bos_token is true; SmolLM2's tokenizer adds nothing");
    if (fields.tokens.empty()) refuse("tokenizer.ggml.tokens is empty");
    if (fields.types.size() != fields.tokens.size()) {
        refuse("tokenizer.ggml.token_type has " + std::to_string(fields.types.size()) + " entries for " +
               std::to_string(fields.tokens.size()) + " tokens, so that special tokens cannot be told from text");
    }
    if (fields.tokens.size() > (1u << 24)) refuse("tokenizer.ggml.tokens has more than 16 million entries");

    TokenizerDefinition definition;
    definition.file = file;
    definition.isolate_digits = fields.pre == "smollm";
    definition.bos = fields.bos, definition.eos = fields.eos;
    definition.unk = fields.unk, definition.pad = fields.pad;
    for (size_t id = 0; id < fields.tokens.size(); ++id) {
        const std::string& token = fields.tokens[id];
        const std::string place = "tokenizer.ggml.tokens[" + std::to_string(id) + "]";
        if (find_invalid_utf8(token) != std::string::npos) refuse(place + " is no valid UTF-8");
        switch (fields.types[id]) {
            case kNormal:
            case kUnused:
                break;
            case kControl:
            case kUserDefined:
                definition.added.push_back({static_cast<int32_t>(id), token, fields.types[id] == kControl, false});
                break;
            default:
                refuse(place + " has the type " + std::to_string(fields.types[id]) +
                       "; supported: 1 normal, 3 control, 4 user-defined, 5 unused");
        }
        definition.tokens.push_back(token);
    }
    for (size_t rank = 0; rank < fields.merges.size(); ++rank) {
        const std::string& merge = fields.merges[rank];
        const size_t space = merge.find(' ');
        if (space == std::string::npos || space == 0 || space + 1 == merge.size() ||
            merge.find(' ', space + 1) != std::string::npos || find_invalid_utf8(merge) != std::string::npos) {
            refuse("tokenizer.ggml.merges[" + std::to_string(rank) + "] is not two tokens with a space between");
        }
        definition.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
    return definition;
}

}  // namespace orpo
