// Any bytes as config.json (and, behind a zero byte, generation_config.json). What is accepted is written and read
// back.
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/config.h"

using namespace orpo;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    const size_t zero = bytes.find('\0');
    const std::string_view generation = zero == std::string_view::npos ? "" : bytes.substr(zero + 1);
    try {
        ModelConfig config = parse_hf_config(bytes.substr(0, zero), "fuzz/config.json", generation);
        check_config(config, "fuzz/config.json");
        parameter_count(config);
        ModelConfig again = parse_hf_config(hf_config_json(config), "fuzz/config.json");
        again.name = config.name;
        if (!(again == config)) std::abort();
    } catch (const Error&) {
    }
    ModelConfig official;
    official_config(bytes, &official);
    return 0;
}
