"""The rivals of the benchmark compute what we compute, and in float32 we are as exact as they are.

A rival is timed only because these tests hold.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastperm.losses import mean_squared_error

# bench/ is no package and is not installed; at the end of the path it shadows nothing.
sys.path.append(str(Path(__file__).parents[1] / "bench"))

import active_units
import angular_layer
import compare
import costs
import estimators
import machine_rates
import memory
import memory_growth
import plots
import scaling
import table
import turns
from contenders import BITWISE, CIRCLE, CONTENDERS, OURS, PRODUCTS, Case, Ours
from errors import evaluate, median_errors, relative_error, worse
from worker import NotMeasuredError, Worker

pytestmark = [
    pytest.mark.rivals,
    # torch.compile imports a part of PyTorch that uses another part that is deprecated.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]

SAME_NETWORK = [name for name in CONTENDERS if name not in (OURS, CIRCLE, "dense-network", PRODUCTS)]
ODD = Case(width=17, depth=3, out_features=3, set_size=33, batch=5)
# The headline network on fewer sets, and all of them in one test below.
HEADLINE = Case(batch=16)
SMALL = (
    Case(width=1, depth=1, out_features=1, set_size=1, batch=1),
    Case(width=3, depth=2, set_size=5, batch=3),
    ODD,
    Case(width=33, depth=2, set_size=100, batch=7),
)


@pytest.fixture(autouse=True)
def _jax_float64():
    """Let JAX keep float64 arrays; it rounds them to float32 by default."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


class LayerByLayer(Ours):
    """Our network by its public forward and backward pass, where `train_step` takes whole sets through all layers."""

    def evaluate(self, sets, targets):
        prediction, saved = self.net.forward(sets)
        loss, dy = mean_squared_error(prediction, targets, self.net.kernels)
        self.net.zero_gradients()
        self.net.backward(dy, saved)
        return prediction, loss, dict(self.net.gradients)


def title(case):
    return f"{case.width}x{case.depth}-{case.batch}x{case.set_size}"


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in SAME_NETWORK
        for case in (*SMALL, HEADLINE)
        # Which compiles what is tested without, for a quarter of a minute each.
        if name != "torch-compile" or case in (ODD, HEADLINE)
    ],
    ids=lambda value: title(value) if isinstance(value, Case) else value,
)
def test_float64_equals_ours(name, case):
    case = case._replace(dtype="float64")
    batch = case.sample()
    theirs = evaluate(CONTENDERS[name].make(case), *batch)
    assert np.linalg.norm(theirs["head.bias"]) > 0
    for contender in (Ours(case.network("cpu")), LayerByLayer(case.network("cpu"))):
        ours = evaluate(contender, *batch)
        assert ours.keys() == theirs.keys()
        errors = {what: relative_error(ours[what], theirs[what]) for what in ours}
        assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("case", [ODD, HEADLINE], ids=title)
@pytest.mark.parametrize("name", SAME_NETWORK)
def test_predictions_equal_ours(name, case, dtype, tolerance):
    """The timed prediction, before and after a step: it must follow the parameters."""
    case = case._replace(dtype=dtype)
    x, targets = case.sample()
    rivals = [CONTENDERS[which].make(case) for which in (OURS, name)]
    batches = [rival.batch(x, targets) for rival in rivals]
    before = None
    for _ in range(2):
        ours, theirs = (rival.predict(batch[0]) for rival, batch in zip(rivals, batches, strict=True))
        assert theirs.dtype == x.dtype
        assert relative_error(theirs, ours) <= tolerance
        assert before is None or relative_error(ours, before) > 100 * tolerance
        before = ours
        for rival, batch in zip(rivals, batches, strict=True):
            rival.step(*batch)


@pytest.mark.parametrize("name", SAME_NETWORK)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_same_losses_over_twenty_steps(name, dtype, tolerance):
    """The timed step itself, Adam included, is the same step.

    Float64 shows that the rule is the same to the last detail: at the second step already, ε on the other side of the
    bias correction would show. In float32 rounding (6e-8) grows from step to step, since Adam divides small gradients
    by their own size, and a unit on the edge of its ReLU may fall to either side: 7e-6 was seen, and 1e-4 still leaves
    no room for a different step.
    """
    case = HEADLINE._replace(dtype=dtype)
    x, targets = case.sample()
    losses = []
    for which in (OURS, name):
        contender = CONTENDERS[which].make(case)
        batch = contender.batch(x, targets)
        losses.append([contender.step(*batch) for _ in range(20)])
    ours, theirs = np.array(losses)
    assert ours[-1] < ours[0] / 2
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)


