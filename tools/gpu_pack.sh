#!/bin/sh
# Builds the program and the CUDA library for every target, and packs what tools/gpu_check.sh needs on a machine with a
# GPU and without a network into one folder and one archive of at most 64 MiB:
#   tools/gpu_pack.sh [BUILD [OUT]]         build-gpu and gpu-pack when left out
# cuBLASLt is not packed (it is larger than all the rest): gpu_check takes torch's or the toolkit's.
set -e
cd "$(dirname "$0")/.."
build=${1:-build-gpu} out=${2:-gpu-pack}
most=67108864

if [ -z "$GPU_PACK_NO_BUILD" ]; then
    cmake -S . -B "$build" -G Ninja -DORPO_CUDA=ON ${GPU_PACK_CMAKE:-}
    cmake --build "$build" -j "${JOBS:-$(nproc)}" --target orpo orpo_cuda device_kernel_test
fi
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/tools" "$out/data/samples" "$out/wheels"
for file in orpo liborpo_cuda.so tests/device/device_kernel_test; do
    [ -f "$build/$file" ] || { echo "gpu_pack: $build/$file is not there" >&2; continue; }
    strip --strip-debug -o "$out/bin/$(basename "$file")" "$build/$file"
    chmod +x "$out/bin/$(basename "$file")"
done
[ -f "$out/bin/orpo" ] || { echo "gpu_pack: no program to pack" >&2; exit 1; }
# The libraries of each, but for the C library's own, the driver's and cuBLAS.
for file in "$out"/bin/*; do
    ldd "$file" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | grep -v -E '/(libc|libm|libdl|librt|libpthread|libcuda|libcublas|libcublasLt|ld-linux.*)\.so' |
    while read -r library; do cp -L "$library" "$out/lib/"; done
cp tools/gpu_check.sh tools/gpu_check.py tools/bench_peers.py tools/bench_gpu_peers.py "$out/tools/"
cp data/samples/*.jsonl "$out/data/samples/"
if [ -z "$GPU_PACK_NO_WHEELS" ]; then
    download() { "${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: -d "$out/wheels" "$@"; }
    # TRL imports datasets. multiprocess has a wheel for each Python, and gpu_check takes its own.
    pack_wheels() {
        download trl==1.16.0 liger-kernel datasets dill || return 1
        for version in 3.10 3.11 3.12 3.13; do
            download --implementation cp --python-version $version multiprocess || return 1
        done
    }
    pack_wheels || echo "gpu_pack: no wheels of TRL and Liger (no pip or no network): their rows will say so" >&2
fi
tar -C "$(dirname "$out")" -cJf "$out.tar.xz" "$(basename "$out")"
bytes=$(wc -c <"$out.tar.xz")
du -sh "$out" | awk -v n="$bytes" '{ printf "gpu_pack: %s, packed %.1f MiB\n", $1, n / 1048576 }'
[ "$bytes" -le "$most" ] || { echo "gpu_pack: the archive is over 64 MiB" >&2; exit 1; }
