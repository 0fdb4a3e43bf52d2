#!/usr/bin/env bash
# One part of the GPU suite, of at most nine minutes; docs/gpu.md says which there are and what each is to reach.
#
#   benchmarks/gpu.sh PART [FOLDER] [flags of benchmarks/gpu.py]
#
# PART: check, elr, elr-plus-1 to elr-plus-4, simclr, speed. Results go to FOLDER, else to $OUT, else to
# benchmarks/results/gpu. Packages come from benchmarks/wheels (benchmarks/pack_wheels.sh), without any network.
#
# Environment: PYTHON (python3), WHEELS (benchmarks/wheels), SITE (where wheels are installed: /tmp/labelproof-site),
# LABELPROOF_DATA (folder that holds cifar10/; else that of the wheels).
set -euo pipefail
started=$SECONDS
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -eq 0 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0"
  exit 2
fi
part=$1
shift
out=${OUT:-$root/benchmarks/results/gpu}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$1
  shift
fi
python=${PYTHON:-python3}
wheels=${WHEELS:-$root/benchmarks/wheels}
site=${SITE:-/tmp/labelproof-site}

if compgen -G "$wheels/*.whl" > /dev/null; then
  packed=$(cd "$wheels" && ls ./*.whl)
  if [ "$(cat "$site/.packed" 2> /dev/null)" != "$packed" ]; then
    rm -rf "$site"
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" "$wheels"/*.whl
    printf '%s\n' "$packed" > "$site/.packed"
  fi
fi
# the checkout's own code first: what was packed may be older
export PYTHONPATH="$root/src:$root:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# what was compiled in one part is there in the next
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/labelproof-inductor}
needed="torch lightning_fabric numpy pandas pyarrow sklearn loky kornia jsonargparse safetensors"
if ! missing=$("$python" -c 'import sys, importlib.util as u
missing = [name for name in sys.argv[1:] if u.find_spec(name) is None]
print(*missing)
sys.exit(bool(missing))' $needed); then
  echo "missing: $missing. Run benchmarks/pack_wheels.sh where there is a network, and take benchmarks/wheels along" >&2
  exit 2
fi
flags=(--seconds "$((530 - (SECONDS - started)))")
data=${LABELPROOF_DATA:-$wheels/data}
[ ! -d "$data" ] || flags+=(--data-dir "$data")
exec "$python" "$root/benchmarks/gpu.py" "$part" --out "$out" "${flags[@]}" "$@"
