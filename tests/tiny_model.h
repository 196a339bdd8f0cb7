// A small random model, random pairs, and a bench that runs any backend on them: what the engine's tests share.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/philox.h"
#include "data/pack.h"
#include "kernels/reference/reference.h"
#include "model/base_weights.h"
#include "model/lora.h"
#include "model/orpo_loss.h"
#include "model/transformer.h"

namespace orpo::test {

// In [-1, 1), 24 bits, from a name and an index: the same in tools/make_engine_golden.py.
inline double hashed(std::string_view name, int64_t i) {
    const auto words = philox(fnv1a(name), {static_cast<uint32_t>(i / 4), 0, 0, 0});
    return 2 * uniform(words[i % 4]) - 1;
}

// Three query heads over one key/value head, odd vocabulary.
inline ModelConfig tiny_config() {
    ModelConfig c;
    c.V = 97, c.C = 36, c.L = 2, c.H = 3, c.KV = 1, c.HS = 16, c.I = 40;
    c.rope_theta = 10000, c.rms_eps = 1e-5, c.max_positions = 128;
    c.name = "tiny";
    return c;
}

// Norms about 1; linears uniform with variance 1 / in; embedding variance 1/3.
class RandomWeights final : public HostWeights {
  public:
    explicit RandomWeights(const ModelConfig& config) : HostWeights(config) {}
    std::string quantisation() const override { return "F32"; }
    uint64_t stored_bytes() const override { return 0; }
    std::string place() const override { return "a random model"; }

  protected:
    void load_rows(const std::string& name, int64_t first, int64_t count, float* out) const override {
        const Shape2 s = shape(name);
        const bool norm = name.find("norm") != std::string::npos, embedding = name.find("embed") != std::string::npos;
        const double scale = norm ? 0.2 : embedding ? 1.0 : std::sqrt(3.0 / static_cast<double>(s.cols));
        for (int64_t i = 0; i < count * s.cols; ++i)
            out[i] = static_cast<float>((norm ? 1.0 : 0.0) + scale * hashed(name, first * s.cols + i));
    }
    void hash_tensor(const std::string&, Sha256&) const override {}
};

// A and B both non-zero: A as PEFT scales it, B of a size that matters.
inline std::vector<float> random_adapter(const LoraLayout& layout, const std::string& salt, double b_scale = 0.3) {
    std::vector<float> slot(layout.slot_size());
    for (int l = 0; l < layout.layers(); ++l)
        for (int g = 0; g < kGroups; ++g) {
            const LoraGroup& group = layout.group(l, g);
            for (const LoraTarget& t : group.targets) {
                const std::string at = salt + "." + std::to_string(l) + "." + std::string(linear_name(t.linear));
                const int64_t a = group.a + int64_t{t.rank_offset} * group.in;
                for (int64_t i = 0; i < int64_t{layout.R()} * group.in; ++i)
                    slot[a + i] = static_cast<float>(hashed(at + ".A", i) / std::sqrt(group.in));
                for (int64_t i = 0; i < int64_t{t.out} * layout.R(); ++i)
                    slot[t.b + i] = static_cast<float>(b_scale * hashed(at + ".B", i));
            }
        }
    return slot;
}

inline std::vector<int32_t> random_ids(const std::string& salt, int n, int V) {
    std::vector<int32_t> ids(n);
    for (int i = 0; i < n; ++i) ids[i] = static_cast<int32_t>((hashed(salt, i) + 1) / 2 * V);
    return ids;
}

// Pairs of different lengths; every third has a tail at the boundary.
inline std::vector<PreferencePair> random_pairs(int count, int V, const std::string& salt = "pair") {
    std::vector<PreferencePair> pairs(count);
    for (int i = 0; i < count; ++i) {
        const std::string at = salt + std::to_string(i);
        PreferencePair& p = pairs[i];
        p.line = i + 1;
        p.prompt = random_ids(at + "p", 1 + (i * 5 + 3) % 7, V);
        p.chosen = random_ids(at + "c", 2 + (i * 3) % 5, V);
        p.rejected = random_ids(at + "r", 2 + (i * 4 + 1) % 6, V);
        if (i % 3 == 1) p.chosen_tail = 1, p.rejected_tail = i % 2;
    }
    return pairs;
}

inline std::vector<const PreferencePair*> pointers(const std::vector<PreferencePair>& pairs) {
    std::vector<const PreferencePair*> list;
    for (const PreferencePair& pair : pairs) list.push_back(&pair);
    return list;
}

inline PackOptions pack_options(const std::vector<PreferencePair>& pairs, const Objective& objective, int max_tokens,
                                std::vector<double> betas = {0.4}) {
    PackOptions options;
    options.objective = objective;
    options.totals = batch_totals(pointers(pairs), objective);
    options.max_tokens = max_tokens;
    options.betas = std::move(betas);
    options.dropout_key = stream_key(7, Stream::kDropout);
    options.step = 3;
    return options;
}

// Largest |a - b| relative to the norm of b; NaN anywhere gives infinity.
template <class A, class B>
double relative_error(const A& a, const B& b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        difference += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
        norm += double(b[i]) * double(b[i]);
    }
    const double error = std::sqrt(difference / norm);
    return a.size() == b.size() && std::isfinite(error) ? error : INFINITY;
}
template <class A, class B>
double cosine(const A& a, const B& b) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < b.size(); ++i)
        ab += double(a[i]) * b[i], aa += double(a[i]) * a[i], bb += double(b[i]) * b[i];
    return ab / std::sqrt(aa * bb);
}

