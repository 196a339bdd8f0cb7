#include "src/command.h"

namespace orpo {

void add_tokenize_command(Commands& commands) {
    commands.add("tokenize", "not there yet", "  orpo tokenize --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo tokenize is not there yet"); });
}

}  // namespace orpo
