// Everything that is compiled once per instruction set, in the order of need.
// clang-format off
#include "kernels/cpu/simd.isa.h"
#include "kernels/cpu/gemm.isa.h"
#include "kernels/cpu/bf16.isa.h"
#include "kernels/cpu/rmsnorm.isa.h"
#include "kernels/cpu/rope.isa.h"
#include "kernels/cpu/swiglu.isa.h"
#include "kernels/cpu/dropout.isa.h"
#include "kernels/cpu/head.isa.h"
#include "kernels/cpu/attention.isa.h"
#include "kernels/cpu/adamw.isa.h"
#include "kernels/cpu/decode.isa.h"
#include "kernels/cpu/table.isa.h"
