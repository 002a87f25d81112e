"""Markdown made of results: one function for each block between markers, see `table`."""

import csv
import json
from pathlib import Path

import costs
from contenders import (
    BITWISE,
    CIRCLE,
    CONTENDERS,
    CONTENDERS_ON_GPU,
    FRAMEWORKS,
    ORDERS,
    OURS,
    OURS_ON_GPU,
    PRODUCTS,
    Case,
)

# Folders of `fastperm train`, with what `fastperm evaluate --csv` wrote beside.
TRAINING = Path(__file__).parents[1] / "docs" / "training"

TIMES = "\N{MULTIPLICATION SIGN}"
NETWORK = f"width {TIMES} depth"
WORDS = {costs.STEP: "a training step", costs.PREDICT: "a prediction"}


def train_step(results):
    """Return the table of one training step of the headline network."""
    found = results["networks"]
    case = _headline(found)
    rows = [_contender_row(name, contender) for name, contender in case[costs.STEP]["contenders"].items()]
    header = (WORDS[costs.STEP], "time", "against ours", "parameters", "memory")
    caption = (
        f"Width {case['width']}, depth {case['depth']}; {case['batch']} sets of {case['set_size']} elements; "
        f"{case['dtype']}:"
    )
    footnote = (
        f"Forward, loss, backward and Adam; median (quartiles) of {case[costs.STEP]['rounds']} rounds in which all "
        f"take turns, on {_machine(found)}. Against ours: time over that of fastperm, cpu, in the same round. Memory: "
        f"what a step holds at its peak above data, parameters and code. {_versions(found)}"
    )
    return f"{caption}\n\n{_table(header, rows)}\n\n{_closed(footnote, found)}"


def networks(results):
    """Return the table of all networks beside the fastest framework, short."""
    found = results["networks"]
    header = [NETWORK]
    for task in costs.TASKS:
        header += [WORDS[task], "fastest framework", "ratio"]
    header.append("rate of a step against SGEMM")
    rows = []
    for case in found["cases"]:
        row = [_network(case)]
        for task in costs.TASKS:
            row += [_time(case[task]["contenders"][OURS]), *_fastest(case[task])]
        rows.append([*row, _share_of_products(case[costs.STEP])])
    footnote = (
        f"{_sets(found)}. Medians (quartiles) of {_rounds(found)} rounds; the ratio is that of the fastest of PyTorch "
        "eager, torch.compile and JAX jit in each round to ours. Against SGEMM: the time of the step's matrix products "
        "alone, in NumPy, over that of our whole step; these are dense, ours leaves out zeros. "
        f"{_machine(found)}."
    )
    return f"{_table(header, rows)}\n\n{_closed(footnote, found)}"


