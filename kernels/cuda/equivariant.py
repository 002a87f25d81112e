"""The equivariant layer; formula and derivation in ``kernels/reference/equivariant.py``.

What this twin does differently: the pooled term and the bias are one row per set, c_s = m_s W_pool + b, which the
product x W_self adds to its tile before ReLU, so that y is written once. In a network the same launch adds up y for
the next pooling (`layer_forward`). On the way back the product g W_selfᵀ adds (w_n / W_s) G_s W_poolᵀ to its tile,
applies the mask of the layer below and adds up the result, which is what that layer starts from (`layer_inputs`).
"""

import numpy as np

from fastperm.kernels.cuda.compiling import xp
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pooling import (
    SUM,
    add_column_sums,
    finish,
    mask,
    pool_partials,
    pooling_forward,
    row_scales,
    sets_of_rows,
    unpool,
)
from fastperm.kernels.cuda.product import NO_POOL, add_transposed_product, product


def equivariant_forward(
    x,  # (T, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    b,  # (K_out,)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    y,  # (T, K_out)
    m,  # (S, K_in)
):
    offsets = on_device(offsets)
    pooling_forward(x, offsets, weights, aggregate, p=m)
    sets = sets_of_rows(offsets, len(x))
    layer_forward(x, m, sets, weights, W_self, W_pool, b, NO_POOL, y, relu=activation == "relu")


def equivariant_backward(
    dy,  # (T, K_out)
    x,  # (T, K_in)
    y,  # (T, K_out)
    m,  # (S, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    dx,  # (T, K_in), overwritten; None where nobody needs it
    dW_self,  # (K_in, K_out), accumulated
    dW_pool,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    offsets = on_device(offsets)
    sets = sets_of_rows(offsets, len(x))
    g = mask(dy, y) if activation == "relu" else dy
    G = set_sums(pool_partials(g, sets, len(m), None, SUM), offsets, len(m))
    layer_parameters(g, G, x, m, dW_self, dW_pool, db)
    if dx is not None:
        scales = row_scales(offsets, weights, sets, aggregate)
        layer_inputs(g, G, x, m, offsets, weights, scales, sets, W_self, W_pool, aggregate, dx)


def layer_forward(x, m, sets, weights, W_self, W_pool, b, code, y, *, relu=True, precision="float32"):
    """Write y (T, K_out), given m (S, K_in), and return the partial sums of its pooling by ``code``, if any.

    y may be `Pairs`, and so may x, and their gradients below, as `product` says.
    """
    c = xp().empty((len(m), b.size), np.float32)
    product(m, W_pool, c, c=b)
    own = {"c": c, "sets": sets, "relu": relu, "weights": weights}
    return product(x, W_self, y, **own, code=code, n_sets=len(m), precision=precision)


def layer_parameters(g, G, x, m, dW_self, dW_pool, db, *, precision="float32"):
    """Add what a layer sends to its parameters: g (T, K_out), its sums G (S, K_out), x (T, K_in), m (S, K_in)."""
    add_transposed_product(x, g, dW_self, precision=precision)
    add_transposed_product(m, G, dW_pool)
    add_column_sums(G, db)


def layer_inputs(
    g, G, x, m, offsets, weights, scales, sets, W_self, W_pool, aggregate, dx, *, masked=False, precision="float32"
):  # fmt: skip
    """Write dx (T, K_in), and, if x is a ReLU whose gradient is wanted (``masked``), return its sums (S, K_in)."""
    dm = xp().empty(m.shape, np.float32)
    product(G, W_pool, dm, B_along_k=True)
    if aggregate == "max":
        # Which elements share the gradient of a maximum takes a pass of its own.
        own = xp().empty(x.shape, np.float32)
        product(g, W_self, own, B_along_k=True, precision=precision)
        partials = unpool(dm, x, m, offsets, weights, scales, sets, aggregate, own, dx, masked=masked)
    else:
        partials = product(
            *(g, W_self, dx),
            B_along_k=True,
            c=dm,
            sets=sets,
            scales=scales,
            masked_by=x if masked else None,
            code=SUM if masked else NO_POOL,
            n_sets=len(m),
            precision=precision,
        )
    return set_sums(partials, offsets, len(m)) if masked else None


def set_sums(partials, offsets, n_sets):
    """Return the sums of each set, (S, K), of the partial sums of its rows."""
    sums = xp().empty((n_sets, partials.shape[1]), np.float32)
    finish(partials, offsets, "sum", None, sums)
    return sums
