"""All that one run on a machine with an NVIDIA GPU has to show, in less than 8 minutes.

    python bench/gpu.py                            # bench/results/GPU-NAME.json
    python bench/gpu.py --parts kernels benchmark  # some parts only; the others stay as they were
    python bench/gpu.py --dry-run --out FILE       # without a GPU: whether the program runs

Kernels are compiled; each is held against the reference in float64, on fresh random arrays, with outputs full of NaN;
then come rounding errors of whole networks beside PyTorch's, compute-sanitizer, rates of the card, training steps with
the drawing of their batches, and times beside PyTorch and JAX. Each part is a process with a limit of time. One that
fails is named in the table at the end, and stops none after it.

A dry run takes the kernels in Numba's simulator and, for rivals, the reference and frameworks on the processor.
"""

import argparse
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import results
from blocks import gpu as table
from gpu_worker import simulated

ROOT = Path(__file__).parents[1]
TOTAL_SECONDS = 465  # the last part has what the others leave
LEAST_SECONDS = 10  # with less, no part begins
# Seconds that a part may take.
LIMITS = {
    "kernels": 150,
    "correctness": 100,
    "errors": 45,
    "memcheck": 60,
    "racecheck": 120,
    "rates": 40,
    "training": 30,
    "benchmark": TOTAL_SECONDS,
}
WORKERS = min(os.cpu_count() or 1, 10)  # that the tests are shared by, where pytest-xdist is there
TESTS = ("cuda_kernels", "cuda_arrays", "step_queue")
# A small part of the tests in the simulator: `make test` runs all of them.
DRY_TESTS = "two_runs or dense or adam"
# Kernels are loaded once, too, each by one of several processes: the driver compiles them, and remembers that.
COMPILE = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from fastperm.kernels.cuda.compiling import KERNELS, cache_folder, compiler, current_architecture, fill_cache, load

if __name__ == "__main__":
    count = fill_cache([current_architecture()], processes=os.cpu_count())
    names = [name for name, kernel in KERNELS.items() if kernel.runs_on(current_architecture())]
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 16), get_context("spawn")) as pool:
        list(pool.map(load, names))
    print(f"{count} kernels for {current_architecture()} by {compiler()} in {cache_folder()}")
"""
SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERROR = 86


def measure_errors(options):
    """Hold the float32 errors of whole networks against PyTorch's, and write both."""
    from contenders import CONTENDERS_ON_GPU, OURS_ON_GPU, Case
    from errors import median_errors, worse

    theirs = "fastperm-reference" if options.dry_run else "torch-eager"
    cases = (Case(width=16), Case(), Case(width=128))
    case_list = [case._replace(depth=4, batch=16) for case in cases]
    draws = 15
    if options.dry_run:
        case_list, draws = [Case(width=3, depth=1, set_size=5, batch=2)], 1
    seed, found, failures = secrets.randbelow(2**31), [], []
    for case in case_list:
        ways = {name: CONTENDERS_ON_GPU[name].make for name in (OURS_ON_GPU, theirs)}
        errors = median_errors(case, range(seed, seed + draws), ways)
        found.append({**case._asdict(), "seed": seed, "draws": draws, "errors": errors})
        results.add(options.out, errors=found)
        failures += [f"width {case.width}: {what}" for what in worse(errors[OURS_ON_GPU], errors[theirs])]
        largest = {name: max(of.values()) for name, of in errors.items()}
        print(f"width {case.width}: " + ", ".join(f"{name} at most {error:.1e}" for name, error in largest.items()))
    if failures and not options.dry_run:  # one small draw says nothing
        sys.exit(f"more than twice the error of {theirs}: {'; '.join(failures)}")


