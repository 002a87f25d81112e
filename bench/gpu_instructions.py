"""Which instructions the warps of a GPU do for a set, by kernel and kind; counted without a GPU.

    python bench/gpu_instructions.py                        # a training step, 64 × 4, float32
    python bench/gpu_instructions.py --width 16 --precision tf32 --predict
    python bench/gpu_instructions.py --parts 12             # and where in the kernels most of them are

The kernels run as PTX, on NumPy (`tests/numpy_gpu.py`). What ptxas makes of it differs, above all in addresses: 64-bit
sums of shared addresses become one instruction of 32 bits, or none. Not counted are branches, waits for a warp or a
cluster, and time: that a GPU only says.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import numpy_gpu
import ptx

import fastperm

KINDS = (
    ("moves", r"mov|cvta|ld\.param"),  # of which a GPU does few
    ("multiply-adds", r"fma\.rn\.f32"),
    ("tensor cores", r"mma\."),
    ("shared", r"(ld|st)\.shared|cp\.async\.cg"),
    ("global", r"(ld|st)\.global"),
    ("64-bit integers", r".*\.[sub]64$"),
    ("float64", r".*f64"),
)
OTHER, BARRIERS = "others", "barriers"


def count(elements=512, depth=4, width=64, precision="float32", *, predict=False):
    """Return how many instructions of each kind warps did: {name of a kernel: {number of a part of it: Counter}}."""
    device = numpy_gpu.install()
    net = fastperm.DeepSet(2, width, depth, width, backend="cuda", precision=precision, seed=0)
    generator = np.random.default_rng(0)
    sets = generator.standard_normal((1, elements, 2)).astype(np.float32)
    if predict:
        net(sets)
    else:
        fastperm.train_step(net, sets, generator.standard_normal((1, width)), fastperm.Adam())
    found: dict = {}
    for (name, part), visits in device.launched.items():
        kinds = Counter(kind_of(instruction.code) for instruction in device.programs[name].parts[part].instructions)
        kinds[BARRIERS] += device.programs[name].parts[part].end == ptx.FOR_BLOCK
        found.setdefault(name, {})[part] = Counter({kind: visits * times for kind, times in kinds.items()})
    return found


def kind_of(code):
    """Return the kind of an instruction."""
    return next((kind for kind, pattern in KINDS if re.match(pattern, code)), OTHER)


def main(arguments=None):
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--predict", action="store_true", help="a prediction instead of a training step")
    parser.add_argument("--parts", type=int, default=0, help="so many parts of kernels, those with most instructions")
    settings = vars(parser.parse_args(arguments))
    parts = settings.pop("parts")
    found = count(**settings)
    kinds = [*(kind for kind, _ in KINDS), OTHER, BARRIERS]
    rows = [(name, sum(of_parts.values(), Counter())) for name, of_parts in found.items()]
    rows += sorted(
        ((f"{name}, part {part}", own) for name, of_parts in found.items() for part, own in of_parts.items()),
        key=lambda row: -row[1].total(),
    )[:parts]
    print(" | ".join(["kernel", "all", *kinds]))
    for name, own in rows:
        every = own.total() - own[BARRIERS]
        print(" | ".join([name, *(f"{number:,}" for number in (every, *(own[kind] for kind in kinds)))]))


if __name__ == "__main__":
    main()
