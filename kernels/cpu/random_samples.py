"""That of ``kernels/reference/random_samples.py``: on the host NumPy's own generators draw."""

from fastperm.kernels.reference.random_samples import random_samples as random_samples
