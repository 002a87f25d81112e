"""The program that `make gpu` runs, on a machine without a GPU: its parts, its limits of time, and what it leaves."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

# As in test_rivals.
sys.path.append(str(Path(__file__).parents[1] / "bench"))

import blocks
import gpu
import gpu_instructions
import results
from contenders import OURS_ON_GPU, Case
from gpu_worker import GpuWorker
from worker import NotMeasuredError

BENCH = Path(gpu.__file__).parent
TINY = Case(width=1, depth=1, set_size=3, batch=1)


def run_dry(out, *parts):
    command = [sys.executable, BENCH / "gpu.py", "--dry-run", "--out", out, "--parts", *parts]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_from_parts_to_a_table(tmp_path):
    out = tmp_path / "gpu.json"
    ran = run_dry(out, "kernels", "errors", "memcheck", "rates", "training", "benchmark")
    assert ran.returncode == 0, ran.stdout
    found = results.load(out)
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        **dict.fromkeys(("kernels", "memcheck"), "not run"),
        **dict.fromkeys(("errors", "rates", "training", "benchmark"), "passed"),
    }
    assert [case["width"] for case in found["cases"]] == [1, 4]
    for case in found["cases"]:
        for task in ("step", "predict"):
            contenders = case[task]["contenders"]
            assert contenders[OURS_ON_GPU]["ratio"]["median"] == 1
            assert case[task]["fastest_framework"]["name"] in contenders
    assert found["errors"][0]["errors"][OURS_ON_GPU]["prediction"] < 1e-6
    layers = {(layer["width"], layer["precision"]): layer["seconds"] for layer in found["rates"]["layers"]}
    assert layers.keys() == {(16, "tf32"), (16, "bfloat16"), (40, "tf32"), (40, "bfloat16")}
    for layer, seconds in layers.items():
        assert all(("pairs" in of_way) == (layer == (40, "bfloat16")) for of_way in seconds.values())
    table = blocks.gpu({found["benchmark"]: found})
    assert "| 16 wide, bfloat16, dW | " in table
    assert table in ran.stdout
    assert "| 4 \N{MULTIPLICATION SIGN} 1 | " in table
    assert "| benchmark | passed | " in table
    assert (
        f"| a step of training, float32, its batch drawn by | {' | '.join(found['training'][0]['seconds'])} |" in table
    )
    assert table.endswith("not a result.**")

    # A run of one part leaves what the others have found.
    assert run_dry(out, "memcheck").returncode == 0
    assert results.load(out)["cases"] == found["cases"]


def test_a_part_that_fails_or_hangs_stops_none_after_it(tmp_path, monkeypatch, capfd):
    scripts = {
        "kernels": "import sys; sys.exit('out of luck')",
        "correctness": "import time; print('begins'); time.sleep(60)",
        "rates": "print('fine')",
    }
    monkeypatch.setattr(gpu, "command", lambda part, *_: [sys.executable, "-c", scripts[part]])
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1)
    monkeypatch.setitem(gpu.LIMITS, "correctness", 2)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--parts", *scripts])
    monkeypatch.setattr(gpu, "_gpu_name", lambda: ("NVIDIA Test", "580"))
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    parts = results.load(out)["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "kernels": "failed with status 1",
        "correctness": "stopped after 2 s",
        "rates": "passed",
    }
    assert parts["kernels"]["says"] == "out of luck"
    assert parts["correctness"]["says"] == "begins"
    assert "**NVIDIA Test**" in capfd.readouterr().out


def test_no_part_begins_without_time(tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--parts", "rates", "--seconds", "1"])
    gpu.main()
    assert results.load(out)["parts"]["rates"] == {"status": "not run", "seconds": 0.0, "says": "no time was left"}


def test_a_contender_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("import subprocess, time\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with GpuWorker("torch-eager") as worker:
        worker.ask(TINY)
        start = time.monotonic()
        with pytest.raises(NotMeasuredError, match="it took longer than 1 s"):
            worker.answer(1)
        assert time.monotonic() - start < 10
        assert worker.failed


@pytest.mark.parametrize(
    ("module", "reason", "failed"),
    [
        ("raise ImportError('no torch here')", "not installed \\(no torch here\\)", False),
        ("raise ValueError('broken\\nand more')", "ValueError: broken$", True),
        ("import os; os.write(2, b'out of luck'); os._exit(3)", "status 3: out of luck$", True),
    ],
)
def test_a_contender_that_cannot_be_measured_gives_its_reason(module, reason, failed, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with GpuWorker("torch-eager") as worker:
        worker.ask(TINY)
        with pytest.raises(NotMeasuredError, match=reason):
            worker.answer(60)
        assert worker.failed == failed


def test_one_process_serves_case_after_case():
    with GpuWorker("fastperm-reference") as worker:
        for width in (1, 3):
            worker.ask(TINY._replace(width=width))
            assert worker.answer(60)["parameters"] == TINY._replace(width=width).network().n_parameters
            assert 0 < worker.run("step") < 60


@pytest.mark.parametrize("where", ["bin", "compute-sanitizer"])
def test_the_sanitizer_is_found_in_the_toolkit(where, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    tool = tmp_path / "cuda" / where / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch(0o755)
    assert gpu._sanitizer() == str(tool)


def test_what_a_step_costs_the_host(tmp_path):
    out = tmp_path / "gpu_host.json"
    command = [sys.executable, BENCH / "gpu_host.py", "--quick", "--out", out]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = results.load(out)
    assert all(of["median"] > 0 for of in found["seconds"].values())
    assert all(name in blocks.gpu_host({"gpu_host": found}) for name in found["seconds"])


def test_every_kernel_is_under_the_sanitizer():
    # Nothing is computed: that takes minutes in the simulator, and what is launched does not depend on it.
    script = """
import numpy as np
from fastperm.kernels.cuda import compiling
np.empty = np.ones
compiling.Kernel.__call__ = lambda *launch, **how: None
import gpu_small
print(gpu_small.run())
"""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(BENCH)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_a_result_the_table_says_so():
    assert blocks.gpu({"networks": {}}) == "No results of a GPU are there yet: not measured."


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("fma.rn.f32", "multiply-adds"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "tensor cores"),
        ("ld.shared.v4.f32", "shared"),
        ("cp.async.cg.shared.global", "shared"),
        ("ld.global.u64", "global"),
        ("mad.lo.s64", "64-bit integers"),
        ("fma.rn.f64", "float64"),
        ("ld.param.u64", "moves"),
        ("setp.gt.s32", "others"),
    ],
)
def test_instructions_are_of_a_kind(code, kind):
    assert gpu_instructions.kind_of(code) == kind


def test_instructions_are_counted_by_kernel_and_by_part(monkeypatch, capsys):
    parts = {3: Counter({"shared": 2000, "barriers": 8}), 4: Counter({"moves": 5})}
    monkeypatch.setattr(gpu_instructions, "count", lambda **settings: {f"step_{settings['width']}": parts})
    gpu_instructions.main(["--width", "32", "--parts", "1"])
    head, *rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [dict(zip(head, row, strict=True)) for row in rows] == [
        {
            **dict.fromkeys(head, "0"),
            "kernel": "step_32",
            "all": "2,005",
            "shared": "2,000",
            "moves": "5",
            "barriers": "8",
        },
        {**dict.fromkeys(head, "0"), "kernel": "step_32, part 3", "all": "2,000", "shared": "2,000", "barriers": "8"},
    ]
