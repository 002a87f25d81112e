#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: every cuda kernel against the reference in float64, on fresh arrays full of NaN.
# `make gpu` brings what it needs; where nothing can be installed, `bash bench/gpu.sh` takes what there is: NumPy, SciPy,
# Numba, CuPy, safetensors, tqdm, click, pytest, and numba-cuda or a cache folder (FASTPERM_CACHE_DIR) that another
# machine has filled with
#     python -c "from fastperm.kernels.cuda.compiling import fill_cache; fill_cache()"
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c "import fastperm.kernels" 2>/dev/null || "$PYTHON" -m pip install --no-deps --no-build-isolation -e . || exit 1
"$PYTHON" -m fastperm info
# Without the project's settings, which ask for plugins of pytest.
PYTHONPATH=tests "$PYTHON" -m pytest -c /dev/null --rootdir=. -p no:cacheprovider -q -m cuda tests/test_cuda_kernels.py
