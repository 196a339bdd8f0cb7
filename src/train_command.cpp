#include "src/command.h"
#include "src/config.h"

namespace orpo {

void add_train_command(Commands& commands) {
    auto flags = std::make_shared<TrainFlags>();
    CLI::App& app =
        commands.add("train", "trains an adapter on preference pairs",
                     "  orpo train data.jsonl\n"
                     "  orpo train data.jsonl --eval held-out.jsonl --model SmolLM2-360M-Instruct --lr 4e-4\n"
                     "  orpo train data.jsonl --dry-run\n"
                     "  orpo train --resume --out runs/2026-01-31-data-SmolLM2-135M-Instruct\n",
                     [flags](Call& call) -> Exit {
                         const TrainConfig config = flags->config(call);
                         if (flags->print_config) {
                             print(print_config_text(config, call));
                             return Exit::kDone;
                         }
                         throw Error(Exit::kUsage, "orpo train is not there yet");
                     });
    flags->add_to(app);
}

}  // namespace orpo
