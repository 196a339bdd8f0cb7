// --semantics paper and llamafactory against the originals' own tokens, masks, losses and gradients
// (tools/make_semantics_golden.py).
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/io.h"
#include "data/pack.h"
#include "kernels/reference/reference.h"
#include "model/adapter.h"
#include "tests/data_test.h"
#include "tests/tiny_model.h"

using namespace orpo;
using nlohmann::json;

namespace {

const std::string kFolder = "golden/semantics/";

json golden_of(const std::string& name) {
    return json::parse(io::read_file(test_file(kFolder + name + ".json"), 1 << 24));
}

// The rows of a golden file's data, as that tokenizer and --max-length make pairs of them.
Dataset dataset(GgufTokenizerFields fields, const std::string& name, bool base, int max_length) {
    if (base) fields.bos = fields.eos = fields.pad = 0;
    const auto tokenizer = Tokenizer::load(source_of(std::make_shared<GgufTokenizerFields>(std::move(fields))));
    DataOptions options;
    REQUIRE(parse_semantics(name, &options.semantics));
    options.chat_template = base ? ChatTemplate::kNone : ChatTemplate::kSmolLM2;
    options.max_length = max_length;
    options.bad_row = BadRow::kSkip;
    return parse_dataset(io::read_file(test_file(kFolder + name + ".jsonl"), 1 << 24), name + ".jsonl", tokenizer,
                         options);
}

struct Side {
    std::vector<int32_t> ids;
    int64_t first = 0, end = 0;  // positions of the scored targets; the paper's reach one past the ids, to a padding
    bool operator==(const Side&) const = default;
};

// What the packed rows of one pair score of one answer.
Side side_of(const PreferencePair& pair, bool chosen, const Objective& objective) {
    const PreferencePair* one[] = {&pair};
    PackOptions options;
    options.objective = objective;
    options.totals = batch_totals(one, objective);
    options.max_tokens = 1 << 20;
    options.betas = {0.1};
    const MicroBatch mb = pack(one, options).at(0);
    Side side;
    side.ids = pair.prompt;
    const std::vector<int32_t>& answer = chosen ? pair.chosen : pair.rejected;
    side.ids.insert(side.ids.end(), answer.begin(), answer.end());
    int64_t count = 0;
    for (const HeadRow& row : mb.heads) {
        if (row.part != (chosen ? Part::kChosen : Part::kRejected)) continue;
        CHECK(row.in_odds == 1);
        const int64_t target = mb.positions[static_cast<size_t>(row.row)] + 1;
        if (count++ == 0) side.first = target;
        side.end = target + 1;
        const bool inside = target < static_cast<int64_t>(side.ids.size());
        CHECK(row.target == (inside ? side.ids[static_cast<size_t>(target)] : objective.eos));
    }
    CHECK(count == side.end - side.first);
    return side;
}

Side expected_side(const json& row, size_t at) { return {row[at], row[at + 1], row[at + 2]}; }

}  // namespace

TEST_CASE("tokens, and which of them the odds count: every row, model and length of the originals") {
    const auto fields = real_tokenizer_fields();
    if (fields == nullptr) return;
    for (const std::string name : {"paper", "llamafactory"}) {
        CAPTURE(name);
        const json golden = golden_of(name);
        REQUIRE(golden["tokens"].size() == 4);
        for (const json& expected : golden["tokens"]) {
            const bool base = expected["model"] == "base";
            const int max_length = expected["max_length"];
            CAPTURE(base);
            CAPTURE(max_length);
            Objective objective;
            REQUIRE(parse_semantics(name, &objective.semantics));
            objective.eos = base ? 0 : 2, objective.max_length = max_length;
            const Dataset set = dataset(*fields, name, base, max_length);
            size_t next = 0;
            for (size_t i = 0; i < expected["rows"].size(); ++i) {
                const json& row = expected["rows"][i];
                const int64_t line = static_cast<int64_t>(i) + 1;
                CAPTURE(line);
                const bool there = next < set.pairs.size() && set.pairs[next].line == line;
                CHECK(there == !row.is_null());
                if (!there) continue;
                const PreferencePair& pair = set.pairs[next++];
                if (row.is_null()) continue;
                CHECK(side_of(pair, true, objective) == expected_side(row, 0));
                CHECK(side_of(pair, false, objective) == expected_side(row, 3));
            }
            CHECK(next == set.pairs.size());
            CHECK(next >= 17);
        }
    }
}

