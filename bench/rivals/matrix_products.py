"""The matrix products of the network and nothing else, in NumPy: the time that a good BLAS needs for them alone.

No bias, no ReLU, no sums, no loss and no optimiser, and nothing is allocated. Products of one shape share their arrays,
which favours the caches, if anything.
"""

from typing import Any, NamedTuple

import numpy as np


class Operands(NamedTuple):
    """The arrays of y = x W and of its gradients."""

    x: Any  # (rows, K_in)
    W: Any  # (K_in, K_out)
    dy: Any  # (rows, K_out)
    y: Any
    dx: Any
    gradient: Any  # of W


class MatrixProducts:
    """The products of a training step or of a prediction, on random numbers.

    Parameters
    ----------
    net : fastperm.DeepSet
        Whose matrices are taken.
    """

    n_parameters = None  # this is no network

    def __init__(self, net):
        self.weights = [array for array in net.parameters.values() if array.ndim == 2]

    def batch(self, x, targets):
        """Return the operands of every product in forward order, for as many sets and elements as in ``x``."""
        generator = np.random.default_rng(0)
        random, results = {}, {}

        def operands(rows, W):
            shapes = [(rows, features) for features in W.shape]
            for shape in shapes:
                if shape not in random:
                    random[shape] = generator.standard_normal(shape, dtype=W.dtype)
                    results[shape] = np.empty(shape, W.dtype)
            (x, dy), (dx, y) = ([arrays[shape] for shape in shapes] for arrays in (random, results))
            return Operands(x, W, dy, y, dx, np.empty_like(W))

        sets, elements = len(x), x.shape[0] * x.shape[1]
        *layers, head = self.weights  # each layer has one for elements and one for the pooled sets
        found = [operands(sets if i % 2 else elements, W) for i, W in enumerate(layers)]
        return [*found, operands(sets, head)], targets

    def step(self, products, targets):
        """Take the products of a training step."""
        self.predict(products)
        for i, product in reversed(list(enumerate(products))):
            np.matmul(product.x.T, product.dy, out=product.gradient)
            if i > 1:  # nobody asks for the gradient of the input of the first layer
                np.matmul(product.dy, product.W.T, out=product.dx)

    def predict(self, products):
        """Take the products of a prediction."""
        for product in products:
            np.matmul(product.x, product.W, out=product.y)
