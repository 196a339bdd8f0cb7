#include "src/command.h"

namespace orpo {

void add_generate_command(Commands& commands) {
    commands.add("generate", "not there yet", "  orpo generate --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo generate is not there yet"); });
}

}  // namespace orpo
