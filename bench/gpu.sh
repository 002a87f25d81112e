#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: the cuda kernels against the reference, under compute-sanitizer, and against the clock
# (see gpu.py, which takes the same options). `make gpu` brings what it needs; where nothing can be installed,
# `bash bench/gpu.sh` takes what there is: NumPy, SciPy, Numba, CuPy, safetensors, threadpoolctl, tqdm, click, pytest, and
# numba-cuda or a cache folder (FASTPERM_CACHE_DIR) that another machine has filled with
#     python -c "from fastperm.kernels.cuda.compiling import fill_cache; fill_cache()"
# PyTorch and JAX are measured where they are installed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c "import fastperm.kernels" 2>/dev/null || "$PYTHON" -m pip install --no-deps --no-build-isolation -e . || exit 1
"$PYTHON" -m fastperm info
exec "$PYTHON" bench/gpu.py "$@"
