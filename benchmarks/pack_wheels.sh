#!/usr/bin/env bash
# Packs what labelproof needs on a GPU machine without network into benchmarks/wheels/, which git ignores:
# wheels for Python 3.12 on x86-64 Linux, and CIFAR-10 under benchmarks/wheels/data. What such a machine has already
# (torch, lightning, numpy, pandas, pyarrow, scikit-learn, and what those need) is left out.
#
#   benchmarks/pack_wheels.sh              # versions of constraints.txt; about 30 MB and 18 MB of images
#   benchmarks/pack_wheels.sh --list       # only print the names
#   PYTHON_VERSION=3.11 WHEELS=/tmp/w benchmarks/pack_wheels.sh
#
# Environment: PYTHON (runs pip; .venv's or python3), PYTHON_VERSION, WHEELS (the folder), LABELPROOF_DATA (CIFAR-10).
set -euo pipefail
cd "$(dirname "$0")/.."

# labelproof's own dependencies, each followed by what it brings along; then what runs the tests.
names=(
  lightning-fabric loky cloudpickle safetensors pillow
  matplotlib contourpy cycler fonttools kiwisolver pyparsing
  jsonargparse docstring_parser typeshed_client
  kornia kornia_rs
  pooch platformdirs requests certifi charset-normalizer idna urllib3
  rich markdown-it-py mdurl Pygments
  pytest iniconfig pluggy pytest-timeout hypothesis sortedcontainers
)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${names[@]}"
  exit
fi

wheels=${WHEELS:-benchmarks/wheels}
version=${PYTHON_VERSION:-3.12}
data=${LABELPROOF_DATA:-}
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3

rm -rf "$wheels"
mkdir -p "$wheels"
echo '*' > "$wheels/.gitignore"  # also keeps it out of what git status shows
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux_2_5 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
"$python" -m pip download --quiet --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "$version" "${platforms[@]}" --constraint constraints.txt --dest "$wheels" "${names[@]}"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" .

for folder in "$data/cifar10" shared/data/cifar10 ../shared/data/cifar10; do
  if [ -e "$folder/train.parquet" ]; then
    mkdir -p "$wheels/data/cifar10"
    cp "$folder/train.parquet" "$folder/test.parquet" "$wheels/data/cifar10/"
    break
  fi
done
[ -e "$wheels/data/cifar10" ] || echo "no CIFAR-10 found: set LABELPROOF_DATA to the folder that holds cifar10/" >&2

(cd "$wheels" && ls -1 ./*.whl | sed 's|^\./|  |')
size=$(du -cb "$wheels"/*.whl | tail -1 | cut -f1)
count=$(find "$wheels" -name '*.whl' | wc -l)
echo "$count wheels for Python $version, $((size / 1048576)) MiB; with CIFAR-10 $(du -sm "$wheels" | cut -f1) MiB in $wheels"
if [ "$size" -gt $((40 * 1048576)) ]; then
  echo "more than 40 MiB of wheels: they and the data may not travel together" >&2
  exit 1
fi