def test_pytorch_rounds_to_bfloat16():
    case = Case(width=32, depth=2, set_size=33, batch=5)
    x, targets = case.sample()
    ours = evaluate(Ours(case.network("cpu")), x, targets)
    rival = CONTENDERS["torch-eager"].make(case._replace(precision="bfloat16"))
    theirs = evaluate(rival, x, targets)
    # Factors by 2^-8 at most, in three products, and what autocast keeps is rounded, too.
    errors = {what: relative_error(theirs[what], ours[what]) for what in ours}
    assert 1e-3 < max(errors.values()) < 0.1, errors
    batch = rival.batch(x, targets)
    assert relative_error(rival.predict(batch[0]), ours["prediction"]) < 0.05
    assert rival.predict(batch[0]).dtype == x.dtype
    assert rival.step(*batch) == pytest.approx(float(theirs["loss"]), rel=1e-3)


def test_jax_is_asked_to_round_to_bfloat16():
    case = Case(width=4, depth=1, set_size=3, batch=1, precision="bfloat16")
    rival, (x, _) = CONTENDERS["jax-jit"].make(case), case.sample()
    products = re.findall("dot_general .*", rival.forward.lower(rival.parameters, x).as_text())
    assert len(products) == 3  # JAX on a processor does not do what they say
    assert all("lhs_precision_type = bf16, rhs_precision_type = bf16" in text for text in products)


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_timed_case_takes_the_same_steps(name):
    case = Case()
    x, targets = case.sample()
    losses = []
    for which in (OURS, name):
        contender = CONTENDERS[which].make(case)
        assert contender.n_parameters == 25_348
        batch = contender.batch(x, targets)
        losses.append([contender.step(*batch) for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "draws"),
    [
        (Case(width=3, depth=2, set_size=5, batch=3), 100),
        (ODD, 100),
        (Case(width=33, depth=2, set_size=100, batch=7), 100),
        (HEADLINE, 25),
        (Case(width=128, depth=2, set_size=64, batch=8), 100),
    ],
    ids=lambda value: title(value) if isinstance(value, Case) else None,
)
def test_float32_error_at_most_twice_that_of_pytorch(case, draws):
    # 16 sets of the headline network: with 256 there is a unit on the edge of its ReLU in every draw.
    ways = {
        "whole sets": lambda drawn: Ours(drawn.network("cpu")),
        "layer by layer": lambda drawn: LayerByLayer(drawn.network("cpu")),
        "PyTorch": CONTENDERS["torch-eager"].make,
    }
    found = median_errors(case, range(draws), ways)
    theirs = found.pop("PyTorch")
    assert not {way: worst for way, ours in found.items() if (worst := worse(ours, theirs))}


def test_dense_network_gradient_by_central_differences():
    from rivals.dense_network import DenseNetwork

    case = Case(out_features=3, set_size=5, batch=4, dtype="float64")
    dense = DenseNetwork(case.network(), case.set_size, hidden=7)
    assert dense.n_parameters == 10 * 7 + 7 + 7 * 3 + 3
    batch = dense.batch(*case.sample())
    gradients = dense.evaluate(*batch)[2]
    assert gradients.keys() == dense.parameters.keys()
    h = 1e-5
    for name, parameter in dense.parameters.items():
        numeric = np.empty_like(parameter)
        for index in np.ndindex(parameter.shape):
            value = parameter[index]
            losses = []
            for parameter[index] in (value + h, value - h):
                losses.append(dense.evaluate(*batch)[1])
            parameter[index] = value
            numeric[index] = (losses[0] - losses[1]) / (2 * h)
        assert relative_error(gradients[name], numeric) <= 1e-7, name


def test_dense_network_is_the_papers_and_learns():
    case = Case(batch=8)
    dense = CONTENDERS["dense-network"].make(case)
    assert dense.parameters["hidden.weight"].size == 2 * 512 * 2048
    batch = dense.batch(*case.sample())
    losses = [dense.step(*batch) for _ in range(60)]
    assert losses[-1] < losses[0] / 10


