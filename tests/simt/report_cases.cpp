#include "tests/simt/report_cases.h"

#include <sys/mman.h>

#include <memory>

#include "base/error.h"
#include "kernels/batch.h"
#include "kernels/cuda/low_rank_cut.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/tiles.h"

namespace orpo::cuda {

namespace {

// Device memory of a case: zeros that cost nothing until they are touched, and registered with the counter.
class Memory {
  public:
    explicit Memory(simt::Counter& counter) : counter_(counter) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
        for (const auto& [at, bytes] : blocks_) munmap(at, bytes);
    }
    template <class T>
    T* take(int64_t n) {
        const size_t bytes = static_cast<size_t>(n) * sizeof(T);
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ORPO_CHECK(at != MAP_FAILED);
        blocks_.push_back({at, bytes});
        counter_.global(at, bytes);
        return static_cast<T*>(at);
    }
    template <class T>
    T* take(const std::vector<T>& values) {
        T* at = take<T>(static_cast<int64_t>(values.size()));
        std::copy(values.begin(), values.end(), at);
        return at;
    }

  private:
    simt::Counter& counter_;
    std::vector<std::pair<void*, size_t>> blocks_;
};

MicroBatch training_batch(int V) {
    MicroBatch mb;
    for (int i = 0; i < kPairs; ++i) {
        PairSpan p;
        p.begin = i * 3 * kPart, p.chosen = p.begin + kPart, p.rejected = p.chosen + kPart, p.end = p.rejected + kPart;
        p.pair_in_batch = i;
        p.first_head = static_cast<int32_t>(mb.heads.size()), p.heads = 3 * kPart - 1;
        p.odds_weight = 0.1;
        for (int n = p.begin; n < p.end; ++n) {
            mb.ids.push_back(static_cast<int32_t>((int64_t{n} * 7919 + 13) % V));
            mb.positions.push_back(n < p.rejected ? n - p.begin : kPart + n - p.rejected);
        }
        const auto score = [&](int row, int target, Part part) {
            HeadRow head;
            head.row = row, head.target = mb.ids[static_cast<size_t>(target)], head.pair = i, head.part = part;
            head.in_odds = part != Part::kPrompt;
            head.nll_weight = 0.01;
            mb.heads.push_back(head);
        };
        for (int n = p.begin; n + 1 < p.rejected; ++n)
            score(n, n + 1, n + 1 < p.chosen ? Part::kPrompt : Part::kChosen);
        for (int n = p.rejected; n < p.end; ++n) score(n == p.rejected ? p.chosen - 1 : n - 1, n, Part::kRejected);
        mb.pairs.push_back(p);
    }
    return mb;
}

// Keys that the rows of one pair see, summed over rows.
constexpr double visible() {
    const double P = kPart;
    return 2 * P * (2 * P + 1) / 2 + P * P + P * (P + 1) / 2;
}

// Eight blocks, spread over the grid: enough where all blocks do the same.
std::function<bool(uint3)> sample() {
    return [](uint3 b) {
        const int64_t all = int64_t{gridDim.x} * gridDim.y * gridDim.z;
        const int64_t i = b.x + int64_t{gridDim.x} * (b.y + int64_t{gridDim.y} * b.z), apart = (all + 7) / 8;
        return i % apart == apart / 2 || all <= 8;
    };
}
// A third of the tiles, of the first head: pairs are alike, and so are heads. Tiles are sorted by how much they see,
// and as many of each length are a multiple of kPairs.
std::function<bool(uint3)> one_pair_and_head() {
    return [](uint3 b) { return b.x == 0 && b.y % kPairs == 0; };
}
// Two ranges of rows over all columns, whose chunks differ in width; of a launch that is not cut so, all blocks.
std::function<bool(uint3)> two_ranges() {
    return [](uint3 b) { return gridDim.y == 1 || b.y == 0 || b.y == gridDim.y / 2; };
}

}  // namespace

