#!/usr/bin/env bash
# All that needs a GPU, once and unattended, in 7 minutes; benchmarks/gpu.py says what.
#
#   benchmarks/gpu.sh [FOLDER] [OPTION...]              # outputs/gpu unless given
#   benchmarks/gpu.sh --dry-run [FOLDER] [OPTION...]    # on a CPU, at tiny sizes: tries the script
#
# It runs from a checkout, where it builds the C++ part if that is missing, and installs nothing.
# $PYTHON, or else python or python3, has torch; $WHEELS is a folder of wheels of what it does not
# have: geoopt, scipy (which geoopt imports) and numpy, pytest with what that needs; if you like,
# matplotlib and tqdm. docs/gpus.md says how to fill it. Options are those of benchmarks/gpu.py.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python || command -v python3)}
device=cuda
if [[ ${1:-} == --dry-run ]]; then
  device=cpu
  shift
fi
out=$root/outputs/gpu
if [[ $# -gt 0 && $1 != --* ]]; then
  out=$1
  shift
fi

if [[ $device == cuda ]] && ! "$python" -c 'import torch; torch.zeros(1).cuda()' 2>/dev/null; then
  echo "The torch of '$python' sees no GPU, or there is no torch; set PYTHON to another one, or" \
    "try this script on a CPU by 'benchmarks/gpu.sh --dry-run'." >&2
  exit 2
fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in "${WHEELS:-$site}"/*.whl; do
  [[ -e $wheel ]] && "$python" -m zipfile -e "$wheel" "$site"
done
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONWARNINGS=default TQDM_DISABLE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
cd "$root" || exit 2

# Steps of a package without its C++ part are slow to start.
if [[ $device == cuda ]] && ! compgen -G "geoopt_projunn/backends/triton/_launches*.so" > /dev/null; then
  "$python" setup.py -q build_ext -j 2 --inplace || echo "The C++ part could not be built." >&2
fi

if ! said=$("$python" -W ignore -c 'import geoopt_projunn.nn' 2>&1); then
  echo "$said" >&2
  echo "'$python' cannot import geoopt_projunn from $root; set WHEELS to a folder with the wheels" \
    "of what is missing (geoopt, scipy, numpy)." >&2
  exit 2
fi
"$python" benchmarks/gpu.py --device "$device" --output "$out" "$@"
