"""What tensor cores multiply, in TF32 and in bfloat16; their instructions are in ``vectors.py``."""

from collections.abc import Callable
from typing import NamedTuple

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import (
    load1,
    load2,
    multiply_bf16,
    multiply_tf32,
    round_bf16,
    round_number_tf32,
    round_tf32,
)


@device
def _tf32_down(array, place, apart):
    return round_tf32(load1(array, place))


@device
def _tf32_along(array, place):
    return round_tf32(load1(array, place))


@device
def _rounded_tf32_down(array, place, apart):
    return load1(array, place)


@device
def _bf16_down(array, place, apart):
    return round_bf16(load1(array, place), load1(array, place + apart))


@device
def _bf16_along(array, place):
    low, high = load2(array, place)
    return round_bf16(low, high)


class Cores(NamedTuple):
    """What tensor cores multiply: fragments of 16 × ``steps`` and ``steps`` × 8 numbers, sums in float32.

    A register holds ``pack`` rounded numbers, of the steps that thread t of each four has in one half of them. Which
    step a number is of matters to nobody, as long as it is the same in both factors: a pair may be t and t + 4, or 2 t
    and 2 t + 1, whichever is free of bank conflicts.

    Numbers that are multiplied several times may go through ``rounded`` when they are written, or, if a NaN among them
    comes to light in another way, through ``number_rounded``: as many as a register holds become one float32. A product
    may also be asked to take TF32 as they are, with ``down_rounded`` and ``along_rounded``.
    """

    name: str
    steps: int
    pack: int
    down: Callable  # (array, place, apart): a register of numbers that lie so far apart
    along: Callable  # (array, place): a register of numbers side by side
    rounded: Callable  # (x,), or (x, y)
    number_rounded: Callable
    down_rounded: Callable
    along_rounded: Callable
    multiply: Callable

    @property
    def half(self):
        """How many steps the second register is behind the first."""
        return self.steps // 2


TENSOR_CORES = {
    "tf32": Cores(
        *("tf32", 8, 1, _tf32_down, _tf32_along),
        *(round_tf32, round_number_tf32, _rounded_tf32_down, load1, multiply_tf32),
    ),
    "bfloat16": Cores(
        *("bf16", 16, 2, _bf16_down, _bf16_along),
        *(round_bf16, round_bf16, _bf16_down, _bf16_along, multiply_bf16),
    ),
}
