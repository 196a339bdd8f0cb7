#include "src/command.h"

namespace orpo {

void add_data_command(Commands& commands) {
    commands.add("data", "not there yet", "  orpo data --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo data is not there yet"); });
}

}  // namespace orpo
