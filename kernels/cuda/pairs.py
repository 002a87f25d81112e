"""Matrices that are kept in bfloat16: two numbers side by side are the halves of what is called a float32.

Products in bfloat16 round their factors. Where these, and masks of ReLU, are all that reads the activations of a
network and their gradients, they are rounded once, where they are written: memory, which limits wide layers, has half
as much to carry. Sums for pooling, and those of gradients, are taken before. So a step computes what it does with
float32 in memory, but for the first layer's xᵀ g, which rounds neither factor there, and for activations below 2⁻¹³⁴,
which become zero.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import device, xp
from fastperm.kernels.cuda.vectors import high_halves, low_halves

MULTIPLE = 8  # of columns: 128 bits of a row


class Pairs:
    """A matrix of bfloat16, row by row.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns, which are a multiple of `MULTIPLE`.
    words : array or None
        Memory to take, of at least half as many float32; None for its own.
    """

    def __init__(self, shape, words=None):
        rows, columns = self.shape = shape
        assert columns % MULTIPLE == 0
        size = rows * columns // 2
        self.words = xp().empty(size, np.float32) if words is None else words[:size]


def empty_like(matrix):
    """Return an uninitialised matrix of the same shape and kind."""
    return Pairs(matrix.shape) if isinstance(matrix, Pairs) else xp().empty(matrix.shape, np.float32)


@device
def numbers_of_pair(pair):
    """Return the two numbers of a pair."""
    zero = np.float32(0)
    return low_halves(zero, pair), high_halves(zero, pair)
