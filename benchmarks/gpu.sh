#!/usr/bin/env bash
# All that needs a GPU, in one call of under ten minutes. Writes JSON to a folder.
#
#   benchmarks/gpu.sh [FOLDER]              # outputs/gpu unless given
#   benchmarks/gpu.sh --dry-run [FOLDER]    # on a CPU, at tiny sizes: tries the script
#
# $PYTHON (python) has this package installed. The tests take part if it has pytest.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
device=cuda
if [[ ${1:-} == --dry-run ]]; then
  device=cpu
  shift
fi
out=${1:-$root/outputs/gpu}

if [[ $device == cuda ]] && ! "$python" -c 'import torch; torch.zeros(1).cuda()' 2>/dev/null; then
  echo "The torch of '$python' sees no GPU, or there is no torch; set PYTHON to another one, or" \
    "try this script on a CPU by 'benchmarks/gpu.sh --dry-run'." >&2
  exit 2
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

failed=0
parts=""

# part NAME SECONDS COMMAND...: run for so long at most, and note how it ended.
part() {
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" || code=$?
  [[ $code == 0 ]] || failed=1
  parts+="${parts:+, }\"$name\": {\"exit\": $code, \"seconds\": $((SECONDS - start))}"
  echo "{$parts}" >"$out/gpu.json"
}

run_tests() {
  if ! "$python" -c 'import pytest'; then
    echo "no pytest: the tests on a GPU are left out." >&2
    return 0
  fi
  "$python" -m pytest -q -p no:cacheprovider -m gpu --junitxml="$out/tests.xml" \
    tests/test_manifold.py tests/optim/test_gpu.py tests/test_update_benchmark.py
}

update() {
  local name=$1
  shift
  if [[ $device == cpu ]]; then
    set -- "$@" --smoke --methods floor
  fi
  "$python" benchmarks/update.py --device "$device" --output "$out/$name" "$@"
}

export -f run_tests update
export python out device

sizes=256,512,1024,2048,4096,8192,16384,32768
part tests 120 bash -c run_tests
part table 300 bash -c "update table --sizes $sizes --budget 1.5"
part batch-64 60 bash -c 'update batch-64 --batch 544 --sizes 64 --dtype complex64 --budget 1.5'
part batch-256 60 bash -c 'update batch-256 --batch 136 --sizes 256 --dtype complex64 --budget 1.5'
exit $failed
