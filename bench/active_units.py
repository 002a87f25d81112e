"""Time against the share of units that are on: the cpu backend leaves out the zeros that ReLU makes.

    python bench/active_units.py            # bench/results/active_units.json
    python bench/active_units.py --quick    # a trial, written nowhere

The headline network as it starts, with all its biases shifted, and trained; and that of angular layers. Networks take
turns.
"""

import costs
import numpy as np
import results
from contenders import ORDERS, Case
from tqdm import tqdm
from turns import half_turn

from fastperm import PowerSpectrum, train

SHIFTS = (-1.0, -0.5, 0.5, 1.0)
TRAINING = {"steps": 4000, "batch": 32}


def networks(case, training):
    """Return a description and a network for each row of the table."""
    shifts = {"as it starts": np.zeros(case.depth)}
    shifts |= {f"all biases {shift:+g}": np.full(case.depth, shift) for shift in SHIFTS}
    # Each bias far above all that the layer below can take away.
    all_on = {"every unit on": 100.0 * 30.0 ** np.arange(case.depth)}
    made = [(label, _shifted(case, shift)) for label, shift in (shifts | all_on).items()]
    net = case.network("cpu")
    train(net, PowerSpectrum(case.out_features, case.out_features, case.set_size), seed=case.seed, **training)
    made.append((f"after {training['steps']} steps of {training['batch']} sets", net))
    for label, shift in ({"as it starts": shifts["as it starts"]} | all_on).items():
        made.append((f"angular, orders={ORDERS}: {label}", _shifted(case, shift, symmetry="circle", orders=ORDERS)))
    return made


def _shifted(case, shift, **settings):
    net = case.network("cpu", **settings)
    for i in range(net.depth):
        net.parameters[f"layers.{i}.bias"] += net.dtype.type(shift[i])
    return net


def share_on(net, sets):
    """Return the share of units that are on, in each layer."""
    _, saved = net.forward(sets)
    return [float((layer.y > 0).mean()) for layer in saved.layers]


def measure(case, training, rounds):
    """Return shares and times of every network."""
    x, targets = case.sample()
    rows, work = [], []
    for label, net in networks(case, training):
        # Only the gradients are computed: a step of Adam would change the network that is timed.
        sets = net.as_sets(x)
        rows.append({"network": label, "share_on": share_on(net, sets)})
        work.append(
            {
                costs.STEP: lambda net=net, sets=sets: net.loss_and_gradients(sets, targets),
                costs.PREDICT: lambda net=net, sets=sets: net(sets),
            }
        )
    seconds = [{task: [] for task in costs.TASKS} for _ in work]
    for _ in tqdm(range(rounds), unit="round"):
        for times, functions in zip(seconds, work, strict=True):
            for task, function in functions.items():
                half_turn(function)
                times[task].append(half_turn(function))
    for row, times in zip(rows, seconds, strict=True):
        row |= {task: {**results.quartiles(times[task]), "rounds": times[task]} for task in costs.TASKS}
    return rows


def main():
    """Run the command line."""
    parser = results.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    case, training, rounds = Case(), TRAINING, options.rounds
    if options.quick:
        case, training, rounds = case._replace(batch=16), {"steps": 20, "batch": 4}, 2
    result = results.start("active_units", quick=options.quick)
    result |= {"case": case._asdict(), "training": training}
    result["method"] = {"rounds": rounds, "order": "networks in turn; the second half of a turn is timed; no Adam"}
    result["networks"] = measure(case, training, rounds)
    for row in result["networks"]:
        shares = " ".join(f"{share:.2f}" for share in row["share_on"])
        times = ", ".join(f"{task} {1e3 * row[task]['median']:.2f} ms" for task in costs.TASKS)
        print(f"{row['network']:28} on {shares}: {times}")
    results.write(result, options)


if __name__ == "__main__":
    main()
