"""Random periodic functions f(x) = Σ_k √p_k cos(kx + φ_k): their Fourier coefficients, and what is asked of them.

    p_k = mean_k · e, e exponential;  mean_k;  or mean_k · exp(z − ½), z normal
    φ_k uniform on (0, 2π)
    c_k = √p_k e^{iφ_k}
    target_k = log p_k, or p_k, for a band of k

A draw is a function of the key and of its place (`philox.py`), not of how many there are.
"""

import numpy as np

from fastperm.kernels.reference.philox import normals, uniforms

# Streams of random numbers; those of `random_samples` are others.
POWERS, PHASES = 0, 1


def random_functions(
    key,  # what they are drawn from, below 2⁶³
    mean_power,  # (k_max,) float64
    amplitudes,  # "exponential", "fixed" or "lognormal"
    first,  # k of the first target
    logarithm,  # whether targets are log p_k
    *,
    coefficients,  # (S, k_max) complex128, overwritten
    targets,  # (S, K_fin) float64 or float32, overwritten
):
    index = np.arange(coefficients.size)
    powers = np.broadcast_to(mean_power, coefficients.shape)
    if amplitudes == "exponential":
        powers = powers * -np.log(uniforms(index, POWERS, key)[0]).reshape(powers.shape)
    elif amplitudes == "lognormal":
        powers = powers * np.exp(normals(index, POWERS, key) - 0.5).reshape(powers.shape)
    phases = 2 * np.pi * uniforms(index, PHASES, key)[0].reshape(powers.shape)
    coefficients[:] = np.sqrt(powers) * np.exp(1j * phases)
    asked = powers[:, first - 1 : first - 1 + targets.shape[1]]
    targets[:] = np.log(asked) if logarithm else asked