def measure_rates(options):
    """Measure the card and write its rates."""
    import gpu_rates

    rates = gpu_rates.measure(quick=options.dry_run)
    results.add(options.out, rates=rates)
    print(f"copy {rates['copy']['best'] / 1e9:,.0f} GB/s, SGEMM {rates['sgemm']['best'] / 1e12:.1f} TFLOP/s")
    for way, of_way in rates["products"]["by_way"].items():
        print(f"{way}: cuBLAS {of_way['cublas'] / 1e12:.1f}, ours {of_way['ours'] / 1e12:.1f} TFLOP/s")
    for of in rates["layers"]:
        of_ways = (f"{way} {one['cublas'] / one['ours']:.2f}" for way, one in of["seconds"].items())
        print(f"{of['width']} wide, {of['precision']}, cuBLAS against ours: {', '.join(of_ways)}")


def measure_training(options):
    """Time the steps of a training run, drawing included, and write them."""
    import gpu_training
    from contenders import Case

    how = {}
    if options.dry_run:
        how = {"cases": [Case(width=4, depth=1, set_size=3, batch=1)], "rounds": 2, "seconds": 0}
    for case in gpu_training.measure(options.out, **how):
        medians = ", ".join(f"{name} {1e3 * of['median']:.3f} ms" for name, of in case["seconds"].items())
        print(f"width {case['width']}: {medians}")


def measure_times(options):
    """Time everything beside the rivals and write it, case by case."""
    import gpu_compare

    # An orderly end, by which the contenders' processes end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    from contenders import FRAMEWORKS_ON_GPU, OURS_ON_GPU, Case

    cases, rounds = gpu_compare.CASES, gpu_compare.ROUNDS
    frameworks = tuple(name for name in FRAMEWORKS_ON_GPU if name not in options.without)
    if options.dry_run:
        cases, rounds = [Case(width=width, depth=1, set_size=3, batch=1) for width in (1, 4)], (2, 2)
        frameworks = (gpu_compare.STAND_IN, "torch-eager", "jax-jit")
    names = (OURS_ON_GPU, *frameworks)
    found = gpu_compare.measure(cases, names, options.seconds, options.out, frameworks=frameworks, rounds=rounds)
    if any("not_measured" in case[task]["contenders"][OURS_ON_GPU] for case in found for task in ("step", "predict")):
        sys.exit("ours was not measured everywhere")


MEASURED = {
    "errors": measure_errors,
    "rates": measure_rates,
    "training": measure_training,
    "benchmark": measure_times,
}


def command(part, options, seconds):
    """Return the command of a part; a string says why there is none."""
    python = sys.executable
    if part == "kernels":
        if options.dry_run:
            return "the simulator compiles nothing"
        return [python, "-c", COMPILE]
    if part == "correctness":
        # Without the project's settings, which ask for plugins of pytest.
        tests = [
            python,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            f"--rootdir={ROOT}",
            "-p",
            "no:cacheprovider",
            *(() if options.dry_run or not importlib.util.find_spec("xdist") else ("-n", str(WORKERS))),
            "-q",
            "-m",
            "cuda",
        ]
        return [
            *tests,
            *(["-k", DRY_TESTS] if options.dry_run else []),
            *(str(ROOT / "tests" / f"test_{name}.py") for name in TESTS),
        ]
    if part in SANITIZERS:
        if options.dry_run:
            return "the simulator has no memory to watch"
        if (tool := _sanitizer()) is None:
            return "compute-sanitizer was found neither on PATH, nor in CUDA_HOME or /usr/local/cuda, nor among pip's"
        watch = [tool, "--tool", part, "--error-exitcode", str(SANITIZER_ERROR), "--print-limit", "10"]
        return [*watch, python, str(ROOT / "bench" / "gpu_small.py")]
    own = [python, str(ROOT / "bench" / "gpu.py"), "--part", part, "--out", str(options.out)]
    without = [word for name in options.without for word in ("--without", name)]
    return [*own, "--seconds", f"{seconds:.0f}", *without, *(["--dry-run"] if options.dry_run else [])]