def roofline(results):
    """Return the rates of the machine, and for each network its work on paper and the rate that is reached."""
    rates, found = results["machine_rates"], results["networks"]
    sgemm, copy = rates["sgemm"]["best"], rates["copy"]["best"]
    size = max(rates["sgemm"]["by_size"], key=rates["sgemm"]["by_size"].get)
    text = (
        f"The best that this machine does ({_machine(rates)}): **{sgemm / 1e9:,.0f} GFLOP/s** in a bare product of two "
        f"{size} {TIMES} {size} matrices (NumPy, float32), and **{copy / 1e9:,.1f} GB/s** in a copy of "
        f"{rates['copy']['size_bytes'] / 1e6:,.0f} MB, reads and writes counted. Arithmetic takes longer than memory "
        f"where there are more than {sgemm / copy:.1f} flops to a byte."
    )
    header = (
        NETWORK,
        "GFLOP",
        "MB at least",
        "flop/B",
        "MB layer by layer",
        "flop/B",
        "fastperm, GFLOP/s",
        "of the best SGEMM",
        "of its products alone",
    )
    parts = [_closed(text, rates)]
    for task in costs.TASKS:
        rows = []
        for case in found["cases"]:
            cost, ours = case[task], case[task]["contenders"][OURS]
            row = [_network(case), _significant(ours["flops"] / 1e9)]
            for bytes_moved in (cost["least_bytes"], cost["layer_by_layer_bytes"]):
                row += [f"{bytes_moved / 1e6:,.1f}", _significant(ours["flops"] / bytes_moved)]
            rate = ours["flops"] / ours["seconds"]["median"]
            rows.append([*row, f"{rate / 1e9:,.0f}", _percent(rate / sgemm), _share_of_products(cost)])
        parts.append(f"{WORDS[task].capitalize()} ({_sets(found)}):\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


def steps(results):
    """Return the table of training steps of all networks beside each framework."""
    return _beside_frameworks(results["networks"], costs.STEP)


def predictions(results):
    """Return the table of predictions of all networks beside each framework."""
    return _beside_frameworks(results["networks"], costs.PREDICT)


def bitwise(results):
    """Return what invariance to the last bit costs on the headline network."""
    return _beside_ours(results["networks"], BITWISE, 'invariance="rounding"', 'invariance="bitwise"')


def angular(results):
    """Return what angular layers cost beside plain ones on the headline network."""
    return _beside_ours(results["networks"], CIRCLE, "plain", f'symmetry="circle", orders={ORDERS}')


def angular_layer(results):
    """Return the times of an angular layer by itself beside those of an equivariant one."""
    found = results["angular_layer"]
    case = found["case"]
    ways = ("forward", "backward")
    header = ("width", *(cell for way in ways for cell in (f"{way}: equivariant", "angular", "ratio")), "both: ratio")
    rows = [
        [
            str(row["width"]),
            *(
                cell
                for way in ways
                for cell in (
                    *(_time({"seconds": row[kind][way]}) for kind in ("equivariant", "angular")),
                    _ratio(row["ratio"][way]),
                )
            ),
            _ratio(row["ratio"]["both"]),
        ]
        for row in found["widths"]
    ]
    footnote = (
        f"One layer with orders={found['orders']}, {case['batch']} sets of {case['set_size']} elements; medians "
        f"(quartiles) of {found['method']['rounds']} rounds. {_machine(found)}."
    )
    return f"{_table(header, rows)}\n\n{_closed(footnote, found)}"


def _beside_ours(found, other, *names):
    """Return the table of another contender beside ours, on the headline network."""
    case = _headline(found)
    rows = []
    for task in costs.TASKS:
        contenders = case[task]["contenders"]
        rows.append(
            [WORDS[task], _time(contenders[OURS]), _time(contenders[other]), _ratio(contenders[other]["ratio"])]
        )
    return _closed(_table((f"{NETWORK} = {_network(case)}", *names, "ratio"), rows), found)


def growth(results):
    """Return time and memory against the number of elements, and the slopes."""
    found = results["scaling"]
    growths = found["growths"]
    header = ["elements"]
    for one in growths:
        header += [f"{WORDS[one['task']]}, {one['growth']}", "ns an element", "memory"]
    rows = []
    for points in zip(*(one["points"] for one in growths), strict=True):
        row = [f"{points[-1]['elements']:,}"]
        for at in points:
            median = at["seconds"]["median"]
            row += [
                f"{_milliseconds(median)} ms",
                f"{1e9 * median / at['elements']:,.0f}",
                f"{at['peak_bytes'] / 1e6:,.0f} MB",
            ]
        rows.append(row)
    slopes = ["**slope**"]
    for one in growths:
        slopes += [f"**{one['slope']:.3f}** ± {one['slope_error']:.3f}", "", ""]
    footnote = (
        f"Width {found['width']}, depth {found['depth']}; medians of {found['method']['rounds']} rounds. Sets of "
        f"{Case().set_size} elements are whole ones, so their number of elements differs a little from that of one "
        "set. Slope: of the logarithm of time against that of elements, by least squares, with its standard "
        f"error. Memory: at the peak, above data, parameters and code. {_machine(found)}."
    )
    return f"{_table(header, [*rows, slopes])}\n\n{_closed(footnote, found)}"


def memory(results):
    """Return peak memory of a training step against the number of sets."""
    found = results["memory"]
    contenders = found["contenders"].values()
    header = ("sets", *(contender["label"] for contender in contenders))
    rows = [
        [f"{at[0]['batch']:,}", *(_peak(one) for one in at)]
        for at in zip(*(contender["batches"] for contender in contenders), strict=True)
    ]
    case = found["case"]
    footnote = (
        f"One training step of width {case['width']}, depth {case['depth']}, on sets of {case['set_size']} elements: "
        f"peak above data, parameters and code. {_machine(found)}."
    )
    return f"{_table(header, rows)}\n\n{_closed(footnote, found)}"


def active_units(results):
    """Return the times of networks of which more or fewer units are on."""
    found = results["active_units"]
    case = found["case"]
    header = (f"{NETWORK} = {_network(case)}", "units on, layer by layer", *(WORDS[task] for task in costs.TASKS))
    rows = [
        [
            row["network"],
            ", ".join(_percent(share) for share in row["share_on"]),
            *(_time({"seconds": row[task]}) for task in costs.TASKS),
        ]
        for row in found["networks"]
    ]
    footnote = (
        f"{case['batch']} sets of {case['set_size']} elements; medians (quartiles) of {found['method']['rounds']} "
        f"rounds; steps without Adam. {_machine(found)}."
    )
    return f"{_table(header, rows)}\n\n{_closed(footnote, found)}"


def optimum(results):
    """Return the table of the optimum: error, expected error, calibration."""
    found = results["optimum"]
    rows = []
    for case in _spectrum_cases(found):
        best = case["estimators"]["optimum"]
        expected = sum(case["expected_error"]) / len(case["expected_error"])
        shares = (_percent_exactly(case["shares_below"][bound]) for bound in ("0.5", "0.9"))
        errors = (_error(best["error"]), _error(best["standard_error"]), _error(expected))
        rows.append([*_spectrum_setting(case), *errors, *shares])
    header = (
        *_SPECTRUM,
        "mean squared error",
        "std. error",
        "expected",
        "below the 50 % bound",
        "below the 90 % bound",
    )
    return f"{_table(header, rows)}\n\n{_closed(_spectrum_footnote(found), found)}"


def training(results):
    """Return the errors of the networks in `TRAINING`: they are no benchmark, and have no part in ``results``."""
    tables = []
    for folder in sorted(path.parent for path in TRAINING.glob("*/errors.csv")):
        settings = json.loads((folder / "run.json").read_text())
        rows: dict = {}
        with (folder / "errors.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["k"] == "all":
                    rows.setdefault((int(row["k_max"]), int(row["set_size"])), {})[row["estimator"]] = row
        lines = []
        for (k_max, samples), found in rows.items():
            own, best = found["network"], found.get("optimum")
            errors = [_error(float(own[name])) for name in ("mean_squared_error", "standard_error")]
            lines.append([f"{samples:,}", str(k_max), *errors, "" if best is None else _optimum_of(best)])
        task, net, how = settings["task"], settings["network"], settings["training"]
        kind = f"orders {net['orders']}" if net["symmetry"] else "plain"
        caption = (
            f"`docs/training/{folder.name}`: {kind}, width {net['width'][0]}, depth {net['depth']}; "
            f"k = 1 … {task['k_fin']}; {how['steps']:,} steps of {how['batch']} functions with k_max = {task['k_max']}:"
        )
        header = ("samples", "k_max", "mean squared error", "std. error", "optimum")
        tables.append(f"{caption}\n\n{_table(header, lines)}")
    return "\n\n".join(tables)


def _optimum_of(row):
    error, deviation = (_error(float(row[name])) for name in ("mean_squared_error", "standard_error"))
    return error if error == deviation else f"{error} ± {deviation}"


def baselines(results):
    """Return the errors of all estimators, and how many spectra they make in a second."""
    found = results["optimum"]
    cases = _spectrum_cases(found)
    names = list(cases[0]["estimators"])
    errors, speeds = (
        [[*_spectrum_setting(case), *(write(case["estimators"][name]) for name in names)] for case in cases]
        for write in (lambda one: _error(one["error"]), lambda one: f"{one['spectra_per_second']:,.0f}")
    )
    header = [*_SPECTRUM, *(name.replace("-", " ") for name in names)]
    return (
        f"Mean squared error of log p_k over the band:\n\n{_table(header, errors)}\n\n"
        f"Spectra per second, one set after the other:\n\n{_table(header, speeds)}\n\n"
        f"{_closed(f'{_spectrum_footnote(found)} {_versions(found)}', found)}"
    )


def assumed_k_max(results):
    """Return what a wrong k_max costs."""
    found = results["optimum"]
    case = found["cases"][max(found["cases"], key=int)]
    rows = [
        [str(one["k_max"]), *(_error(one[name]) for name in ("error", "standard_error", "expected_error"))]
        for one in case["assumed"]
    ]
    text = (
        f"Functions of k_max = {case['k_max']}, {case['set_size']} samples without noise, k = 1 … {case['k_fin']}, "
        f"{case['sets']:,} sets:"
    )
    header = ("assumed k_max", "mean squared error", "std. error", "expected under the assumption")
    return f"{text}\n\n{_closed(_table(header, rows), found)}"


def gpu(results):
    """Return what runs on GPUs have shown: parts, rates, errors and times; or that there was none."""
    runs = [found for name, found in results.items() if name.startswith("gpu ")]
    return "\n\n".join(map(_gpu_run, runs)) or "No results of a GPU are there yet: not measured."


def gpu_host(results):
    """Return what a step on the cuda backend costs the host in Python."""
    found = results["gpu_host"]
    header = (f"{_network(found['case'])}, Python alone", "time", f"against {next(iter(found['seconds']))}")
    first = next(iter(found["seconds"].values()))["median"]
    rows = [
        [name, f"{1e6 * of['median']:.0f} µs", f"{_significant(of['median'] / first)} {TIMES}"]
        for name, of in found["seconds"].items()
    ]
    return f"{_table(header, rows)}\n\n{_closed(_machine(found) + '.', found)}"


def _layers_on_cores(layers):
    """Show what the products of a layer take with their finish, by our tiles and by cuBLAS."""
    header = (
        *(f"products of a layer, {layers[0]['elements']:,} elements", "cuBLAS and a pass", "our tile", "ratio"),
        *("our tile of warps, where the other is one of warpgroups", "as it is done where activations are in pairs"),
    )
    lines = []
    for of in layers:
        for way, one in of["seconds"].items():
            cublas, ours, *others = (
                f"{_milliseconds(one[name])} ms" if name in one else "" for name in ("cublas", "ours", "warps", "pairs")
            )
            ratio = f"{_significant(one['cublas'] / one['ours'])} {TIMES}"
            lines.append([f"{of['width']:,} wide, {of['precision']}, {way}", cublas, ours, ratio, *others])
    return _table(header, lines)


def _gpu_run(found):
    parts = [f"**{found['gpu']['name']}**, {found['date'][:10]}. {_versions(found)}"]
    header, rows = ("part", "", "seconds"), found["parts"].items()
    parts.append(_table(header, [[name, part["status"], f"{part['seconds']:.0f}"] for name, part in rows]))
    if rates := found.get("rates"):
        copy, sgemm = rates["copy"]["best"] / 1e9, rates["sgemm"]["best"] / 1e12
        rows, inner, columns = rates["products"]["shape"]
        text = f"Copy {copy:,.0f} GB/s, SGEMM {sgemm:,.1f} TFLOP/s ({rates['sgemm']['size']:,} square, cuBLAS)."
        header = (f"{rows:,} {TIMES} {inner:,} {TIMES} {columns:,}, float32", "cuBLAS", "our tile", "ratio")
        lines = [
            [way, *(f"{one[name] / 1e12:.1f} TFLOP/s" for name in ("cublas", "ours")), _percent(one["ratio"])]
            for way, one in rates["products"]["by_way"].items()
        ]
        parts.append(f"{text}\n\n{_table(header, lines)}")
        if layers := rates.get("layers"):
            parts.append(_layers_on_cores(layers))
    if errors := found.get("errors"):
        header = ("largest median error, float32", *(CONTENDERS_ON_GPU[name].label for name in errors[0]["errors"]))
        lines = [
            [_network(case), *(f"{max(of.values()):.1e}" for of in case["errors"].values())] for case in errors
        ]  # fmt: skip
        parts.append(_table(header, lines))
    if training := found.get("training"):
        ways = list(training[0]["seconds"])
        header = ("a step of training, float32, its batch drawn by", *ways)
        lines = [[_network(case), *(_time({"seconds": case["seconds"][way]}) for way in ways)] for case in training]
        parts.append(_table(header, lines))
    if cases := found.get("cases"):
        for precision in dict.fromkeys(case["precision"] for case in cases):
            own = [case for case in cases if case["precision"] == precision]
            parts += [_gpu_times(found, own, task, precision) for task in costs.TASKS]
    return _closed("\n\n".join(parts), found)


def _gpu_times(found, cases, task, precision):
    names = list(cases[0][task]["contenders"])
    header = (NETWORK, *(CONTENDERS_ON_GPU[name].label for name in names), "fastest framework against ours", "TFLOP/s")
    rows = []
    for case in cases:
        contenders, fastest = case[task]["contenders"], case[task]["fastest_framework"]
        ours = contenders[OURS_ON_GPU]
        rate = ours["flops"] / ours["seconds"]["median"] / 1e12 if "seconds" in ours else None
        rows.append(
            [
                _network(case),
                *(_with_ratio(name, contenders[name]) for name in names),
                _ratio(fastest["ratio"]) if fastest and fastest["ratio"] else "",
                "" if rate is None else _significant(rate),
            ]
        )
    kind = {"float32": "true float32", "tf32": "TF32"}.get(precision, precision)
    text = (
        f"{WORDS[task].capitalize()}, {kind} ({_sets(found)}): median time and its ratio to ours; for fastperm and for "
        "the fastest framework of each round, quartiles in brackets."
    )
    return f"{text}\n\n{_table(header, rows)}"


_SPECTRUM = ("N", "k_max", "k", "noise")


def _spectrum_cases(found):
    return [case for _, case in sorted(found["cases"].items(), key=lambda item: int(item[0])) if "estimators" in case]


def _spectrum_setting(case):
    band = f"{case['frequencies'][0]} … {case['frequencies'][-1]}"
    return [str(case["set_size"]), str(case["k_max"]), band, f"{case.get('noise', 0):g}"]


def _spectrum_footnote(found):
    return f"{found['method']['sets']:,} sets, the same functions for all; {_machine(found)}."


def _error(value):
    """Return an error with three digits, or only its size where it is a matter of rounding."""
    return "< 1e-12" if value < 1e-12 else f"{value:.3g}"


def _percent_exactly(share):
    return f"{100 * share:.1f} %"


def _beside_frameworks(found, task):
    columns = (OURS, *FRAMEWORKS, PRODUCTS)
    header = (NETWORK, *(CONTENDERS[name].label for name in columns), "fastest framework against ours", "rounds")
    rows = []
    for case in found["cases"]:
        contenders = case[task]["contenders"]
        fastest = case[task]["fastest_framework"]
        rows.append(
            [
                _network(case),
                *(_with_ratio(name, contenders[name]) if name in contenders else "" for name in columns),
                _ratio(fastest["ratio"]) if fastest else "",
                str(case[task]["rounds"]),
            ]
        )
    footnote = (
        f"{WORDS[task].capitalize()} ({_sets(found)}): median time and its ratio to ours; for fastperm and for the "
        f"fastest framework of each round, quartiles in brackets. {_machine(found)}. {_versions(found)}"
    )
    return f"{_table(header, rows)}\n\n{_closed(footnote, found)}"


def _contender_row(name, contender):
    label = f"**{contender['label']}**" if name.startswith("fastperm") else contender["label"]
    if "not_measured" in contender:
        return [label, _not_measured(contender), "", "", ""]
    ratio = f"{_significant(contender['ratio']['median'])} {TIMES}" if contender["ratio"] else ""
    if contender["parameters"] is None:  # a yardstick and no network
        return [label, _time(contender), ratio, "", ""]
    peak = f"{contender['peak_bytes'] / 1e6:,.0f} MB"
    return [label, _time(contender), ratio, f"{contender['parameters']:,}", peak]


def _with_ratio(name, contender):
    if "not_measured" in contender:
        return _not_measured(contender)
    if name in (OURS, OURS_ON_GPU):
        return _time(contender)
    ratio = f", {_significant(contender['ratio']['median'])} {TIMES}" if contender["ratio"] else ""
    return f"{_milliseconds(contender['seconds']['median'])} ms{ratio}"


def _fastest(found):
    fastest = found["fastest_framework"]
    if fastest is None:
        return ["", ""]
    contender = found["contenders"][fastest["name"]]
    return [f"{_milliseconds(contender['seconds']['median'])} ms ({contender['label']})", _ratio(fastest["ratio"])]


def _share_of_products(found):
    """Return the rate of ours over that of the products alone, which is a ratio of times: the flops are the same."""
    products = found["contenders"].get(PRODUCTS, {})
    return _percent(products["ratio"]["median"]) if products.get("ratio") else ""


def _peak(point):
    return f"{point['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in point else _not_measured(point)


def _not_measured(what):
    return f"not measured: {what['not_measured']}".replace("|", "\\|")


def _headline(found):
    headline = Case()
    for case in found["cases"]:
        if (case["width"], case["depth"]) == (headline.width, headline.depth):
            return case
    raise ValueError(f"the results lack the headline network, {headline.width}x{headline.depth}")


def _network(case):
    return f"{case['width']} {TIMES} {case['depth']}"


def _sets(found):
    """Return in words how many sets there were, and where there were fewer."""
    cases = found["cases"]
    usual = cases[0]["batch"]
    other = ", ".join(f"{case['batch']} for {_network(case)}" for case in cases if case["batch"] != usual)
    return f"{usual} sets of {cases[0]['set_size']} elements" + (f"; {other}" if other else "")


def _rounds(found):
    numbers = {case[task]["rounds"] for case in found["cases"] for task in costs.TASKS}
    return _range(min(numbers), max(numbers)) if len(numbers) > 1 else str(*numbers)


def _machine(found):
    machine = found["machine"]
    return f"{machine['cores']} cores of {machine['cpu']} ({machine['microarchitecture']}), {found['date'][:10]}"


def _versions(found):
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    settings = ", ".join(f"{name}={value}" for name, value in found["environment"].items())
    return f"{packages}." + (f" Environment: {settings}." if settings else "")


def _closed(text, found):
    return f"{text}\n\n**A quick trial of the benchmark, not a result.**" if found["quick"] else text


def _table(header, rows):
    lines = [header, ("---", *("---:",) * (len(header) - 1)), *rows]
    first, rule, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, rule.replace(" ", ""), *rest])


def _time(contender):
    if "not_measured" in contender:
        return _not_measured(contender)
    seconds = contender["seconds"]
    spread = _range(*(_milliseconds(seconds[name]) for name in ("q1", "q3")))
    return f"{_milliseconds(seconds['median'])} ms ({spread})"


def _ratio(ratio):
    spread = _range(*(_significant(ratio[name]) for name in ("q1", "q3")))
    return f"{_significant(ratio['median'])} {TIMES} ({spread})"


def _range(low, high):
    return f"{low}\N{EN DASH}{high}"


def _percent(share):
    return f"{100 * share:.0f} %"


def _milliseconds(seconds):
    return _significant(1e3 * seconds)


def _significant(value):
    """Return a number with three significant digits, without exponent."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


BLOCKS = {
    block.__name__: block
    for block in (
        *(train_step, networks, roofline, steps, predictions, bitwise, angular, angular_layer),
        *(growth, memory, active_units),
        *(optimum, baselines, assumed_k_max, training, gpu, gpu_host),
    )
}
