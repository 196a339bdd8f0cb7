#include "src/command.h"

namespace orpo {

void add_train_command(Commands& commands) {
    commands.add("train", "not there yet", "  orpo train --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo train is not there yet"); });
}

}  // namespace orpo
