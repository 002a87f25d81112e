"""The root mean square of sets; it is that of ``kernels/reference/root_mean_square.py``: a pass or two of NumPy."""

from fastperm.kernels.reference.root_mean_square import root_mean_square_backward as root_mean_square_backward
from fastperm.kernels.reference.root_mean_square import root_mean_square_forward as root_mean_square_forward
from fastperm.kernels.reference.root_mean_square import root_mean_square_shift as root_mean_square_shift