def _sanitizer():
    """Return the path of compute-sanitizer, or None."""
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    homes += [Path("/usr/local/cuda"), *(Path(sysconfig.get_path("purelib")) / "nvidia").glob("cu*")]
    tools = (home / folder / "compute-sanitizer" for home in homes for folder in ("bin", "compute-sanitizer"))
    return next((str(tool) for tool in tools if os.access(tool, os.X_OK) and tool.is_file()), None)


def run(part, options, seconds):
    """Run one part and return what became of it: status, seconds and its last lines."""
    what = command(part, options, max(seconds - 10, 5))
    if isinstance(what, str):
        print(what, flush=True)
        return {"status": "not run", "seconds": 0.0, "says": what}
    start, lines = time.monotonic(), []
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": "1"}
    # A session of its own, so that what it started ends with it.
    with subprocess.Popen(
        ["timeout", "--kill-after=5", f"{seconds:.0f}", *what],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=ROOT,
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    took = time.monotonic() - start
    status = {0: "passed", 124: f"stopped after {seconds:.0f} s", 137: f"stopped after {seconds:.0f} s"}.get(
        process.returncode, f"failed with status {process.returncode}"
    )
    return {"status": status, "seconds": round(took, 1), "says": "\n".join([line for line in lines if line][-6:])}


def _gpu_name():
    """Return the name of the first GPU, as its driver says it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown GPU", None
    name, _, driver = answer.partition(", ")
    return name, driver


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS), help="default: all")
    parser.add_argument("--out", type=Path, help="JSON file (default: bench/results/GPU-NAME.json)")
    parser.add_argument("--without", action="append", default=[], help="a framework that gives its time to the others")
    parser.add_argument("--dry-run", action="store_true", help="try the program out; written only where --out says")
    parser.add_argument("--part", choices=MEASURED, help=argparse.SUPPRESS)  # what `run` starts
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all parts (default: %(default)s)")
    options = parser.parse_args()
    if options.dry_run:
        os.environ["NUMBA_ENABLE_CUDASIM"], os.environ["JAX_PLATFORMS"] = "1", "cpu"
    if options.without:
        from contenders import FRAMEWORKS_ON_GPU

        if unknown := set(options.without) - set(FRAMEWORKS_ON_GPU):
            parser.error(f"--without expected any of {', '.join(FRAMEWORKS_ON_GPU)}, got {', '.join(sorted(unknown))}")
    if options.part:
        with simulated():
            MEASURED[options.part](options)
        return
    end = time.monotonic() + options.seconds
    name, driver = ("simulator", None) if options.dry_run else _gpu_name()
    if options.out is None:
        if options.dry_run:
            parser.error("--dry-run needs --out")
        options.out = results.FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.json"
    options.out = options.out.resolve()
    # Every run of the tests has numbers of its own, which this seed brings back.
    os.environ.setdefault("FASTPERM_TEST_SEED", str(0 if options.dry_run else secrets.randbelow(2**31)))
    head = results.start(f"gpu {name}", quick=options.dry_run)
    head |= {"gpu": {"name": name, "driver": driver}, "test_seed": int(os.environ["FASTPERM_TEST_SEED"])}
    before = results.load(options.out) if options.out.exists() else {}
    results.store(before | head | {"parts": before.get("parts", {})}, options.out)

    for part in options.parts:
        seconds = min(LIMITS[part], end - time.monotonic())
        print(f"\n=== {part}", flush=True)
        if seconds < LEAST_SECONDS:
            became = {"status": "not run", "seconds": 0.0, "says": "no time was left"}
        else:
            became = run(part, options, seconds)
        results.add(options.out, parts=results.load(options.out)["parts"] | {part: became})

    found = results.load(options.out)
    print(f"\n\n{table({found['benchmark']: found})}\n\nwritten to {options.out}")
    if any(found["parts"][part]["status"] not in ("passed", "not run") for part in options.parts):
        sys.exit(1)


if __name__ == "__main__":
    main()
