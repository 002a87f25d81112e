"""What sets are up against: the set flattened to one long vector, and an ordinary dense layer on it, in NumPy.

y = relu(x₁ W₁ + b₁) W₂ + b₂ with x₁ the N·K_in numbers of a set in the order in which they are listed. The answer
depends on that order, and N is fixed. 1024 inputs (512 elements of 2 numbers) to 2048 hidden numbers are the
2·10⁶ parameters of the paper's comparison.
"""

import numpy as np

from fastperm import Adam
from fastperm.layers import initialise

HIDDEN = 2048


class DenseNetwork:
    """Training of the network on flattened sets; NumPy's own BLAS, our Adam.

    Parameters
    ----------
    net : fastperm.DeepSet
        Whose in_features, out_features and dtype this network has. Its parameters have no counterpart here.
    set_size : int
        N.
    hidden : int, default=2048
        Width of the dense layer.
    """

    def __init__(self, net, set_size, hidden=HIDDEN):
        generator = np.random.default_rng(0)
        inputs, outputs = set_size * net.in_features, net.out_features
        self.parameters = {
            "hidden.weight": initialise((inputs, hidden), generator, gain=np.sqrt(2)).astype(net.dtype),
            "hidden.bias": np.zeros(hidden, net.dtype),
            "head.weight": initialise((hidden, outputs), generator).astype(net.dtype),
            "head.bias": np.zeros(outputs, net.dtype),
        }
        self.optimizer = Adam()

    @property
    def n_parameters(self):
        """Number of trainable numbers."""
        return sum(array.size for array in self.parameters.values())

    def batch(self, x, targets):
        """Return the batch with every set flattened."""
        return x.reshape(len(x), -1), targets

    def step(self, x, targets):
        """Take one training step and return its loss."""
        _, loss, gradients = self.evaluate(x, targets)
        self.optimizer.step(self.parameters, gradients)
        return loss

    def predict(self, x):
        """Return the predictions."""
        return self._forward(x)[1]

    def evaluate(self, x, targets):
        """Return prediction, loss and the gradient of every parameter."""
        y, prediction = self._forward(x)
        error = prediction - targets
        d_prediction = error * (2 / error.size)
        dy = d_prediction @ self.parameters["head.weight"].T
        dy *= y > 0
        gradients = {
            "hidden.weight": x.T @ dy,
            "hidden.bias": dy.sum(axis=0),
            "head.weight": y.T @ d_prediction,
            "head.bias": d_prediction.sum(axis=0),
        }
        return prediction, float(np.mean(error**2)), gradients

    def _forward(self, x):
        y = x @ self.parameters["hidden.weight"]
        y += self.parameters["hidden.bias"]
        np.maximum(y, 0, out=y)
        return y, y @ self.parameters["head.weight"] + self.parameters["head.bias"]
