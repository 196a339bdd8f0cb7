// Any bytes as a chat template: it is recognised or refused.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "model/chat_template.h"

using namespace orpo;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view jinja(reinterpret_cast<const char*>(data), size);
    try {
        template_name(recognise_template(jinja, "fuzz"));
    } catch (const Error& error) {
        if (error.exit() != Exit::kBadModel) std::abort();
    }
    return 0;
}