template <class K>
std::unique_ptr<K> make_backend() {
    return std::make_unique<K>();
}

struct Outcome {
    double loss = 0;
    std::vector<double> gradients;  // (slots, slot_size)
    std::vector<PairRecord> records;
};

// One backend with the tiny model (or another) on it.
template <class K>
class Bench {
  public:
    using T = typename K::T;
    using F = typename K::F;

    Bench(const ModelConfig& config, const LoraConfig& lora, const TransformerSizes& sizes,
          std::vector<LoraSlot> slot_list = {}, const HostWeights* from = nullptr)
        : k(make_backend<K>()), weights(config), layout(config, lora), slots(std::move(slot_list)) {
        if (slots.empty()) slots = {{lora.scale(), lora.dropout}};
        base = load_base(*k, config, from ? from : &weights, sizes.keep != Keep::kNothing);
        n = static_cast<int64_t>(slots.size()) * layout.slot_size();
        params = k->template allocate<F>(Category::kAdapters, "parameters", n);
        compute = k->template allocate<T>(Category::kAdapters, "compute", n);
        grads = k->template allocate<F>(Category::kGradients, "gradients", n);
        transformer = std::make_unique<Transformer<K>>(*k, config, base, layout, slots, sizes);
        batch = std::make_unique<typename K::Batch>(k->make_batch(sizes.tokens, sizes.tokens, sizes.heads));
    }

    template <class Numbers>
    void set(const Numbers& adapters) {
        const std::vector<F> values(adapters.begin(), adapters.end());
        ORPO_CHECK(static_cast<int64_t>(values.size()) == n);
        k->write(n, values.data(), params);
        k->cast(n, params, compute);
    }
    std::vector<double> logp(int64_t heads) {
        std::vector<double> values(heads);
        k->read(heads, transformer->logp(), values.data());
        return values;
    }

    Outcome train(const std::vector<MicroBatch>& bins) {
        k->zero(n, grads);
        Outcome out = run(bins, true);
        std::vector<F> values(n);
        k->read(n, static_cast<const F*>(grads), values.data());
        out.gradients.assign(values.begin(), values.end());
        return out;
    }
    Outcome evaluate(const std::vector<MicroBatch>& bins) { return run(bins, false); }

    std::unique_ptr<K> k;
    RandomWeights weights;
    LoraLayout layout;
    std::vector<LoraSlot> slots;
    BaseWeights<K> base;
    int64_t n = 0;
    F *params = nullptr, *grads = nullptr;
    T* compute = nullptr;
    std::unique_ptr<Transformer<K>> transformer;
    std::unique_ptr<typename K::Batch> batch;

  private:
    Outcome run(const std::vector<MicroBatch>& bins, bool train) {
        Outcome out;
        for (const MicroBatch& mb : bins) {
            k->upload(mb, *batch);
            if (train)
                transformer->train(*batch, compute, grads);
            else
                transformer->evaluate(*batch, compute);
            const std::vector<double> values = logp(static_cast<int64_t>(mb.heads.size()));
            for (const PairRecord& r : pair_records(mb, values)) {
                out.loss += r.loss.nll + r.odds_weight * r.loss.odds_loss;
                out.records.push_back(r);
            }
        }
        return out;
    }
};

}  // namespace orpo::test
