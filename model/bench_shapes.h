// What `orpo bench` times: the widths of one layer, and a micro-batch.
#pragma once

#include "kernels/batch.h"
#include "model/config.h"

namespace orpo {

struct BenchShapes {
    ModelConfig config;
    MicroBatch batch;   // whole pairs
    int rank = 16;      // of adapters on every linear
    int positions = 0;  // of the longest sequence of the batch
    int cached = 512;   // tokens before the one that decoding adds
};

}  // namespace orpo
