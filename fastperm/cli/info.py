"""``fastperm info``."""

import click


@click.command()
def info():
    """Show what fastperm runs on.

    Versions, backends and why one is missing, processor, GPU, BLAS, threads.
    """
    import platform

    import fastperm

    lines = {
        "fastperm": fastperm.__version__,
        "Python": f"{platform.python_version()} ({platform.platform()})",
        **{name: _version(name) for name in ("numpy", "scipy", "numba", "numba-cuda", "safetensors", "matplotlib")},
        **_backends(),
        "CPU": f"{_cpu_name()}, {_registers()}",
        "GPU": _gpu(),
        "CuPy": _cupy(),
        **_blas(),
        **_threads(),
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")


def _version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backends():
    from fastperm import backend

    reasons = {name: backend.why_missing(name) for name in backend.BACKENDS}
    lines = {f"backend {name}": f"not available: {why}" if why else "available" for name, why in reasons.items()}
    chosen = f"backend {backend.resolve('auto')}"
    return {**lines, chosen: f"{lines[chosen]}, the default"}


def _cpu_name():
    import platform
    from pathlib import Path

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _registers():
    try:
        from fastperm.kernels.cpu.register_tile import REGISTERS, VECTOR_BYTES
    except ImportError as error:
        return f"vector registers unknown ({error})"
    return f"{REGISTERS} vector registers of {8 * VECTOR_BYTES} bits"


def _gpu():
    import shutil
    import subprocess

    command = shutil.which("nvidia-smi")
    if command is None:
        return "none detected (there is no nvidia-smi)"
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none detected ({error})"
    names = answer.stdout.strip().splitlines()
    return "; ".join(names) if answer.returncode == 0 and names else "none detected (nvidia-smi finds none)"


def _cupy():
    from importlib import metadata

    packages = [dist.name for dist in metadata.distributions() if (dist.name or "").lower().startswith("cupy")]
    return ", ".join(f"{name} {_version(name)}" for name in packages) or "not installed"


def _blas():
    # NumPy and SciPy each bring their own; it is listed once it is loaded.
    import numpy  # noqa: F401
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    values = [
        f"{pool['internal_api']} {pool.get('version') or ''} ({_owner(pool['filepath'])}), "
        f"{pool['num_threads']} threads"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return {f"BLAS {i}" if len(values) > 1 else "BLAS": value for i, value in enumerate(values, start=1)}


def _owner(path):
    from pathlib import Path

    # .../site-packages/numpy.libs/libscipy_openblas64_-….so
    return Path(path).parent.name.removesuffix(".libs")


def _threads():
    try:
        from fastperm.kernels.cpu import compiling, workers
    except ImportError:
        return {}
    why = compiling.why_not_kept()
    kept = "FASTPERM_CACHE_DIR sets another folder" if why is None else f"cannot be kept there: {why}"
    return {
        "threads": f"{workers.get_num_threads()} (FASTPERM_NUM_THREADS sets another number)",
        "compiled code": f"{compiling.cache_folder()} ({kept})",
    }
