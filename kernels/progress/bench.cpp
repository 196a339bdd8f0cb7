#include "kernels/progress/bench.h"

#include <bit>
#include <cmath>

#include "base/philox.h"
#include "kernels/cuda/tiles.h"
#include "kernels/progress/progress.h"
#include "kernels/reference/reference.h"

namespace orpo::cuda::progress {

namespace {

using Timer = std::function<double(const std::function<void()>&)>;
constexpr double kTolerance = 2e-5;  // NMSE of what is stored in bf16

bf16 rounded(double x) {
    const auto u = std::bit_cast<uint32_t>(static_cast<float>(x));
    return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
double widened(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
double widened(float x) { return x; }
double widened(double x) { return x; }

// Nearly normal numbers, as bf16 holds them.
std::vector<double> random_values(size_t n, uint64_t seed, double scale = 1) {
    std::vector<double> values(n);
    for (size_t i = 0; i < n; ++i) {
        const auto w = philox(seed, {static_cast<uint32_t>(i), 0, 0, 0});
        values[i] = widened(rounded(scale * 1.7 * (uniform(w[0]) + uniform(w[1]) + uniform(w[2]) + uniform(w[3]) - 2)));
    }
    return values;
}
std::vector<bf16> stored(const std::vector<double>& values) {
    std::vector<bf16> out;
    for (const double value : values) out.push_back(rounded(value));
    return out;
}

// An array on the device.
template <class U>
class Array {
  public:
    Array(Device& device, size_t n) : device_(device), n_(n) {
        at_ = static_cast<U*>(device.array(static_cast<int64_t>(std::max<size_t>(n, 1) * sizeof(U))));
    }
    Array(Device& device, const std::vector<U>& values) : Array(device, values.size()) { put(values); }
    void put(const std::vector<U>& values) {
        device_.copy_in(at_, values.data(), static_cast<int64_t>(values.size() * sizeof(U)));
    }
    U* data() { return at_; }
    // NMSE of what is there; NaN or infinity anywhere gives infinity.
    double error(const std::vector<double>& want) {
        std::vector<U> got(n_);
        device_.copy_out(at_, got.data(), static_cast<int64_t>(n_ * sizeof(U)));
        double error = 0, norm = 0;
        for (size_t i = 0; i < n_; ++i) {
            const double difference = widened(got[i]) - want[i];
            if (!std::isfinite(difference)) return INFINITY;
            error += difference * difference, norm += want[i] * want[i];
        }
        return error / norm;
    }

  private:
    Device& device_;
    size_t n_;
    U* at_;
};

MicroBatch ragged_batch() {
    MicroBatch mb;
    for (const auto& [prompt, chosen, rejected] : {std::array{70, 10, 3}, {5, 3, 40}, {1, 1, 1}}) {
        PairSpan p;
        p.begin = static_cast<int32_t>(mb.ids.size());
        p.chosen = p.begin + prompt, p.rejected = p.chosen + chosen, p.end = p.rejected + rejected;
        mb.ids.resize(static_cast<size_t>(p.end), 1), mb.positions.resize(static_cast<size_t>(p.end), 0);
        mb.pairs.push_back(p);
    }
    return mb;
}

// The sum over the rows of how many rows each one sees.
double context(const MicroBatch& mb) {
    double sum = 0;
    for (const PairSpan& p : mb.pairs) {
        const double branch = p.rejected - p.begin, own = p.end - p.rejected, prompt = p.chosen - p.begin;
        sum += branch * (branch + 1) / 2 + own * prompt + own * (own + 1) / 2;
    }
    return sum;
}

// Runs every version on the arrays of one batch; after(index) sees what it left.
class AttentionRun {
  public:
    AttentionRun(Device& device, const MicroBatch& mb, Heads heads)
        : device_(device),
          heads_(heads),
          N_(mb.ids.size()),
          values_(random_values(N_ * width(), 1)),
          tiles_(device, made(mb)),
          qkv_(device, stored(values_)),
          o_(device, N_ * heads.H * 64),
          lse_(device, N_ * heads.H),
          scores_(device, N_ * N_ * heads.H) {}
    void launch(const Version<Attention>& version) {
        version.launch(device_.stream(), static_cast<int>(N_), static_cast<int>(tile_count_), heads_, tiles_.data(),
                       qkv_.data(), scores_.data(), o_.data(), lse_.data());
    }
    const std::vector<double>& qkv() const { return values_; }
    double error(const std::vector<double>& o, const std::vector<double>& lse) {
        return std::max(o_.error(o), lse_.error(lse));
    }

  private:
    size_t width() const { return static_cast<size_t>(heads_.H + 2 * heads_.KV) * 64; }
    std::vector<QueryTile> made(const MicroBatch& mb) {
        std::vector<QueryTile> tiles;
        query_tiles(mb.pairs, tiles);
        tile_count_ = tiles.size();
        return tiles;
    }

    Device& device_;
    Heads heads_;
    size_t N_, tile_count_ = 0;
    std::vector<double> values_;
    Array<QueryTile> tiles_;
    Array<bf16> qkv_, o_;
    Array<float> lse_, scores_;
};

void attention_rows(Device& device, const Shapes& s, const Timer& timer, std::vector<BenchRow>& rows) {
    const MicroBatch small = ragged_batch();
    AttentionRun check(device, small, s.heads), whole(device, s.batch, s.heads);
    const int H = s.heads.H, KV = s.heads.KV;
    HostBatch batch(static_cast<int>(small.ids.size()), static_cast<int>(small.pairs.size()), 1);
    batch.fill(small);
    std::vector<double> o(small.ids.size() * H * 64), lse(small.ids.size() * H);
    Reference<double>().attention(batch, {H, KV, 64}, check.qkv().data(), o.data(), lse.data());
    const double N = static_cast<double>(s.batch.ids.size());
    for (const auto& version : attention_versions()) {
        check.launch(version);
        BenchRow row{
            "attention",         version.name, 0, 4.0 * 64 * H * context(s.batch), 2 * N * (2 * H + 2 * KV) * 64,
            check.error(o, lse), kTolerance};
        if (row.sound()) row.seconds = timer([&] { whole.launch(version); });
        rows.push_back(row);
    }
}

class NormRun {
  public:
    NormRun(Device& device, int N, int C)
        : device_(device),
          N_(N),
          C_(C),
          x_values_(random_values(size(), 1)),
          d_values_(random_values(size(), 2)),
          w_values_(random_values(static_cast<size_t>(C), 3)),
          x_(device, stored(x_values_)),
          d_(device, stored(d_values_)),
          x2_(device, size()),
          y_(device, size()),
          w_(device, std::vector<float>(w_values_.begin(), w_values_.end())),
          r_(device, static_cast<size_t>(N)) {}
    void launch(const Version<AddRmsnorm>& version) {
        version.launch(device_.stream(), N_, C_, 1e-5f, x_.data(), d_.data(), w_.data(), x2_.data(), y_.data(),
                       r_.data());
    }
    double error() {
        std::vector<double> sum(size()), y(size()), r(static_cast<size_t>(N_));
        for (size_t i = 0; i < sum.size(); ++i) sum[i] = widened(rounded(x_values_[i] + d_values_[i]));
        Reference<double>().rmsnorm(N_, C_, 1e-5, sum.data(), w_values_.data(), y.data(), C_, r.data());
        return std::max({x2_.error(sum), y_.error(y), r_.error(r)});
    }

  private:
    size_t size() const { return static_cast<size_t>(N_) * static_cast<size_t>(C_); }

    Device& device_;
    int N_, C_;
    std::vector<double> x_values_, d_values_, w_values_;
    Array<bf16> x_, d_, x2_, y_;
    Array<float> w_, r_;
};

void norm_rows(Device& device, const Shapes& s, const Timer& timer, std::vector<BenchRow>& rows) {
    const int N = static_cast<int>(s.batch.ids.size());
    NormRun check(device, 7, s.C), whole(device, N, s.C);
    for (const auto& version : add_rmsnorm_versions()) {
        check.launch(version);
        const double n = double(N) * s.C;
        BenchRow row{"add_rmsnorm", version.name, 0, 5 * n, 2 * 4 * n, check.error(), kTolerance};
        if (row.sound()) row.seconds = timer([&] { whole.launch(version); });
        rows.push_back(row);
    }
}

class XentRun {
  public:
    XentRun(Device& device, int n, int V)
        : device_(device),
          n_(n),
          V_(V),
          values_(random_values(static_cast<size_t>(n) * V, 4, 3)),
          rows_values_(made(n, V)),
          rows_(device, rows_values_),
          z_(device, values_.size()),
          logp_(device, static_cast<size_t>(n)) {
        reset();
    }
    void reset() { z_.put(stored(values_)); }  // the kernels work in place
    void launch(const Version<SoftmaxXent>& version) {
        version.launch(device_.stream(), n_, V_, rows_.data(), z_.data(), logp_.data());
    }
    double error() {
        std::vector<double> logp(static_cast<size_t>(n_)), gradient(values_.size());
        for (int i = 0; i < n_; ++i) {
            const double* z = values_.data() + static_cast<size_t>(i) * V_;
            double sum = 0;
            for (int v = 0; v < V_; ++v) sum += std::exp(z[v]);
            logp[i] = z[rows_values_[i].target] - std::log(sum);
            for (int v = 0; v < V_; ++v)
                gradient[static_cast<size_t>(i) * V_ + v] = std::exp(z[v]) / sum - (v == rows_values_[i].target);
        }
        return std::max(z_.error(gradient), logp_.error(logp));
    }

  private:
    static std::vector<HeadRow> made(int n, int V) {
        std::vector<HeadRow> rows(static_cast<size_t>(n));
        for (int i = 0; i < n; ++i) rows[i].target = (i * 31 + 5) % V;
        return rows;
    }

    Device& device_;
    int n_, V_;
    std::vector<double> values_;
    std::vector<HeadRow> rows_values_;
    Array<HeadRow> rows_;
    Array<bf16> z_;
    Array<double> logp_;
};

void xent_rows(Device& device, const Shapes& s, const Timer& timer, std::vector<BenchRow>& rows) {
    XentRun check(device, 3, s.V), whole(device, s.head_rows, s.V);
    for (const auto& version : softmax_xent_versions()) {
        check.reset();
        check.launch(version);
        const double n = double(s.head_rows) * s.V;
        BenchRow row{"softmax_xent", version.name, 0, 4 * n, 2 * 2 * n, check.error(), kTolerance};
        if (row.sound()) row.seconds = timer([&] { whole.launch(version); });
        rows.push_back(row);
    }
}

}  // namespace

std::vector<BenchRow> rows(Device& device, const Shapes& shapes, const Timer& timer) {
    std::vector<BenchRow> all;
    attention_rows(device, shapes, timer, all);
    norm_rows(device, shapes, timer, all);
    xent_rows(device, shapes, timer, all);
    return all;
}

}  // namespace orpo::cuda::progress
