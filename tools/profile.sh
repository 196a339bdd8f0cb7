#!/bin/sh
# One step of one layer under the profilers that are there (make profile). Without a GPU: the CPU's own table.
#   tools/profile.sh [ORPO [MODEL]]
orpo=${1:-./orpo} model=${2:-135M}
words="profile --model $model --pairs 8 --layers 1"
if ! "$orpo" $words --device cuda 2>/dev/null; then
    echo "no GPU here: the step on the CPU instead" >&2
    exec "$orpo" profile --model "$model" --layers 1 --device cpu
fi
if command -v nsys >/dev/null; then
    nsys profile -c cudaProfilerApi -t cuda,nvtx -f true -o orpo-step "$orpo" $words --device cuda &&
        nsys stats -r nvtx_sum,cuda_gpu_kern_sum orpo-step.nsys-rep
else
    echo "nsys is not installed: no time line" >&2
fi
if command -v ncu >/dev/null; then
    ncu --profile-from-start off --nvtx --set full -f -o orpo-step "$orpo" $words --device cuda
else
    echo "ncu is not installed: no kernel report" >&2
fi
