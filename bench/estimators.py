"""Errors of the optimum and of estimators that learn nothing, over the settings of docs/power-spectrum.md.

    python bench/estimators.py                  # bench/results/optimum.json, some minutes
    python bench/estimators.py --cases 3 4      # these only, by number; the others are kept as they are in the file
    python bench/estimators.py --quick          # a trial, written nowhere

Every case is written when it is done.
"""

import json

import numpy as np
import results

from fastperm import PowerSpectrum, estimation, spectrum_posterior
from fastperm.baselines import ESTIMATORS

CASES = (
    {"k_max": 4, "k_fin": 4, "set_size": 512},
    {"k_max": 64, "k_fin": 4, "set_size": 512},
    {"k_max": 512, "k_fin": 8, "set_size": 512},
    {"k_max": 1000, "k_fin": 16, "set_size": 512},
    {"k_max": 1000, "k_fin": 16, "set_size": 128},
    {"k_max": 4, "k_fin": 4, "set_size": 512, "noise": 0.1},
)
SETS, QUICK_SETS, SEED = 1024, 2, 0
BOUNDS = (0.5, 0.9)
# What it costs to assume another k_max than that of the functions.
WRONG = {"k_max": 64, "k_fin": 4, "set_size": 128}
ASSUMED = (4, 8, 16, 32, 64, 128, 256, 1000)


def measure(arguments, sets):
    """Return errors, calibration and speed in one setting."""
    task = PowerSpectrum(**arguments)
    comparison = estimation.compare(
        None, task, tuple(ESTIMATORS), sets=sets, seed=SEED, probabilities=True, progress=True
    )
    return {
        **arguments,
        "sets": sets,
        "frequencies": task.frequencies.tolist(),
        "expected_error": comparison.expected_error.tolist(),
        "shares_below": {str(bound): float((comparison.probabilities < bound).mean()) for bound in BOUNDS},
        "estimators": {
            name: {**_errors(evaluation), "spectra_per_second": comparison.spectra_per_second[name]}
            for name, evaluation in comparison.evaluations.items()
        },
    }


def measure_wrong(sets):
    """Return error and expected error of posteriors that assume various k_max."""
    found = []
    for k_max in ASSUMED:
        assumed = PowerSpectrum(**{**WRONG, "k_max": k_max})
        estimates, truths, variances = [], [], []
        for batch, targets in estimation.fresh_sets(PowerSpectrum(**WRONG), sets=sets, seed=SEED):
            mean, variance = spectrum_posterior(batch, assumed).log_power()
            estimates.append(mean)
            variances.append(variance)
            truths.append(targets)
        evaluation = estimation.Evaluation(np.concatenate(truths), np.concatenate(estimates))
        found.append({"k_max": k_max, **_errors(evaluation), "expected_error": float(np.concatenate(variances).mean())})
    return {**WRONG, "sets": sets, "assumed": found}


def _errors(evaluation):
    overall, deviation = evaluation.overall
    return {"error": overall, "standard_error": deviation, "by_frequency": evaluation.mean.tolist()}


def main():
    """Run the command line."""
    parser = results.arguments(__doc__)
    numbers = range(len(CASES) + 1)
    parser.add_argument(
        "--cases", nargs="+", type=int, choices=numbers, default=numbers, help=f"{numbers[-1]} is that of a wrong k_max"
    )
    options = parser.parse_args()
    result = results.start("optimum", quick=options.quick)
    result |= {"method": {"sets": QUICK_SETS if options.quick else SETS, "seed": SEED}, "cases": {}}
    out = options.out or results.FOLDER / "optimum.json"
    if out.exists() and not options.quick:
        result["cases"] = json.loads(out.read_text())["cases"]
    for number in options.cases:
        sets = result["method"]["sets"]
        if number < len(CASES):
            case = measure(CASES[number], sets)
            print(CASES[number], f"{case['estimators']['optimum']['error']:.4g}", case["shares_below"])
        else:
            case = measure_wrong(sets)
            print(WRONG, {one["k_max"]: round(one["error"], 4) for one in case["assumed"]})
        result["cases"] = dict(sorted({**result["cases"], str(number): case}.items()))
        results.write(result, options)


if __name__ == "__main__":
    main()
