// `orpo bench train|kernels|decode|progress`.
#include <memory>

#include "src/bench.h"

namespace orpo {

void add_bench_command(Commands& commands) {
    CLI::App& bench = commands.add(
        "bench", "measures speed beside what the machine can do",
        "  orpo bench train\n  orpo bench kernels --model 135M\n",
        [](Call&) -> Exit { throw Error(Exit::kUsage, "orpo bench: say which, train, kernels, decode or progress"); });
    const auto flags = [] { return std::make_shared<BenchFlags>(); };
    const auto train = flags();
    CLI::App& t = commands.add(bench, "train", "pairs per second of whole optimizer steps on made-up pairs",
                               "  orpo bench train --pairs 8\n  orpo bench train --model 1.7B --device cuda\n",
                               [train](Call& call) { return bench_train(*train, call); });
    train->add_model(t), train->add_pairs(t), train->add_ceilings(t);
    t.add_option("--memory-limit", train->memory_limit, "most GPU memory that the step's arrays may take: 22.5GiB")
        ->type_name("SIZE");
    t.add_option("--steps", train->steps, "steps that are timed")->check(CLI::Range(1, 1000));

    const auto kernels = flags();
    CLI::App& k = commands.add(
        bench, "kernels", "every operation at a model's shapes: time, rate, share of the machine's ceiling",
        "  orpo bench kernels --model 135M\n  orpo bench kernels --model 1.7B --pairs 16 --device cuda\n",
        [kernels](Call& call) { return bench_kernels(*kernels, call); });
    kernels->add_model(k), kernels->add_pairs(k), kernels->add_ceilings(k);
    k.add_option("--cached", kernels->cached, "tokens before the one that decoding adds")->check(CLI::Range(1, 100000));

    const auto decode = flags();
    CLI::App& d = commands.add(bench, "decode", "tokens per second of generation, beside the copy bandwidth",
                               "  orpo bench decode\n  orpo bench decode --model 1.7B --device cuda\n",
                               [decode](Call& call) { return bench_decode(*decode, call); });
    decode->add_model(d), decode->add_ceilings(d);
    d.add_option("--cached", decode->cached, "tokens of the prompt")->check(CLI::Range(1, 100000));
    d.add_option("--new-tokens", decode->new_tokens, "tokens that are generated and timed")
        ->check(CLI::Range(1, 100000));

    const auto progress = flags();
    CLI::App& p = commands.add(
        bench, "progress", "kernels/progress: naive to fast CUDA kernels, checked, then timed (needs a GPU)",
        "  orpo bench progress --device cuda\n", [progress](Call& call) { return bench_progress(*progress, call); });
    progress->add_model(p), progress->add_pairs(p), progress->add_ceilings(p);
}

}  // namespace orpo
