"""The same network in JAX, on dense (B, N, K) arrays: a whole training step is one compiled function."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastperm import Adam

# What JAX calls them: "bfloat16" alone would be TF32 on a GPU.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}


def predict(parameters, x):  # dict, (B, N, K_in)
    depth = sum(name.endswith(".self") for name in parameters)
    for i in range(depth):
        W_self, W_pool, bias = (parameters[f"layers.{i}.{name}"] for name in ("self", "pool", "bias"))
        of_set = x.mean(axis=1) @ W_pool + bias
        x = jax.nn.relu(x @ W_self + of_set[:, None])
    return x.mean(axis=1) @ parameters["head.weight"] + parameters["head.bias"]


def loss_and_prediction(parameters, x, targets):
    prediction = predict(parameters, x)
    return jnp.mean((prediction - targets) ** 2), prediction


class JaxDeepSet:
    """Training of the network with a hand-written Adam, old parameters and moments given up to the new ones.

    Parameters
    ----------
    net : fastperm.DeepSet
        Where the parameters start; they are copied. Float64 needs ``jax_enable_x64``.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of products on a GPU, where JAX takes TF32 by itself. For "bfloat16" the factors are rounded, and added up in
        float32.
    """

    def __init__(self, net, *, precision="float32"):
        settings = Adam().config()
        jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])
        beta1, beta2, epsilon = (settings[name] for name in ("beta1", "beta2", "epsilon"))
        self.parameters = {name: jnp.array(array) for name, array in net.parameters.items()}
        self.moments = tuple(jax.tree.map(jnp.zeros_like, self.parameters) for _ in range(2))
        self.settings = settings
        self.steps = 0

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters, moments, x, targets, rate):
            (loss, _), gradients = jax.value_and_grad(loss_and_prediction, has_aux=True)(parameters, x, targets)
            first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, moments[0], gradients)
            second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, moments[1], gradients)
            parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + epsilon), parameters, first, second)
            return parameters, (first, second), loss

        self.update = update
        self.forward = jax.jit(predict)

    @property
    def n_parameters(self):
        """Number of trainable numbers."""
        return sum(array.size for array in self.parameters.values())

    def precision(self):
        """Return what decides the precision of its products, as JAX says it."""
        return {"jax_default_matmul_precision": jax.config.jax_default_matmul_precision}

    def batch(self, x, targets):
        """Return the batch as JAX arrays."""
        return jnp.array(x), jnp.array(targets)

    def step(self, x, targets):
        """Take one training step and return its loss."""
        self.steps += 1
        beta1, beta2 = self.settings["beta1"], self.settings["beta2"]
        rate = self.settings["learning_rate"] * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        self.parameters, self.moments, loss = self.update(self.parameters, self.moments, x, targets, rate)
        # The step is asynchronous: the loss may be there before the parameters are.
        jax.block_until_ready(self.parameters)
        return float(loss)

    def predict(self, x):
        """Return the predictions."""
        return np.asarray(self.forward(self.parameters, x))

    def evaluate(self, x, targets):
        """Return prediction, loss and the gradient of every parameter."""
        function = jax.jit(jax.value_and_grad(loss_and_prediction, has_aux=True))
        (loss, prediction), gradients = function(self.parameters, x, targets)
        return np.asarray(prediction), float(loss), {name: np.asarray(array) for name, array in gradients.items()}
