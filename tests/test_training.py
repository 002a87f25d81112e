import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cases import BACKENDS

import fastperm
from fastperm.checkpoints import load_checkpoint
from fastperm.losses import mean_squared_error

TASK = fastperm.PowerSpectrum(k_max=2, k_fin=2, set_size=20)


def make_net(**options):
    return fastperm.DeepSet(2, 8, 2, 2, seed=0, **options)


def run(net, task=TASK, *, steps, **options):
    return fastperm.train(net, task, steps=steps, batch=8, progress=False, **{"every": 10, **options})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_forward_loss_backward_adam(backend):
    sets, targets = TASK.sample(8, 0)
    net, by_hand = (make_net(backend=backend, dtype="float64") for _ in range(2))
    optimizer, other = fastperm.Adam(), fastperm.Adam()
    for _ in range(3):
        loss = fastperm.train_step(net, sets, targets, optimizer)
        y, saved = by_hand.forward(sets)
        wanted, dy = mean_squared_error(y, targets, by_hand.kernels)
        by_hand.zero_gradients()
        by_hand.backward(dy, saved)
        other.step(by_hand.parameters, by_hand.gradients)
        assert loss == pytest.approx(wanted, rel=1e-12)
    # The same sums in another order: layer by layer here, set by set in train_step.
    np.testing.assert_allclose(net.parameters.flat, by_hand.parameters.flat, rtol=1e-9, atol=1e-12)


class Interrupted(fastperm.PowerSpectrum):
    """The task, with a Ctrl-C as a batch is drawn."""

    def __init__(self, batches):
        super().__init__(**{name: value for name, value in TASK.config().items() if name != "positions"})
        self.batches = batches

    def sample(self, batch, generator):
        self.batches -= 1
        if self.batches == 0:
            signal.raise_signal(signal.SIGINT)
        return super().sample(batch, generator)


