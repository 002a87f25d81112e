"""That of ``kernels/reference/random_functions.py``: on the host NumPy's own generators draw."""

from fastperm.kernels.reference.random_functions import random_functions as random_functions
