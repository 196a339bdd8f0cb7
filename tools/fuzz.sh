#!/bin/sh
# Builds the fuzz targets with clang, libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and runs each for some
# seconds from the corpus in the tree. What breaks a target is left in build-fuzz/crashes/.
#   tools/fuzz.sh [SECONDS [TARGET...]]      builds and runs; default: 60 s, every target
#   tools/fuzz.sh build                      only builds
#   tools/fuzz.sh run SECONDS [TARGET...]    only runs what was built
set -eu
cd "$(dirname "$0")/.."
what=all
case "${1:-}" in build | run) what=$1 && shift ;; esac
seconds=${1:-60}
[ $# -gt 0 ] && shift
if [ $# -eq 0 ]; then
    set -- $(ls tests/fuzz/*_fuzz.cpp | sed 's|.*/||; s|_fuzz\.cpp$||')
fi
if [ $what != run ]; then
    CXX=${CXX:-clang++}
    command -v "$CXX" >/dev/null 2>&1 || {
        echo "fuzz.sh: $CXX is missing; Debian: sh tools/setup.sh fuzz" >&2
        exit 1
    }
    launcher=""
    command -v ccache >/dev/null 2>&1 && launcher=-DCMAKE_CXX_COMPILER_LAUNCHER=ccache
    cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$CXX" -DORPO_FUZZ=ON \
        -DORPO_SANITIZE=ON -DORPO_CUDA=OFF $launcher >/dev/null
    cmake --build build-fuzz -j "$(nproc)"
fi
[ $what = build ] && exit 0
mkdir -p build-fuzz/crashes
failed=""
for name in "$@"; do
    mkdir -p "build-fuzz/found/$name"
    echo "fuzz.sh: $name, $seconds s" >&2
    # Found inputs go to the first directory; the corpus in the tree is only read.
    "build-fuzz/tests/fuzz/${name}_fuzz" "build-fuzz/found/$name" "tests/fuzz/corpus/$name" -max_total_time="$seconds" \
        -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="build-fuzz/crashes/$name-" || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "fuzz.sh: failed:$failed; the inputs are in build-fuzz/crashes/" >&2
    exit 1
fi
echo "fuzz.sh: $# targets, $seconds s each: nothing found" >&2
