"""Measure the best rates of this machine: bare matrix products and copies, written as JSON.

    python bench/machine_rates.py          # bench/results/machine_rates.json
    python bench/machine_rates.py --quick  # a trial, written nowhere

They are what the times of `compare` are held against. Both use all cores; the best of many repetitions counts.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import machine
import numpy as np
import results


def sgemm_rates(sizes, repeats):
    """Return the best flop/s of NumPy's product of two square float32 matrices, for each size."""
    rates = {}
    for n in sizes:
        generator = np.random.default_rng(0)
        a, b = (generator.standard_normal((n, n), dtype=np.float32) for _ in range(2))
        multiply = partial(np.matmul, a, b, out=np.empty_like(a))
        rates[n] = 2 * n**3 / _least_seconds(multiply, repeats)
    return rates


def copy_rate(size, repeats):
    """Return the best bytes/s of a copy of so many bytes, cut into one piece for each core; reads and writes count."""
    source = np.ones(size // 4, np.float32)
    cores = machine.usable_cores()
    pieces = [np.array_split(array, cores) for array in (np.zeros_like(source), source)]
    with ThreadPoolExecutor(cores) as pool:  # NumPy lets go of the interpreter while it copies
        return 2 * source.nbytes / _least_seconds(lambda: list(pool.map(np.copyto, *pieces)), repeats)


def _least_seconds(function, repeats):
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    """Run the command line."""
    options = results.arguments(__doc__).parse_args()
    result = results.start("machine_rates", quick=options.quick)
    sizes, size, repeats = ((256,), 2**24, 3) if options.quick else ((1024, 2048, 4096), 2**29, 15)
    rates = sgemm_rates(sizes, repeats)
    result["method"] = {"repeats": repeats, "rate": "best"}
    result["sgemm"] = {"best": max(rates.values()), "by_size": rates}
    result["copy"] = {"best": copy_rate(size, repeats), "size_bytes": size, "counted": "bytes read and bytes written"}
    print(f"SGEMM {result['sgemm']['best'] / 1e9:.0f} GFLOP/s, copy {result['copy']['best'] / 1e9:.1f} GB/s")
    results.write(result, options)


if __name__ == "__main__":
    main()