def test_training_learns():
    # One frequency, known phase law: the error must fall well below that of the prior mean.
    task = fastperm.PowerSpectrum(k_max=1, k_fin=1, set_size=64)
    net = fastperm.DeepSet(2, 24, 2, 1, seed=0)
    history = fastperm.train(
        net, task, steps=600, batch=64, every=600, progress=False, optimizer=fastperm.Adam(learning_rate=3e-3)
    )
    assert history["validation_loss"][-1] < 0.5 * task.prior_mean_error()[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cosine_schedule_falls_to_zero(backend, tmp_path):
    net, by_hand = make_net(backend=backend), make_net(backend=backend)
    run(net, steps=10, schedule="cosine", seed=4, checkpoint=tmp_path / "c", optimizer=fastperm.Adam(0.01))
    rates = [0.01 * (1 + np.cos(np.pi * t / 10)) / 2 for t in range(10)]
    optimizer = fastperm.Adam(0.01)
    for step, rate in enumerate(rates, start=1):
        sets, targets = TASK.sample(8, np.random.default_rng(np.random.SeedSequence(4, spawn_key=(0, step))))
        fastperm.train_step(by_hand, sets, targets, optimizer, learning_rate=rate)
    np.testing.assert_array_equal(net.parameters.flat, by_hand.parameters.flat)
    assert optimizer.learning_rate == 0.01
    # Stopped half way, and at the same schedule again.
    halves, optimizer = make_net(backend=backend), fastperm.Adam(0.01)
    options = {"steps": 10, "schedule": "cosine", "seed": 4, "checkpoint": tmp_path / "h", "optimizer": optimizer}
    with pytest.raises(KeyboardInterrupt):
        run(halves, Interrupted(5), **options)
    run(halves, **options, resume=True)
    np.testing.assert_array_equal(net.parameters.flat, halves.parameters.flat)
    with pytest.raises(ValueError, match="schedule must be one of"):
        run(make_net(), steps=1, schedule="linear")


def test_a_schedule_needs_steps_that_take_a_rate():
    class Descent:
        learning_rate, steps = 0.1, 0

        def step(self, parameters, gradients):
            for name, gradient in gradients.items():
                parameters[name] -= self.learning_rate * gradient

    class Scheduled(Descent):
        def step(self, parameters, gradients, **settings):
            rates.append(settings["learning_rate"])

    net, rates = make_net(), []
    before = net.parameters.flat.copy()
    with pytest.raises(
        TypeError, match=r"schedule='cosine' needs an optimizer with step\(parameters.*Descent.*unexpected"
    ):
        run(net, steps=2, schedule="cosine", optimizer=Descent())
    np.testing.assert_array_equal(net.parameters.flat, before)
    run(net, steps=2, schedule="cosine", optimizer=Scheduled())
    assert rates == pytest.approx([0.1, 0.05])
    run(net, steps=2, optimizer=Descent())


def test_history_is_returned_and_written(tmp_path):
    history = run(make_net(), steps=25, checkpoint=tmp_path / "state.safetensors")
    assert history["step"] == list(range(1, 26))
    assert [s for s, v in zip(history["step"], history["validation_loss"], strict=True) if v == v] == [10, 20, 25]
    with (tmp_path / "state.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == history["step"]
    assert [float(r["loss"]) for r in rows] == history["loss"]
    assert [float(r["validation_loss"]) for r in rows if r["validation_loss"]] == [
        v for v in history["validation_loss"] if v == v
    ]


def test_history_goes_where_it_is_told(tmp_path):
    run(make_net(), steps=3, history=tmp_path / "deep" / "h.csv")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["h.csv"]


def test_own_validation_sets():
    sets, targets = TASK.sample(5, 99)
    net = make_net()
    history = run(net, steps=4, validate=(sets, targets))
    assert history["validation_loss"][-1] == pytest.approx(np.mean((net(sets) - targets) ** 2), rel=1e-5)
    assert all(np.isnan(run(make_net(), steps=3, validate=None)["validation_loss"]))


def test_reports_the_error_of_every_output():
    reports = []
    history = run(make_net(), steps=20, report=lambda step, errors: reports.append((step, errors)))
    assert [step for step, _ in reports] == [10, 20]
    for step, errors in reports:
        assert errors.shape == (2,)
        assert history["validation_loss"][step - 1] == errors.mean()


def test_batches_depend_on_the_seed():
    losses = [run(make_net(), steps=3, seed=seed)["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_is_bitwise(tmp_path, backend, dtype):
    whole = make_net(backend=backend, dtype=dtype)
    history = run(whole, steps=30)
    path = tmp_path / "state.safetensors"
    run(make_net(backend=backend, dtype=dtype), steps=13, checkpoint=path)
    resumed = fastperm.DeepSet(2, 8, 2, 2, seed=77, backend=backend, dtype=dtype)  # other weights: the file decides
    resumed_history = run(resumed, steps=30, checkpoint=path, resume=True)
    np.testing.assert_array_equal(resumed.parameters.flat, whole.parameters.flat)
    assert resumed_history["loss"] == history["loss"]
    assert resumed_history["seconds"] == sorted(resumed_history["seconds"])


def test_resume_without_a_checkpoint_starts_and_a_finished_run_stays(tmp_path):
    path = tmp_path / "state.safetensors"
    net = make_net()
    first = run(net, steps=5, checkpoint=path, resume=True)
    content = path.read_bytes()
    again = run(make_net(), steps=5, checkpoint=path, resume=True)
    assert again["loss"] == first["loss"]
    assert path.read_bytes() == content


SCRIPT = """
import sys, fastperm
class Slow(fastperm.PowerSpectrum):
    def sample(self, batch, generator):
        import time
        time.sleep(0.02)
        return super().sample(batch, generator)
net = fastperm.DeepSet(2, 8, 2, 2, seed=0)
print("started", flush=True)
fastperm.train(net, Slow(k_max=2, k_fin=2, set_size=20), steps=60, batch=8, every=10, progress=False,
               checkpoint=sys.argv[1], resume=True)
net.save(sys.argv[2])
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(path, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(load_checkpoint(path)[2]["step"]) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def test_resume_after_kill_9_is_bitwise(tmp_path):
    path, model = tmp_path / "state.safetensors", tmp_path / "model.safetensors"
    with start(SCRIPT, path, model) as process:
        wait_for_step(path, 30)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not model.exists()
    assert 30 <= len(load_checkpoint(path)[2]["step"]) < 60
    with start(SCRIPT, path, model) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole = make_net()
    run(whole, steps=60)
    np.testing.assert_array_equal(fastperm.load(model).parameters.flat, whole.parameters.flat)
    # Who is killed while writing leaves the temporary file that was being written, which has a name of its own.
    names = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".state-"))
    assert names == ["model.safetensors", "state.csv", "state.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child alone")
def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    path = tmp_path / "state.safetensors"
    with start(SCRIPT, path, tmp_path / "model.safetensors") as process:
        wait_for_step(path, 10)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert "KeyboardInterrupt: stopped after step" in errors
    assert not (tmp_path / "model.safetensors").exists()
    stopped_at = len(load_checkpoint(path)[2]["step"])
    assert f"stopped after step {stopped_at}; the last checkpoint is {path}" in errors
    resumed, whole = make_net(), make_net()
    run(resumed, steps=60, checkpoint=path, resume=True)
    run(whole, steps=60)
    np.testing.assert_array_equal(resumed.parameters.flat, whole.parameters.flat)


def test_ctrl_c_is_as_before_after_training_and_other_threads_may_train():
    before = signal.getsignal(signal.SIGINT)
    run(make_net(), steps=2)
    assert signal.getsignal(signal.SIGINT) is before
    losses = []
    thread = threading.Thread(target=lambda: losses.extend(run(make_net(), steps=2)["loss"]))
    thread.start()
    thread.join()
    assert len(losses) == 2


class Spoilt:
    """A task whose batch number 14 has a target that is not finite."""

    def __init__(self):
        self.drawn = 0

    def sample(self, batch, generator):
        sets, targets = TASK.sample(batch, generator)
        self.drawn += 1
        if self.drawn == 14:
            targets[3, 1] = np.inf
        return sets, targets


@pytest.mark.parametrize("backend", BACKENDS)
def test_stops_at_the_first_loss_that_is_not_finite(tmp_path, backend):
    path = tmp_path / "state.safetensors"
    net, good = make_net(backend=backend), make_net(backend=backend)
    with pytest.raises(FloatingPointError, match=r"the loss is inf .* at step 14; the last checkpoint is .*state"):
        run(net, Spoilt(), steps=30, checkpoint=path, validate=None)
    run(good, steps=13, validate=None)
    np.testing.assert_array_equal(net.parameters.flat, good.parameters.flat)  # the bad step was not taken
    assert len(load_checkpoint(path)[2]["step"]) == 10


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    path = tmp_path / "state.safetensors"
    # The optimiser overflows the parameters themselves; the loss would show it only at the next step.
    with pytest.raises(FloatingPointError, match="a parameter is not finite after step 1; no checkpoint"):
        run(make_net(), steps=10, every=1, checkpoint=path, optimizer=fastperm.Adam(learning_rate=1e39))
    assert not path.exists()


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    path = tmp_path / "state.safetensors"
    run(make_net(), steps=2, checkpoint=path)
    with pytest.raises(FileExistsError, match="resume=True goes on from it"):
        run(make_net(), steps=2, checkpoint=path)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (fastperm.DeepSet(2, 9, 2, 2), {}, r"its width is \[8, 8\], here it is \[9, 9\]"),
        (make_net(dtype="float64"), {}, "its dtype is 'float32', here it is 'float64'"),
        (make_net(), {"seed": 5}, "its seed is 0, here it is 5"),
        (make_net(), {"task": fastperm.PowerSpectrum(k_max=3, k_fin=2)}, "its task is"),
    ],
    ids=["width", "dtype", "seed", "task"],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, net, options, message):
    path = tmp_path / "state.safetensors"
    run(make_net(), steps=2, checkpoint=path)
    with pytest.raises(ValueError, match=message):
        run(net, **{"task": TASK, "steps": 4, "checkpoint": path, "resume": True, **options})


def test_progress_bar_shows_loss_and_speed(capsys):
    fastperm.train(make_net(), TASK, steps=5, batch=8)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "loss " in shown
    assert "sets/s" in shown


@pytest.mark.parametrize(
    ("checkpoint", "history"), [("state.csv", "state.csv"), ("state", "state"), ("state", "a/../state")]
)
def test_checkpoint_and_history_must_be_two_files(tmp_path, checkpoint, history):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="checkpoint and history would both be"):
        run(make_net(), steps=1, checkpoint=tmp_path / checkpoint, history=tmp_path / history)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_another_optimizer_is_refused_but_another_learning_rate_is_not(tmp_path):
    path = tmp_path / "state.safetensors"
    run(make_net(), steps=2, checkpoint=path)
    for name, value in {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-8}.items():
        with pytest.raises(ValueError, match=f"belongs to another run: its {name} is .*, here it is {value}"):
            run(make_net(), steps=3, checkpoint=path, resume=True, optimizer=fastperm.Adam(**{name: value}))
    optimizer = fastperm.Adam(learning_rate=0.01)
    run(make_net(), steps=3, checkpoint=path, resume=True, optimizer=optimizer)
    assert load_checkpoint(path)[1].config() == optimizer.config()


def test_a_run_with_a_checkpoint_begins_with_a_new_optimizer(tmp_path):
    net, optimizer = make_net(), fastperm.Adam()
    run(net, steps=2, optimizer=optimizer)
    with pytest.raises(ValueError, match="begins with a new optimizer, got one of 2 steps"):
        run(net, steps=2, optimizer=optimizer, checkpoint=tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_that_it_was_heard(capsys):
    class Interrupting:
        def sample(self, batch, generator):
            signal.raise_signal(signal.SIGINT)
            return TASK.sample(batch, generator)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        fastperm.train(make_net(), Interrupting(), steps=5, batch=8, validate=None)
    assert "finishing the step ..." in capsys.readouterr().err


def test_each_checkpoint_has_a_history_of_its_own(tmp_path):
    for name in ("lr0.1", "lr0.01", "run.safetensors"):
        run(make_net(), steps=2, checkpoint=tmp_path / name)
    histories = {path.name for path in tmp_path.glob("*.csv")}
    assert histories == {"lr0.1.csv", "lr0.01.csv", "run.csv"}


@pytest.mark.parametrize("options", [{"checkpoint": "mine.safetensors"}, {"history": "mine.csv"}], ids=str)
def test_a_new_run_replaces_no_file_by_its_history(tmp_path, options):
    own = tmp_path / "mine.csv"
    own.write_text("mine")
    options = {name: tmp_path / file for name, file in options.items()}
    with pytest.raises(FileExistsError, match=r"mine\.csv is there already, and would become the history"):
        run(make_net(), steps=2, resume=True, **options)
    assert own.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_a_run_that_goes_on_replaces_no_file_but_its_history(tmp_path):
    path, own = tmp_path / "run.safetensors", tmp_path / "mine.csv"
    run(make_net(), steps=2, checkpoint=path)
    own.write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.csv is there already, and is not the history of a run"):
        run(make_net(), steps=4, checkpoint=path, resume=True, history=own)
    assert own.read_text() == "mine"
    run(make_net(), steps=4, checkpoint=path, resume=True)
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 5


def test_a_run_of_no_steps_writes_no_history(tmp_path):
    own = tmp_path / "mine.csv"
    own.write_text("mine")
    run(make_net(), steps=0, history=own)
    assert own.read_text() == "mine"


def sends(number, at=3):
    """Return a task that sends this process a signal as it draws a batch."""

    class Task:
        drawn = 0

        def sample(self, batch, generator):
            self.drawn += 1
            if self.drawn == at:
                signal.raise_signal(number)
            return TASK.sample(batch, generator)

    return Task()


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_finishes_the_step_and_saves(tmp_path, handlers):
    path = tmp_path / "run.safetensors"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3; the last checkpoint is"):
        run(make_net(), sends(signal.SIGTERM), steps=9, checkpoint=path, validate=None)
    assert len(load_checkpoint(path)[2]["step"]) == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_program_does_about_sigterm_stays(handlers):
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("sigterm"))
    history = run(make_net(), sends(signal.SIGTERM), steps=5, validate=None)
    assert len(history["step"]) == 5
    assert heard == ["sigterm"]


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert len(run(make_net(), sends(signal.SIGINT), steps=5, validate=None)["step"]) == 5
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("optimizer", ["adam", fastperm.Adam, object()], ids=["name", "class", "object"])
def test_an_optimizer_must_take_steps(optimizer):
    net, (sets, targets) = make_net(), TASK.sample(2, 0)
    with pytest.raises(TypeError, match="optimizer must be an Adam, or an object with a method step"):
        run(net, steps=1, optimizer=optimizer)
    with pytest.raises(TypeError, match="optimizer must be an Adam, or an object with a method step"):
        fastperm.train_step(net, sets, targets, optimizer)


@pytest.mark.parametrize("drawn", [None, np.zeros(2), (1, 2, 3)], ids=["none", "array", "three"])
@pytest.mark.parametrize("validate", [None, 4], ids=["batch", "validation"])
def test_a_task_must_draw_sets_and_targets(drawn, validate):
    class Task:
        def sample(self, batch, generator):
            return drawn

    with pytest.raises(TypeError, match=r"sample\(batch, generator\) must return \(sets, targets\), got"):
        run(make_net(), Task(), steps=1, validate=validate)


class Configured:
    """A task whose configuration is up to the test."""

    def __init__(self, config):
        self.config = lambda: config
        self.sample = TASK.sample


def test_a_task_is_known_again_by_what_json_makes_of_it(tmp_path):
    path = tmp_path / "state.safetensors"
    config = {"range": (1, 2), 3: np.nan}
    run(make_net(), Configured(config), steps=1, checkpoint=path)
    run(make_net(), Configured(dict(config)), steps=2, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="belongs to another run: its task is"):
        run(make_net(), Configured({"range": (1, 3), 3: np.nan}), steps=3, checkpoint=path, resume=True)


@pytest.mark.parametrize("config", [{"n": np.int64(3)}, {"path": Path("x")}], ids=str)
def test_a_task_that_cannot_be_remembered_is_refused_before_any_step(tmp_path, config):
    net = make_net()
    before = net.parameters.flat.copy()
    with pytest.raises(TypeError, match=r"a checkpoint keeps what the task's config\(\) returns as JSON"):
        run(net, Configured(config), steps=1, checkpoint=tmp_path / "state.safetensors")
    np.testing.assert_array_equal(net.parameters.flat, before)
    run(net, Configured(config), steps=1)  # nothing is to be remembered


class Descent:
    def step(self, parameters, gradients):
        for name, own in parameters.items():
            own -= 0.01 * gradients[name]


class Decaying(fastperm.Adam):
    def config(self):
        return {**super().config(), "weight_decay": 0.1}


@pytest.mark.parametrize("optimizer", [Descent(), Decaying()], ids=["no Adam", "more than Adam"])
def test_a_checkpoint_holds_an_adam_only(tmp_path, optimizer):
    with pytest.raises(TypeError, match=r"a checkpoint holds the state of an Adam, .*; got (<.*Descent|Decaying\()"):
        run(make_net(), steps=1, checkpoint=tmp_path / "state.safetensors", optimizer=optimizer)
    assert not list(tmp_path.iterdir())
    run(make_net(), steps=1, optimizer=optimizer)


class Clipped:
    """What an Adam is asked, but for a step."""

    def __init__(self, adam):
        self.adam = adam

    def __getattr__(self, name):
        return getattr(self.adam, name)

    def step(self, parameters, gradients):
        self.adam.step(parameters, {name: np.clip(own, -0.01, 0.01) for name, own in gradients.items()})


def test_what_wraps_an_adam_is_resumed_like_one(tmp_path):
    path, whole, parts = tmp_path / "state.safetensors", make_net(), make_net()
    run(whole, steps=4, optimizer=Clipped(fastperm.Adam()))
    run(parts, steps=2, optimizer=Clipped(fastperm.Adam()), checkpoint=path)
    parts = make_net()
    run(parts, steps=4, optimizer=Clipped(fastperm.Adam()), checkpoint=path, resume=True)
    np.testing.assert_array_equal(parts.parameters.flat, whole.parameters.flat)


def test_a_schedule_may_be_a_function():
    net, by_hand, optimizer = make_net(), make_net(), fastperm.Adam()
    run(net, steps=4, seed=4, schedule=lambda step: 1e-3 * step)
    for step in range(1, 5):
        sets, targets = TASK.sample(8, np.random.default_rng(np.random.SeedSequence(4, spawn_key=(0, step))))
        fastperm.train_step(by_hand, sets, targets, optimizer, learning_rate=1e-3 * step)
    np.testing.assert_array_equal(net.parameters.flat, by_hand.parameters.flat)
    with pytest.raises(ValueError, match=r"schedule\(3\) must be at least 0, got -1"):
        run(make_net(), steps=4, schedule=lambda step: 2 - step if step < 3 else -1)


@pytest.mark.parametrize("enough", [True, np.True_, False, None, "yes"], ids=repr)
def test_a_report_may_end_the_run_when_its_checkpoint_is_written(tmp_path, enough):
    path, seen = tmp_path / "state.safetensors", []

    def report(step, errors):
        seen.append((step, len(load_checkpoint(path)[2]["step"])))
        return enough if step == 10 else None

    history = run(make_net(), steps=25, checkpoint=path, report=report)
    last = 10 if enough in (True, np.True_) else 25
    assert history["step"][-1] == last
    assert seen == [(step, step) for step in (10, 20, 25) if step <= last]


def test_targets_that_are_not_finite_are_named():
    sets, targets = TASK.sample(8, 0)
    targets[5, 1] = np.nan
    with pytest.raises(ValueError, match="of the targets to validate with, row 5, column 1 is nan"):
        run(make_net(), steps=1, validate=[sets, targets])
    with pytest.raises(FloatingPointError, match=r"the loss is nan \(of the targets, row 5, column 1 is nan\)"):
        fastperm.train_step(make_net(), sets, targets, fastperm.Adam())
    with pytest.raises(FloatingPointError, match=r"the loss is nan \(of the targets, row 5, column 1 is nan\)"):
        fastperm.train_step(make_net(), (own.values for own in sets), targets, fastperm.Adam())
    with pytest.raises(TypeError, match=r"validate must be an integer, a pair \(sets, targets\) or None, got 3 items"):
        run(make_net(), steps=1, validate=[sets, targets, targets])
