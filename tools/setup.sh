#!/bin/sh
# Installs what orpo needs on Debian 12, and nothing when it is all there. As root, or through sudo.
#   sh tools/setup.sh build   compiler, CMake and the libraries that the program is built from
#   sh tools/setup.sh model   python3-pip, which fetches the model
#   sh tools/setup.sh fuzz    clang with libFuzzer and the sanitizers, for the tests
set -eu
build="g++ cmake ninja-build make libdnnl-dev ocl-icd-opencl-dev libsimdjson-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev doctest-dev"
case "${1:-build}" in
    build) packages=$build ;;
    model) packages="python3-minimal python3-pip ca-certificates" ;;
    fuzz) packages="clang libclang-rt-14-dev" ;;
    *) echo "usage: $0 [build|model|fuzz]" >&2; exit 2 ;;
esac
missing=""
for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q "install ok installed" || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "orpo: these Debian packages are missing:$missing" >&2
    echo "orpo: install them as root (apt-get install$missing), or install sudo, and run this again" >&2
    exit 1
fi
echo "orpo: installing Debian packages (apt-get install):$missing" >&2
$as_root apt-get update -q >/dev/null
# The log is shown only when something goes wrong.
log=$(mktemp)
if ! $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
