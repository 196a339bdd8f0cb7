#!/bin/sh
# The main job on a fresh machine: build, get the real 135M, train on data/samples, and show what changed.
# `make quickstart` has installed the packages and built ./orpo before this runs.
set -eu
cd "$(dirname "$0")/.."
sh tools/fetch_model.sh
run=runs/quickstart-$(date +%Y%m%d-%H%M%S)
question="My houseplant's leaves are turning yellow. What should I check first?"
say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '\n%s\n' "$*" >&2; }

say "1. The model's answer before training: $question"
./orpo generate --prompt "$question" --temperature 0 --max-tokens 80 --quiet
say "2. Training a LoRA adapter on part of data/samples: 12 steps of 8 pairs, evaluated before and after"
# A dozen steps fit into a few minutes on two cores; without --max-steps the whole file is trained on.
./orpo train data/samples/train.jsonl --eval data/samples/eval.jsonl --max-steps 12 --eval-every 12 --out "$run"
say "3. The answer after training"
./orpo generate --adapter "$run/adapter" --prompt "$question" --temperature 0 --max-tokens 80 --quiet
say "The adapter is in $run/adapter (PEFT form). Next:"
echo "  ./orpo train data/samples/train.jsonl      # all of it, or your own data.jsonl" >&2
echo "  ./orpo eval data/samples/eval.jsonl --adapter $run/adapter" >&2
