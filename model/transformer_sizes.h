// How much a transformer keeps, and for how many tokens at once.
#pragma once

namespace orpo {

// What forward keeps for backward, from most memory to least.
enum class Keep {
    kAll,          // also the norms' outputs and SwiGLU's: backward makes nothing again
    kActivations,  // x, qkv, o, x2, gate|up: backward makes only norms and SwiGLU again
    kNoGateUp,     // x, qkv, o, x2: one more product per layer (22 % more FLOPs)
    kInputs,       // x alone: the layer's forward again (46 %)
    kNothing,      // evaluation only
};

struct TransformerSizes {
    int tokens = 0;         // most tokens of a micro-batch
    int heads = 0;          // most head rows of a micro-batch
    int max_positions = 0;  // most tokens of one sequence
    Keep keep = Keep::kActivations;
    int sequences = 0;  // generated at once; 0: no cache
};

}  // namespace orpo
