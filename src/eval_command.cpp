#include "src/command.h"

namespace orpo {

void add_eval_command(Commands& commands) {
    commands.add("eval", "not there yet", "  orpo eval --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo eval is not there yet"); });
}

}  // namespace orpo
