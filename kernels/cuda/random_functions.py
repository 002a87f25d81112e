"""Random periodic functions; formulas and streams in ``kernels/reference/random_functions.py``.

One thread per coefficient.
"""

import math

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.philox import TURN, key_or_keys, normal, uniforms
from fastperm.kernels.reference.random_functions import PHASES, POWERS

THREADS = 4 if SIMULATED else 128
EXPONENTIAL, FIXED, LOGNORMAL = 0, 1, 2
CODES = {"exponential": EXPONENTIAL, "fixed": FIXED, "lognormal": LOGNORMAL}


def random_functions(
    key,  # what they are drawn from, below 2⁶³; or an array (1,) int64 on the GPU that has it
    mean_power,  # (k_max,) float64, on the host or the GPU
    amplitudes,  # "exponential", "fixed" or "lognormal"
    first,  # k of the first target
    logarithm,  # whether targets are log p_k
    *,
    coefficients,  # (S, k_max) complex128, overwritten
    targets,  # (S, K_fin) float64 or float32, overwritten
):
    size, band = coefficients.size, (coefficients.shape[1], first - 1, targets.shape[1])
    law, places = (on_device(mean_power), CODES[amplitudes], logarithm), (coefficients.view(np.float64), targets)
    launch = _KERNELS[targets.dtype.name]
    launch(-(-size // THREADS), *key_or_keys(key), *law, size, *band, *places)


def _make(code):
    @kernel(f"i8 i8* f8* i4 i4 i8 i8 i8 i8 f8* {code}*", name=f"random_functions_{code}", threads=THREADS)
    def random_functions(
        key,
        keys,  # (1,), if the key is negative
        mean_power,  # (k_max,)
        amplitudes,  # a code
        logarithm,
        size,  # S · k_max
        k_max,
        first,  # column of the first target
        asked,  # K_fin
        coefficients,  # (S, k_max, 2): real and imaginary parts
        targets,  # (S, K_fin)
    ):
        i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if i < size:
            if key < 0:
                key = keys[0]
            column = i % k_max
            power = mean_power[column]
            if amplitudes == EXPONENTIAL:
                u, _ = uniforms(i, POWERS, key)
                power *= -math.log(u)
            elif amplitudes == LOGNORMAL:
                power *= math.exp(normal(i, POWERS, key) - 0.5)
            v, _ = uniforms(i, PHASES, key)
            phase = TURN * v
            root = math.sqrt(power)
            coefficients[2 * i] = root * math.cos(phase)
            coefficients[2 * i + 1] = root * math.sin(phase)
            if first <= column and column < first + asked:
                targets[i // k_max * asked + column - first] = math.log(power) if logarithm else power

    return random_functions


_KERNELS = {"float32": _make("f4"), "float64": _make("f8")}
