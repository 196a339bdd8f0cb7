// Any bytes as tokenizer.json (and, behind a zero byte, tokenizer_config.json). What is accepted is written, read back
// and has to be the same tokenizer.
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/tokenizer.h"
#include "model/tokenizer_definition.h"

using namespace orpo;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    const size_t zero = bytes.find('\0');
    const std::string config = zero == std::string::npos ? "" : bytes.substr(zero + 1);
    try {
        const Tokenizer tokenizer = Tokenizer::build(definition_from_json({"fuzz", bytes.substr(0, zero), config, ""}));
        const std::string text = "Hello <|im_end|> a  1\u00e9";
        const auto ids = tokenizer.encode(text);
        tokenizer.decode(ids);
        const Tokenizer again = Tokenizer::build(
            definition_from_json({"again", tokenizer.tokenizer_json(), tokenizer.tokenizer_config_json("", 8192), ""}));
        if (again.fingerprint() != tokenizer.fingerprint() || again.encode(text) != ids) std::abort();
        if (again.bos() != tokenizer.bos() || again.eos() != tokenizer.eos() || again.pad() != tokenizer.pad()) {
            std::abort();
        }
    } catch (const Error&) {
    }
    return 0;
}
