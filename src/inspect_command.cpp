#include "src/command.h"

namespace orpo {

void add_inspect_command(Commands& commands) {
    commands.add("inspect", "not there yet", "  orpo inspect --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo inspect is not there yet"); });
}

}  // namespace orpo
