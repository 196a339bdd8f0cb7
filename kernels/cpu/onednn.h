// What oneDNN's matrix product reaches on a shape: the yardstick beside our own kernels in `orpo bench`.
#pragma once

namespace orpo {

// Seconds of C (M, N) = A (M, K) B (K, N), best of `repeats`, B packed for the shape beforehand, C stored as A and B are.
// 1e30 where oneDNN cannot.
double onednn_seconds(int M, int N, int K, bool bf16, int threads, int repeats);

}  // namespace orpo
