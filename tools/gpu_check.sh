#!/bin/sh
# Everything that can be checked on a machine with a GPU, in under 9 minutes, ending with one table:
#   tools/gpu_check.sh [--peers] [--seconds 520] [--out FILE]
# Runs what `make gpu-pack` carried along (bin/ and lib/ beside tools/), or build/, or builds when there is nothing to run
# and nvcc is there. Needs python3; torch, transformers and peft for the peers and for saving random weights. See
# tools/gpu_check.py for the steps.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
