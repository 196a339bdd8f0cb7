#include "src/command.h"

namespace orpo {

void add_bench_command(Commands& commands) {
    commands.add("bench", "not there yet", "  orpo bench --help\n",
                 [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo bench is not there yet"); });
}

}  // namespace orpo
