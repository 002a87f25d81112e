"""What the work costs on paper: matrix products, flops, and bytes through main memory."""

from math import prod

import numpy as np

STEP, PREDICT = "step", "predict"
TASKS = (STEP, PREDICT)
# Numbers that Adam reads and writes for a parameter: itself, its gradient and two moments.
ADAM = 8


def products(case, task):
    """Return the matrix products of a network as (rows, inner, columns).

    A prediction has two for a layer, of the elements and of the pooled sets, and one for the head. A training step
    has also those for the gradient of the weights and, in all layers but the first, of the input.
    """
    inputs = (case.in_features, *(case.width,) * (case.depth - 1))
    rows = (case.batch * case.set_size, case.batch)
    forward = [(m, k, case.width) for k in inputs for m in rows]
    forward.append((case.batch, case.width, case.out_features))
    if task == PREDICT:
        return forward
    of_weights = [(k, m, n) for m, k, n in forward]
    of_inputs = [(m, n, k) for m, k, n in forward[len(rows) :]]
    return forward + of_weights + of_inputs


def flops(case, task):
    """Return the flops of the matrix products, a multiplication and an addition counting as two."""
    return 2 * sum(map(prod, products(case, task)))


def least_bytes(case, task):
    """Return the bytes that no program can save: the data once, and the parameters as often as they are used.

    With the activations of a set in the cache, nothing else needs to pass through main memory.
    """
    data = case.batch * (case.set_size * case.in_features + case.out_features)
    parameters = case.network().n_parameters * (ADAM if task == STEP else 1)
    return np.dtype(case.dtype).itemsize * (data + parameters)


def layer_by_layer_bytes(case, task):
    """Return the least bytes of a program that takes all sets through one layer after another.

    Products, means, bias, ReLU and their gradients are taken to be fused as far as they go. Forward, a layer reads its
    input and writes its output. Backward, it reads both again, and the gradient of its output, and writes that of its
    input. The last output is pooled on the spot, and its gradient is one row for a set.
    """
    elements = case.batch * case.set_size
    first, output = elements * case.in_features, elements * case.width
    hidden = (case.depth - 1) * output
    moved = 2 * hidden  # outputs of one layer are inputs of the next; least_bytes has the first input
    if task == STEP:
        moved += output  # of the last layer, kept for the way back
        moved += (first + hidden) + (hidden + output)  # inputs and outputs again
        moved += 2 * hidden  # gradients of outputs of one layer, of inputs of the next
    return least_bytes(case, task) + np.dtype(case.dtype).itemsize * moved
