"""The dense layer; formula and derivation in ``kernels/reference/dense.py``. It is the product, with a bias."""

from fastperm.kernels.cuda.pooling import add_column_sums
from fastperm.kernels.cuda.product import add_transposed_product, product


def dense_forward(
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    b,  # (K_out,)
    *,
    y,  # (R, K_out)
):
    product(x, W, y, c=b)


def dense_backward(
    dy,  # (R, K_out)
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    *,
    dx,  # (R, K_in), overwritten
    dW,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    product(dy, W, dx, B_along_k=True)
    add_transposed_product(x, dy, dW)
    add_column_sums(dy, db)
