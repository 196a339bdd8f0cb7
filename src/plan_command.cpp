#include "src/command.h"

namespace orpo {

void add_plan_command(Commands& commands) {
    commands.add("plan", "not there yet", "  orpo plan --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo plan is not there yet"); });
}

}  // namespace orpo