TEST_CASE("loss, its parts and every LoRA gradient of the originals, on a tiny model") {
    using namespace orpo::test;
    const auto fields = real_tokenizer_fields();
    if (fields == nullptr) return;
    for (const std::string name : {"paper", "llamafactory"}) {
        const json golden = golden_of(name);
        CHECK(golden["losses"].size() >= 2);
        for (const json& want : golden["losses"]) {
            CAPTURE(name);
            const int max_length = want["max_length"];
            CAPTURE(max_length);
            const ModelConfig config = tiny_config();
            Objective objective;
            REQUIRE(parse_semantics(name, &objective.semantics));
            objective.eos = 2, objective.max_length = max_length;
            if (want.value("scope", "full") == "response") objective.nll_scope = NllScope::kResponse;
            const Dataset set = dataset(*fields, name, false, max_length);
            std::vector<PreferencePair> pairs;
            for (const int64_t row : want["rows"])
                for (const PreferencePair& pair : set.pairs)
                    if (pair.line == row + 1) pairs.push_back(pair);
            REQUIRE(pairs.size() == 3);
            for (PreferencePair& pair : pairs)
                for (auto* ids : {&pair.prompt, &pair.chosen, &pair.rejected})
                    for (int32_t& id : *ids) id %= config.V;

            LoraConfig lora;
            lora.R = 3, lora.alpha = 6;
            TransformerSizes sizes{256, 256, 128};
            Bench<Reference<double>> bench(config, lora, sizes);
            bench.set(random_adapter(bench.layout, "adapter"));
            const double beta = want["beta"];
            const Outcome out = bench.train(pack(pointers(pairs), pack_options(pairs, objective, 256, {beta})));
            const Metrics m = summarise(out.records, beta);
            // The originals take the logits (the paper's code: the NLL) through fp32.
            const auto near = [](double got, double expected) {
                return std::abs(got - expected) <= 2e-6 * std::max(1.0, std::abs(expected));
            };
            if (name == "paper") {
                CHECK(near(m.nll_loss.value, want["nll"]));
                CHECK(near(m.logps_chosen.value, want["x"]));
                CHECK(near(m.logps_rejected.value, want["y"]));
                CHECK(near(m.log_odds_ratio.value, want["log_odds_ratio"]));
                CHECK(near(m.log_odds.value, want["log_odds"]));
                CHECK(std::abs(m.loss - want["loss_bf16"].get<double>()) <= m.loss / 256);  // rounded to bf16 there
            } else {
                const json& metrics = want["metrics"];
                CHECK(near(m.loss, want["loss"]));
                CHECK(near(m.nll_loss.value, metrics["sft_loss"]));
                CHECK(near(m.or_loss.value, metrics["odds_ratio_loss"]));
                CHECK(near(m.logps_chosen.value, metrics["logps/chosen"]));
                CHECK(near(m.logps_rejected.value, metrics["logps/rejected"]));
                CHECK(near(m.rewards_chosen.value, metrics["rewards/chosen"]));
                CHECK(near(m.rewards_rejected.value, metrics["rewards/rejected"]));
                CHECK(near(m.rewards_margins.value, metrics["rewards/margins"]));
                CHECK(near(m.rewards_accuracies.value, metrics["rewards/accuracies"]));
            }
            const std::vector<float> gradients(out.gradients.begin(), out.gradients.end());
            const PeftAdapter named = to_peft(bench.layout, lora, gradients);
            CHECK(named.tensors.size() == want["gradients"].size());
            for (const auto& [tensor, expected] : want["gradients"].items()) {
                const std::string key = tensor;
                CAPTURE(key);
                const auto found = named.tensors.find(key);
                REQUIRE(found != named.tensors.end());
                const std::vector<float>& got = found->second.values;
                double squares = 0;
                for (const float g : got) squares += double(g) * g;
                const double norm = expected["norm"];
                const auto close = [&](double a, double b) { return std::abs(a - b) <= 1e-5 * norm; };
                CHECK(close(std::sqrt(squares), norm));
                for (int i = 0; i < 3; ++i) CHECK(close(got[i], expected["first"][i]));
                CHECK(close(got.back(), expected["last"]));
            }
        }
    }
}