const std::vector<ModelShape>& model_shapes() {
    static const std::vector<ModelShape> shapes = {{"135M", 30, 576, 1536, 9, 3, 49152, 4884480},
                                                   {"1.7B", 24, 2048, 8192, 32, 32, 49152, 18087936}};
    return shapes;
}

std::vector<ReportCase> report_cases(const ModelShape& s) {
    std::vector<ReportCase> cases;
    const double N = kTokens, C = s.C, I = s.I, W = s.width(), O = s.H * 64, L = s.L,
                 n = static_cast<double>(s.adapters);
    const double chunks = double{kPairs * (3 * kPart - 1)} / kHeadRows, E = 2;  // bytes of a bf16
    const Heads heads{s.H, s.KV};
    const auto add = [&](std::string operation, Phase phase, std::vector<Need> needs, auto run,
                         std::function<bool(uint3)> only = sample()) {
        cases.push_back({std::move(operation), phase, std::move(needs), [=](simt::Counter& counter) {
                             counter.only(only);
                             Memory m(counter);
                             run(m);
                         }});
    };
    const auto host_batch = [V = s.V] {
        const MicroBatch mb = training_batch(V);
        HostBatch b(kTokens, kPairs, static_cast<int>(mb.heads.size()));
        b.fill(mb);
        return b;
    };

    // --- a training micro-step
    add("embed", Phase::kTrain, {{N * C * E + N * 4, N * C * E, 0, 1}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        embed<bf16>(nullptr, kTokens, s.C, m.take(b.ids), m.take<bf16>(int64_t{s.V} * s.C),
                    m.take<bf16>(int64_t{kTokens} * s.C));
    });
    add("rmsnorm", Phase::kTrain, {{N * C * E + C * 4, N * C * E + N * 4, 4 * N * C, 1}}, [=](Memory& m) {
        rmsnorm<bf16>(nullptr, kTokens, s.C, 1e-5, m.take<bf16>(int64_t{kTokens} * s.C), m.take<float>(s.C),
                      m.take<bf16>(int64_t{kTokens} * s.C), s.C, m.take<float>(kTokens));
    });
    add("add_rmsnorm", Phase::kTrain, {{3 * N * C * E + C * 4, 3 * N * C * E + N * 4, 7 * N * C, 2 * L}},
        [=](Memory& m) {
            const auto rows = [&] { return m.take<bf16>(int64_t{kTokens} * s.C); };
            bf16* low = rows();
            add_rmsnorm<bf16>(nullptr, kTokens, s.C, 1e-5, rows(), rows(), m.take<float>(s.C), rows(), rows(), s.C,
                              m.take<float>(kTokens), low, low);
        });
    add("normalize", Phase::kTrain, {{N * C * E + C * 4 + N * 4, N * C * E, 2 * N * C, 2 * L}}, [=](Memory& m) {
        normalize<bf16>(nullptr, kTokens, s.C, m.take<bf16>(int64_t{kTokens} * s.C), m.take<float>(s.C),
                        m.take<float>(kTokens), m.take<bf16>(int64_t{kTokens} * s.C), s.C);
    });
    add("rmsnorm_backward", Phase::kTrain, {{3 * N * C * E + C * 4 + N * 4, N * C * E, 8 * N * C, 2 * L}},
        [=](Memory& m) {
            const auto rows = [&] { return m.take<bf16>(int64_t{kTokens} * s.C); };
            rmsnorm_backward<bf16>(nullptr, kTokens, s.C, rows(), rows(), m.take<float>(s.C), m.take<float>(kTokens),
                                   rows(), s.C, true);
        });
    const double turned = N * (s.H + s.KV) * 64;
    add("rope", Phase::kTrain, {{turned * E + N * 4 + 2 * kPart * 64 * 4, turned * E, 3 * turned, 2 * L}},
        [=](Memory& m) {
            const HostBatch b = host_batch();
            rope<bf16>(nullptr, kTokens, heads, m.take(b.positions), m.take<float>(2 * kPart * 64), 1,
                       m.take<bf16>(int64_t{kTokens} * s.width()));
        });
    add("swiglu", Phase::kTrain, {{2 * N * I * E, N * I * E, 5 * N * I, 2 * L}}, [=](Memory& m) {
        swiglu<bf16>(nullptr, kTokens, s.I, m.take<bf16>(int64_t{kTokens} * 2 * s.I),
                     m.take<bf16>(int64_t{kTokens} * s.I));
    });
    add("swiglu_backward", Phase::kTrain, {{3 * N * I * E, 3 * N * I * E, 12 * N * I, L}}, [=](Memory& m) {
        bf16* dh = m.take<bf16>(int64_t{kTokens} * s.I);
        swiglu_backward<bf16>(nullptr, kTokens, s.I, dh, m.take<bf16>(int64_t{kTokens} * 2 * s.I), dh);
    });
    // x A^T of q|k|v and of gate|up behind x: two linears of four.
    const double thin = N * 3 * 16;
    add("copy_rows", Phase::kTrain, {{thin * E, thin * E, 0, 2 * L}}, [=](Memory& m) {
        copy_rows<bf16>(nullptr, kTokens, 48, m.take<bf16>(int64_t{kTokens} * 48), 48,
                        m.take<bf16>(int64_t{kTokens} * (s.C + 48)) + s.C, s.C + 48);
    });
    add("dropout", Phase::kTrain, {{N * C * E + N * 8, N * C * E, N * C, 0}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        dropout<bf16>(nullptr, 0, kTokens, s.C, 0.1, 1, m.take<BatchScalars>(1), m.take(b.mask_pair),
                      m.take(b.positions), m.take<bf16>(int64_t{kTokens} * s.C), m.take<bf16>(int64_t{kTokens} * s.C));
    });
    add("dropout_add", Phase::kTrain, {{2 * N * C * E + N * 8, N * C * E, 2 * N * C, 0}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        dropout_add<bf16>(nullptr, 0, kTokens, s.C, 0.1, 1, m.take<BatchScalars>(1), m.take(b.mask_pair),
                          m.take(b.positions), m.take<bf16>(int64_t{kTokens} * s.C),
                          m.take<bf16>(int64_t{kTokens} * s.C));
    });
    const double seen = visible() * kPairs * s.H * 64;
    add(
        "attention", Phase::kTrain, {{N * W * E, N * O * E + N * s.H * 4, 4 * seen, L}},
        [=](Memory& m) {
            std::vector<QueryTile> tiles;
            query_tiles(training_batch(s.V).pairs, tiles);
            attention<bf16>(nullptr, static_cast<int>(tiles.size()), heads, m.take(tiles),
                            m.take<bf16>(int64_t{kTokens} * s.width()), m.take<bf16>(int64_t{kTokens} * s.H * 64),
                            m.take<float>(int64_t{kTokens} * s.H));
        },
        one_pair_and_head());
    add(
        "attention_backward", Phase::kTrain,
        {{2 * N * O * E + N * s.H * 4, N * s.H * 8, 2 * N * O, L},
         {N * W * E + N * O * E + 2 * N * s.H * 4, N * O * E, 6 * seen, L},
         {N * W * E + N * O * E + 2 * N * s.H * 4, N * (W - O) * E, 8 * seen, L}},
        [=](Memory& m) {
            std::vector<QueryTile> queries;
            std::vector<KeyTile> keys;
            query_tiles(training_batch(s.V).pairs, queries);
            key_tiles(training_batch(s.V).pairs, keys);
            const auto rows = [&](int width) { return m.take<bf16>(int64_t{kTokens} * width); };
            const auto numbers = [&](int n) { return m.take<float>(int64_t{kTokens} * s.H * n); };
            attention_backward<bf16>(nullptr, kTokens, static_cast<int>(queries.size()), static_cast<int>(keys.size()),
                                     heads, m.take(queries), m.take(keys), rows(s.width()), rows(s.H * 64), numbers(1),
                                     rows(s.H * 64), numbers(2), rows(s.width()));
        },
        one_pair_and_head());
    const auto low_rank = [&](std::string name, std::vector<int> widths, double times) {
        constexpr int kRank = 16;
        const int targets = static_cast<int>(widths.size()), width = targets * kRank;
        std::vector<LowRankTerm> sizes;
        int columns = 0;
        for (const int out : widths)
            sizes.push_back({columns, out, kRank, nullptr, width, nullptr, nullptr, nullptr, width}), columns += out;
        const LowRankCut cut(kTokens, targets, sizes.data());
        double dS = 0, dS_parts = 0;  // values that are rounded at once, and those that are added first
        for (const int out : widths) {
            const int chunks = LowRankCut::chunks_of(out);
            (chunks > 1 ? dS_parts : dS) += chunks * N * kRank;
        }
        const double B = columns * kRank, dB_parts = cut.ranges * B, added = dS_parts > 0 ? N * width - dS : 0;
        add(
            "low_rank_backward " + name, Phase::kTrain,
            {{N * columns * E + N * width * E + B * E, dB_parts * 4 + dS_parts * 4 + dS * E, 4 * N * B, times},
             {dB_parts * 4 + dS_parts * 4 + B * 4, B * 4 + added * E, dB_parts + dS_parts, times}},
            [=](Memory& m) {
                auto *S = m.take<bf16>(int64_t{kTokens} * width), *dS = m.take<bf16>(int64_t{kTokens} * width);
                std::vector<LowRankTerm> terms = sizes;
                for (int i = 0; i < targets; ++i) {
                    LowRankTerm& t = terms[static_cast<size_t>(i)];
                    t.S = S + i * kRank, t.dS = dS + i * kRank;
                    t.B = m.take<bf16>(int64_t{t.columns} * kRank), t.dB = m.take<float>(int64_t{t.columns} * kRank);
                }
                low_rank_backward(nullptr, kTokens, 2, m.take<bf16>(int64_t{kTokens} * columns), columns, targets,
                                  terms.data(), m.take<float>(low_rank_scratch(kTokens, targets, terms.data())));
            },
            two_ranges());
    };
    low_rank("qkv", {s.H * 64, s.KV * 64, s.KV * 64}, L);
    low_rank("out, down", {s.C}, 2 * L);
    low_rank("gate, up", {s.I, s.I}, L);
    const double R = kHeadRows, V = s.V;
    add("gather", Phase::kTrain, {{R * C * E + R * 4, R * C * E, 0, chunks}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        gather<bf16>(nullptr, kHeadRows, s.C, m.take(b.heads), m.take<bf16>(int64_t{kTokens} * s.C),
                     m.take<bf16>(int64_t{kHeadRows} * s.C));
    });
    add("softmax_xent", Phase::kTrain, {{R * V * E + R * 4, R * V * E + R * 8, 6 * R * V, chunks}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        softmax_xent<bf16>(nullptr, kHeadRows, s.V, m.take(b.heads), m.take<bf16>(int64_t{kHeadRows} * s.V),
                           m.take<double>(kHeadRows), true);
    });
    const double rows = kPairs * (3 * kPart - 1);
    const double odds_rows = kPairs * 2 * kPart;
    add("orpo", Phase::kTrain, {{rows * sizeof(HeadRow) + odds_rows * 8 + kPairs * sizeof(PairSpan), rows * 8, 0, 1}},
        [=](Memory& m) {
            const HostBatch b = host_batch();
            std::vector<double> logp(b.heads.size(), -1.0);
            orpo(nullptr, kPairs, m.take(b.pairs), m.take(b.heads), m.take(logp), m.take<double>(b.heads_n));
        });
    add("scatter_scaled", Phase::kTrain, {{rows * (C * E + 8) + N * 8, N * C * E, 2 * rows * C, 1}}, [=](Memory& m) {
        const HostBatch b = host_batch();
        scatter_scaled<bf16>(nullptr, kTokens, s.C, m.take(b.head1), m.take(b.head2),
                             m.take<bf16>(int64_t{b.heads_n} * s.C), m.take<double>(b.heads_n),
                             m.take<bf16>(int64_t{kTokens} * s.C));
    });

    // --- an optimizer step
    add("squared_norms", Phase::kStep, {{n * 4, kNormBlocks * 8, 2 * n, 1}, {kNormBlocks * 8, 8, kNormBlocks, 1}},
        [=](Memory& m) {
            squared_norms(nullptr, 1, s.adapters, m.take<float>(s.adapters), m.take<double>(kNormBlocks),
                          m.take<double>(1));
        });
    add("adamw", Phase::kStep, {{4 * n * 4, 3 * n * 4, 12 * n, 1}}, [=](Memory& m) {
        AdamwStep step{1e-4f, 1, 0.9f, 0.999f, 1, 1e-8f, 1, 1};
        const auto arena = [&] { return m.take<float>(s.adapters); };
        adamw(nullptr, 1, s.adapters, m.take(std::vector<AdamwStep>{step}), arena(), arena(), arena(), arena());
    });
    add("cast", Phase::kStep, {{n * 4, n * E, 0, 1}},
        [=](Memory& m) { cast<bf16>(nullptr, s.adapters, m.take<float>(s.adapters), m.take<bf16>(s.adapters)); });

    // --- a decoded token, one sequence
    const auto product = [&](std::string name, int out, int in, double times) {
        const double o = out, k = in;
        add("gemv " + name, Phase::kDecode, {{o * k * E + k * E, o * E, 2 * o * k, times}}, [=](Memory& m) {
            gemv<bf16, bf16>(nullptr, 1, out, in, m.take<bf16>(in), m.take<bf16>(int64_t{out} * in), m.take<bf16>(out));
        });
    };
    product("qkv", s.width(), s.C, L), product("out", s.C, s.H * 64, L);
    product("gate, up", 2 * s.I, s.C, L), product("down", s.C, s.I, L);
    add("gemv head", Phase::kDecode, {{V * C * E + C * E, V * 4, 2 * V * C, 1}}, [=](Memory& m) {
        gemv<bf16, float>(nullptr, 1, s.V, s.C, m.take<bf16>(s.C), m.take<bf16>(int64_t{s.V} * s.C),
                          m.take<float>(s.V));
    });
    add("cache_append", Phase::kDecode, {{s.KV * 128 * E + 8, s.KV * 128 * E, 0, L}}, [=](Memory& m) {
        cache_append<bf16>(nullptr, 1, heads, kContext, m.take<int32_t>(1), m.take(std::vector<int32_t>{kContext - 1}),
                           m.take<bf16>(s.width()), m.take<bf16>(int64_t{kContext} * 2 * s.KV * 64));
    });
    add("decode_attention", Phase::kDecode,
        {{kContext * 2.0 * s.KV * 64 * E + O * E + 8, O * E, 4.0 * kContext * O, L}}, [=](Memory& m) {
            decode_attention<bf16>(nullptr, 1, heads, kContext, m.take<int32_t>(1),
                                   m.take(std::vector<int32_t>{kContext - 1}), m.take<float>(kContext * 64),
                                   m.take<bf16>(s.width()), m.take<bf16>(int64_t{kContext} * 2 * s.KV * 64),
                                   m.take<float>(int64_t{s.H} * kDecodeStretches * kDecodePart), m.take<int32_t>(s.H),
                                   m.take<bf16>(s.H * 64));
        });
    return cases;
}

std::vector<Counted> count_kernels(const ModelShape& shape) {
    std::vector<Counted> all;
    for (const ReportCase& c : report_cases(shape)) {
        simt::Counter counter;
        c.run(counter);
        const std::vector<simt::LaunchCounts> launches = counter.launches();
        ORPO_CHECK(launches.size() == c.needs.size());
        for (size_t i = 0; i < launches.size(); ++i) all.push_back({c.operation, c.phase, c.needs[i], launches[i]});
    }
    return all;
}

}  // namespace orpo::cuda
