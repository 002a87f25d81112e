"""What stands between this machine and the cuda backend, and what to install."""

import ctypes
import sys

# What the PTX of CUDA 13.0 needs.
DRIVER, CUDA = 580, 13000
INSTALL = 'pip install "fastperm[cuda]"'


def has_driver():
    """Return whether the driver of an NVIDIA GPU is installed. It is loaded, but not started."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def why_unusable():
    """Return why the cuda backend cannot be used here, with what to install; None if it can be."""
    from fastperm.kernels.cuda import compiling

    if compiling.SIMULATED:
        return None
    if not has_driver():
        return f"there is no NVIDIA driver (libcuda was not found); with a GPU, install driver {DRIVER} or newer"
    try:
        import cupy
    except Exception as error:  # a broken installation can raise anything, and "auto" must pass it by
        installed = getattr(error, "name", None) != "cupy"
        return f"CuPy {f'cannot be imported ({error})' if installed else 'is not installed'}; {INSTALL}"
    runtime = cupy.cuda.runtime
    try:
        driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if built_for // 1000 != CUDA // 1000:
            return (
                f"CuPy is one for CUDA {_version(built_for)}, expected one for CUDA {CUDA // 1000}; uninstall "
                f"cupy-cuda{built_for // 1000}x and {INSTALL}"
            )
        if driver < CUDA:
            return (
                f"the NVIDIA driver is one for CUDA {_version(driver)}, expected {_version(CUDA)} or newer; install "
                f"driver {DRIVER} or newer"
            )
        if runtime.getDeviceCount() == 0:
            return "the NVIDIA driver finds no GPU"
        architecture = compiling.current_architecture()
    except runtime.CUDARuntimeError as error:
        return f"the NVIDIA driver finds no usable GPU ({error})"
    except RuntimeError as error:  # it is too old
        return str(error)
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        return f"CuPy does not find NVRTC, the compiler of its own kernels ({error}); {INSTALL}"
    try:
        _ = cupy.cuda.cublas  # which loads it
    except (ImportError, RuntimeError) as error:
        return f"CuPy does not find cuBLAS, which multiplies the matrices of wide layers ({error}); {INSTALL}"
    if compiling.compiler() is None and not compiling.compiled_elsewhere(architecture):
        return (
            f"numba-cuda, which compiles the kernels, {compiling.NO_COMPILER or 'is not installed'}, and "
            f"{compiling.cache_folder()} does not have them; {INSTALL}"
        )
    return None


def _version(number):
    """Return the version that CUDA writes as 1000 · major + 10 · minor."""
    return f"{number // 1000}.{number % 1000 // 10}"
