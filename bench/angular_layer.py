"""Time of an angular layer beside an equivariant one of the same width, on the cpu backend.

    python bench/angular_layer.py            # bench/results/angular_layer.json
    python bench/angular_layer.py --quick    # a trial, written nowhere

A layer within a network: its input is the activation of another, half of it zero, and its own gradient is dense.
"""

import numpy as np
import results
from contenders import ORDERS, Case
from tqdm import tqdm
from turns import half_turn

from fastperm import Sets

WIDTHS = (16, 32, 64, 128)


def layers(case, orders):
    """Return the functions that take a layer forward and back, for each kind of layer."""
    generator = np.random.default_rng(case.seed)
    T, K = case.batch * case.set_size, case.width
    x = np.maximum(generator.standard_normal((T, K)), 0).astype(case.dtype)
    dy = generator.standard_normal((T, K)).astype(case.dtype)
    sets = Sets.dense(x.reshape(case.batch, case.set_size, K))
    settings = {"symmetry": "circle", "orders": orders}
    # The second layers of two networks; what is timed does not depend on the first ones.
    plain, circle = (case._replace(depth=2).network("cpu", **how) for how in ({}, settings))
    E = np.empty((T, 2 * orders), case.dtype)
    circle.kernels.angular_basis(generator.uniform(0, 2 * np.pi, T).astype(case.dtype), E=E)
    return {"equivariant": _ways(plain.layers[1], x, dy, sets), "angular": _ways(circle.layers[1], x, dy, sets, E=E)}


def _ways(layer, x, dy, sets, **shared):
    _, saved = layer.forward(x, sets, **shared)
    forward, backward = lambda: layer.forward(x, sets, **shared), lambda: layer.backward(dy, saved, sets, **shared)
    return {"forward": forward, "backward": backward}


def measure(case, orders, rounds):
    """Return the times of both kinds, each way, and the ratio round by round, as medians and quartiles."""
    kinds = layers(case, orders)
    seconds = {kind: {way: [] for way in ways} for kind, ways in kinds.items()}
    for _ in range(rounds):
        for kind, ways in kinds.items():
            for way, function in ways.items():
                half_turn(function)
                seconds[kind][way].append(half_turn(function))
    both = {kind: {**of, "both": list(map(sum, zip(*of.values(), strict=True)))} for kind, of in seconds.items()}
    ratios = {
        way: [angular / plain for angular, plain in zip(both["angular"][way], both["equivariant"][way], strict=True)]
        for way in both["angular"]
    }
    found = {
        kind: {way: {**results.quartiles(times), "rounds": times} for way, times in of.items()}
        for kind, of in both.items()
    }
    return {"width": case.width, **found, "ratio": {way: results.quartiles(of) for way, of in ratios.items()}}


def main():
    """Run the command line."""
    parser = results.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    case, widths, rounds = Case(), WIDTHS, options.rounds
    if options.quick:
        case, widths, rounds = case._replace(batch=8), WIDTHS[:2], 2
    result = results.start("angular_layer", quick=options.quick)
    result |= {"case": case._asdict(), "orders": ORDERS}
    result["method"] = {"rounds": rounds, "order": "kinds and ways in turn; the second half of a turn is timed"}
    result["widths"] = [measure(case._replace(width=K), ORDERS, rounds) for K in tqdm(widths, unit="width")]
    for row in result["widths"]:
        ratios = ", ".join(f"{way} {of['median']:.2f}" for way, of in row["ratio"].items())
        print(f"width {row['width']:4}: angular over equivariant {ratios}")
    results.write(result, options)


if __name__ == "__main__":
    main()
