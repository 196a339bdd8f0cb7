// A model as it lies on disk: configuration, weights as fp32 by their HF names, tokenizer and chat template.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "model/config.h"

namespace orpo {

class Sha256;
struct GgufTokenizerFields;  // model/tokenizer_spec.h

// The tensors of a model, all of which were found with the right shapes when it was opened.
// Reading is safe from several threads at once.
class HostWeights {
  public:
    virtual ~HostWeights() = default;

    const ModelConfig& config() const { return config_; }

    // name: HF's ("model.layers.0.self_attn.q_proj.weight"). out: the whole tensor, (rows, cols) row-major, fp32.
    // An unknown name is a bug (ORPO_CHECK): model_tensors(config) lists what there is.
    // A NaN or infinity among the values is an Error(kBadModel) that names the tensor.
    void read(const std::string& name, float* out) const;
    // Rows [first, first + count) only. out: (count, cols). A 1-D tensor is one row.
    void read_rows(const std::string& name, int64_t first, int64_t count, float* out) const;
    Shape2 shape(const std::string& name) const;  // 1-D tensors: {1, n}

    // "Q4_1", "BF16", ...: the format that most of the linears' bytes are stored in.
    virtual std::string quantisation() const = 0;
    // Bytes of the tensors as stored.
    virtual uint64_t stored_bytes() const = 0;
    // SHA-256, 64 hex digits, over the sorted list of (HF name, stored format, shape, stored bytes): the same for a
    // sharded and an unsharded copy, another for any other quantisation. Reads everything: 0.1-0.5 s per 100 MB.
    std::string fingerprint() const;

  protected:
    explicit HostWeights(ModelConfig config);
    virtual std::string place() const = 0;  // the file or directory, for messages
    virtual void load_rows(const std::string& name, int64_t first, int64_t count, float* out) const = 0;
    // Hands the tensor's identity and stored bytes to the hash.
    virtual void hash_tensor(const std::string& name, Sha256& hash) const = 0;

  private:
    ModelConfig config_;
    std::map<std::string, Shape2> shapes_;
};

// Where the tokenizer comes from: exactly one of the two is set.
struct TokenizerSource {
    std::string directory;  // holds tokenizer.json, tokenizer_config.json
    std::shared_ptr<const GgufTokenizerFields> gguf;
};

struct Model {
    std::string spec;          // what the user wrote
    std::string path;          // directory or .gguf
    std::string display_name;  // "SmolLM2-135M-Instruct Q4_1"
    std::string hub_id;        // "HuggingFaceTB/SmolLM2-135M-Instruct", or "" when it is none of the known ones
    ModelConfig config;
    std::shared_ptr<const HostWeights> weights;
    TokenizerSource tokenizer;
    std::string chat_template;  // Jinja text, "" when the model has none
};

// spec: as resolve_model (model/resolve.h) takes it. Opens and checks; reads no tensor yet.
Model open_model(const std::string& spec);

}  // namespace orpo