def test_costs_on_paper():
    case = Case(width=3, depth=2, out_features=5, set_size=7, batch=11)
    forward = 2 * (7 * 11 + 11) * (2 * 3 + 3 * 3) + 2 * 11 * 3 * 5
    gradient_of_the_input = 2 * (7 * 11 + 11) * 2 * 3
    assert costs.flops(case, costs.PREDICT) == forward
    assert costs.flops(case, costs.STEP) == 3 * forward - gradient_of_the_input
    dense = CONTENDERS["dense-network"]
    assert dense.flops(case, costs.PREDICT) == 2 * 11 * 2048 * (14 + 5)
    assert dense.flops(case, costs.STEP) == 2 * 11 * 2048 * (2 * 14 + 3 * 5)

    parameters = 2 * 2 * 3 + 3 + 2 * 3 * 3 + 3 + 3 * 5 + 5
    x, y = 7 * 11 * 2, 7 * 11 * 3  # numbers in the batch and in the output of a layer
    data = x + 11 * 5
    assert costs.least_bytes(case, costs.PREDICT) == 4 * (data + parameters)
    assert costs.least_bytes(case, costs.STEP) == 4 * (data + 8 * parameters)
    between = 2 * y  # the first output, written and read
    assert costs.layer_by_layer_bytes(case, costs.PREDICT) == 4 * (data + parameters + between)
    # Back: write and read the last output, read both inputs and the first output, write and read its gradient.
    back = 2 * y + (x + y) + y + 2 * y
    assert costs.layer_by_layer_bytes(case, costs.STEP) == 4 * (data + 8 * parameters + between + back)


@pytest.mark.parametrize("task", costs.TASKS)
@pytest.mark.parametrize("depth", [1, 3])
def test_matrix_products_are_those_of_the_network(task, depth, monkeypatch):
    case = Case(width=6, depth=depth, out_features=5, set_size=7, batch=11)
    products = CONTENDERS[PRODUCTS].make(case)
    operands, targets = products.batch(*case.sample())
    taken = []

    def matmul(a, b, *, out, original=np.matmul):
        assert a.all()
        assert b.all()
        assert not any(np.may_share_memory(out, operand) for operand in (a, b))
        assert out.shape == (len(a), b.shape[1])
        taken.append((*a.shape, b.shape[1]))
        return original(a, b, out=out)

    monkeypatch.setattr(np, "matmul", matmul)
    products.step(operands, targets) if task == costs.STEP else products.predict(operands)
    assert sorted(taken) == sorted(costs.products(case, task))


TINY = Case(width=4, depth=1, set_size=8, batch=4)


# To a worker, a network that PyTorch compiles is one that it does not; but it compiles for half a minute.
@pytest.mark.parametrize("name", sorted(CONTENDERS.keys() - {"torch-compile"}))
def test_worker_measures(name):
    with Worker(name, TINY) as worker:
        assert worker.description.keys() == set(costs.TASKS)
        for task, description in worker.description.items():
            assert 0 < worker.run(task) < 60
            assert description["parameters"] == CONTENDERS[name].make(TINY).n_parameters
            assert description["flops"] == CONTENDERS[name].flops(TINY, task)
            assert 0 <= description["peak_bytes"] < 1e9


def test_worker_that_dies_while_it_serves_gives_its_status():
    with Worker(OURS, TINY) as worker:
        worker._process.kill()
        worker._process.wait()
        for _ in range(2):
            with pytest.raises(NotMeasuredError, match="ended with status -9: no message"):
                worker.run(costs.STEP)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ImportError('no torch here')", "not installed \\(no torch here\\)"),
        ("raise ValueError('broken\\nand more')", "ValueError: broken$"),
        ("import os; os.write(2, b'out of luck'); os._exit(3)", "status 3: out of luck$"),
    ],
)
def test_contender_that_cannot_be_measured_gives_its_reason(module, reason, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(NotMeasuredError, match=reason):
        Worker("torch-eager", TINY)
    measured = compare.measure(TINY, [OURS, "torch-eager"], budget=0, rounds=(2, 3))
    for task in costs.TASKS:
        assert measured[task]["rounds"] == 2
        assert measured[task]["fastest_framework"] is None
        assert measured[task]["contenders"]["torch-eager"].keys() == {"label", "not_measured"}
        assert measured[task]["contenders"][OURS]["ratio"]["median"] == 1


def test_ratios_are_taken_round_by_round():
    found = compare.summary({OURS: [1.0, 10.0, 1.0], "torch-eager": [2.0, 30.0, 4.0], "jax-jit": [3.0, 20.0, 5.0]})
    eager = found["contenders"]["torch-eager"]
    assert eager["seconds"] == {"median": 4.0, "q1": 3.0, "q3": 17.0, "rounds": [2.0, 30.0, 4.0]}
    assert eager["ratio"] == {"median": 3.0, "q1": 2.5, "q3": 3.5}
    assert found["fastest_framework"] == {"name": "torch-eager", "ratio": {"median": 2.0, "q1": 2.0, "q3": 3.0}}
    alone = compare.summary({"jax-jit": [1.0, 2.0]})
    assert alone["contenders"]["jax-jit"]["ratio"] is None


def test_plan_leaves_out_what_takes_too_long():
    assert compare.plan(64, 4) == (Case(), list(CONTENDERS))
    assert compare.plan(32, 3)[1] == [OURS, *compare.FRAMEWORKS]
    assert compare.plan(512, 2)[1] == [OURS, *compare.FRAMEWORKS, PRODUCTS]
    assert compare.plan(1024, 2) == (Case(width=1024, depth=2, batch=64), [OURS, PRODUCTS])


def test_batch_that_would_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 10e9)
    before = [{"batch": 1, "peak_bytes": 3e9}]
    found = memory_growth._peak("no such contender", Case(batch=4), before)
    assert found == {"not_measured": "should need 12 GB, 10 GB are free"}
    assert "not_measured" in memory_growth._peak("no such contender", Case(batch=8), [*before, found])


