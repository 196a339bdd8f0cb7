#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "model/model_files.h"

namespace orpo {

namespace {

// All bits of the exponent set: infinity or NaN. Integer operations vectorise and know no exceptions.
bool all_finite(const float* x, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) bad |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000) == 0x7f800000 ? 1u : 0u;
    return bad == 0;
}

}  // namespace

HostWeights::HostWeights(ModelConfig config) : config_(std::move(config)) {
    for (const TensorShape& tensor : model_tensors(config_)) {
        const Shape2 shape =
            tensor.shape.size() == 2 ? Shape2{tensor.shape[0], tensor.shape[1]} : Shape2{1, tensor.shape[0]};
        shapes_.emplace(tensor.name, shape);
    }
}

Shape2 HostWeights::shape(const std::string& name) const {
    const auto found = shapes_.find(name);
    ORPO_CHECK(found != shapes_.end());
    return found->second;
}

void HostWeights::read(const std::string& name, float* out) const { read_rows(name, 0, shape(name).rows, out); }

void HostWeights::read_rows(const std::string& name, int64_t first, int64_t count, float* out) const {
    const Shape2 s = shape(name);
    ORPO_CHECK(first >= 0 && count >= 0 && first <= s.rows && count <= s.rows - first);
    // Whole heads at a time, for some formats store their rows interleaved, and few enough to stay in the cache.
    const int64_t piece = std::max<int64_t>(1, (1 << 18) / (s.cols * config_.HS)) * config_.HS;
    for (int64_t row = first; row < first + count;) {
        const int64_t n = std::min((row / piece + 1) * piece, first + count) - row;
        float* values = out + (row - first) * s.cols;
        load_rows(name, row, n, values);
        if (!all_finite(values, n * s.cols)) {
            throw Error(Exit::kBadModel,
                        fmt::format("{}: tensor '{}' holds NaN or infinite values; the model is damaged: "
                                    "get it again",
                                    place(), name));
        }
        row += n;
    }
}

std::string HostWeights::fingerprint() const {
    Sha256 hash;
    for (const auto& [name, shape] : shapes_) hash_tensor(name, hash);  // sorted by name
    return hash.hex();
}

Model open_model(const std::string& spec) {
    const ResolvedModel resolved = resolve_model(spec);
    Model model = resolved.is_gguf ? open_gguf_model(resolved.path) : open_hf_model(resolved.path);
    model.spec = spec;
    model.path = resolved.path;
    model.hub_id = resolved.hub_id;
    // The hub's snapshots are called by their commit; a file is called "SmolLM2-135M-Instruct.Q4_1" as a rule.
    if (!model.hub_id.empty()) model.config.name = model.hub_id.substr(model.hub_id.find('/') + 1);
    const std::string quant = model.weights->quantisation();
    for (const char separator : {'.', '-', '_'})
        if (model.config.name.ends_with(separator + quant))
            model.config.name.resize(model.config.name.size() - quant.size() - 1);
    model.display_name = model.config.name + " " + quant;
    return model;
}

}  // namespace orpo
