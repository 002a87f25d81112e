"""The kernels: one module per backend, the same names in each.

``reference`` (NumPy) is the specification, ``cpu`` (Numba) and ``cuda`` (Numba CUDA) the fast twins. Choosing a backend
is choosing a module.

Conventions. Inputs are positional, outputs and workspace keyword-only. Activation gradients (``dx``) are overwritten,
parameter gradients (``dW``, ``db``) are accumulated. Kernels neither check nor allocate results; the layers above do.
"""

if __name__ != "fastperm.kernels":
    raise ImportError(
        f"this package is fastperm.kernels, but was imported as {__name__!r}; install fastperm "
        "(`pip install -e .` in a checkout) and import fastperm.kernels"
    )