def test_half_turn_repeats_what_is_short(monkeypatch):
    clock = iter([0, 2, 4, 6])
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    calls = []
    assert turns.half_turn(lambda: calls.append(1), seconds=5) == 2
    assert len(calls) == 3
    clock = iter([0, 9])
    assert turns.half_turn(lambda: calls.append(1), seconds=5) == 9


def test_slope_is_that_of_the_logarithms(monkeypatch):
    assert scaling.sizes(1e6) == [10_000, 31_623, 100_000, 316_228, 1_000_000]
    times = iter([size**2 for size in (1, 3, 9) * 2 for half in range(2)])
    monkeypatch.setattr(scaling, "half_turn", lambda function: next(times))
    cases = [Case(width=1, depth=1, set_size=size, batch=1) for size in (1, 3, 9)]
    found = scaling.measure(scaling.ONE_SET, costs.PREDICT, cases, rounds=2)
    assert [point["seconds"]["median"] for point in found["points"]] == pytest.approx([1, 9, 81])
    assert found["slope"] == pytest.approx(2)


def test_from_measurement_to_tables_and_plots(tmp_path, monkeypatch):
    folder, readme = tmp_path / "results", tmp_path / "README.md"

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
        program.main()

    contenders = (OURS, BITWISE, CIRCLE, "dense-network", PRODUCTS)
    networks = ["--networks", "3x1", "64x4", "--budget", 0, "--contenders", *contenders]
    monkeypatch.setattr(memory_growth, "NAMES", (OURS,))
    programs = (machine_rates, active_units, angular_layer, scaling, memory_growth, estimators)
    for program, *arguments in ((compare, *networks), *((program,) for program in programs)):
        run(program, "--quick", *arguments, "--out", folder / f"{program.__name__}.json")
    # In a process of its own: it puts something else in the place of CuPy.
    gpu_host = Path(compare.__file__).with_name("gpu_host.py")
    subprocess.run([sys.executable, gpu_host, "--quick", "--out", folder / "gpu_host.json"], check=True)
    out = folder / "compare.json"
    results = json.loads(out.read_text())
    assert [(case["width"], case["depth"]) for case in results["cases"]] == [(3, 1), (64, 4)]
    assert {"machine", "versions", "environment", "date", "method"} <= results.keys()
    results["cases"][1]["step"]["contenders"]["jax-jit"] = {"label": "JAX", "not_measured": "a|b"}
    out.write_text(json.dumps(results))

    run(plots, "--results", folder, "--figures", tmp_path / "figures")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "figures").iterdir()}
    assert sizes.keys() == {"networks.png", "growth.png", "memory.png", "optimum.png"}
    assert max(sizes.values()) < 100_000

    blocks = "".join(f"<!-- bench:{name} -->\nearlier\n<!-- /bench -->\n\n" for name in table.BLOCKS)
    readme.write_text(f"# Title\n\n{blocks}The end.\n")
    run(table, "--results", folder, "--documents", readme)
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- bench:train_step -->\n")
    assert text.endswith("\n<!-- /bench -->\n\nThe end.\n")
    assert "earlier" not in text
    assert "| **fastperm, cpu** | " in text
    assert " | 1.00 \N{MULTIPLICATION SIGN} | 25,348 | " in text
    assert "| JAX | not measured: a\\|b |  |  |  |" in text
    assert results["date"][:10] in text
    assert (
        text.count("not a result") == text.count(table.END) - 2
    )  # no result of a GPU; what networks learnt is no trial
    for line in re.findall(r"^\|.*$", text, re.MULTILINE):
        assert line.count("|") - line.count("\\|") >= 3
    run(table, "--results", folder, "--documents", readme)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", "found 0 beginnings"),
        ("<!-- bench:growth -->\nno end", "found 1 beginnings and 0 ends"),
        ("<!-- bench:growths -->\n<!-- /bench -->", "no block called 'growths'"),
        ("<!-- bench:growth -->\n<!-- /bench -->", "the results lack 'scaling' for the block 'growth'"),
    ],
)
def test_table_refuses_what_it_cannot_fill(text, message):
    with pytest.raises(ValueError, match=message):
        table.rewritten(text, {})
