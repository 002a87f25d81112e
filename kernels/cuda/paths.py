"""Which way a batch takes through a network, and why.

| path | sets | when |
|---|---|---|
| resident | all | `resident.layout_for` finds a layout: narrow layers, a mean or a sum, no circle, a set fits |
| fused tiles | all | otherwise: a launch for the product of each layer, with tiles by the number of its columns |

There, `product.way_of` says what computes a product.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cuda import product_of_few, product_on_cores, product_on_warpgroups
from fastperm.kernels.cuda.layouts import Layout
from fastperm.kernels.cuda.product import (
    BY_LIBRARY,
    BY_TILES,
    ON_CORES,
    ON_WARPGROUPS,
    may_be_in_pairs,
    suited,
    way_of,
)
from fastperm.kernels.cuda.resident import layout_for

IN_WORDS = {"tf32": "TF32", "bfloat16": "bfloat16"}


def paths(
    offsets,  # (S + 1,)
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    precision="float32",  # "tf32" or "bfloat16"
):
    """Return a list of (name of the path, the sets that take it, why)."""
    sets, layout = np.arange(len(offsets) - 1), layout_for(offsets, widths, aggregate, pool, precision, orders)
    if isinstance(layout, Layout):
        room = layout.shared_bytes(np.diff(offsets).max())
        block = f"a block of {layout.threads} threads and {room:,} bytes of shared memory"
        if layout.cluster > 1:
            block = f"a cluster of {layout.cluster} blocks, each of{block.removeprefix('a block of')}"
        why = f"{block} takes a set through all layers"
        cores = f", on tensor cores in {IN_WORDS[precision]}" if layout.tensor_cores else ""
        return [("resident", sets, f"{why}, as wide as {layout.width}{cores}")]
    *of_layers, of_head = pairwise(widths)
    products = {(inner, columns): _product(inner, columns, precision) for inner, columns in of_layers}
    products.setdefault(of_head, _product(*of_head, "float32"))
    rule = ", ".join(f"{inner} to {columns} columns: {product}" for (inner, columns), product in products.items())
    if may_be_in_pairs(widths, aggregate, pool, orders, precision):
        rule += "; activations are kept in bfloat16"
    return [("fused tiles", sets, f"{layout}: layer by layer, all sets in one launch; {rule}")]


def _product(inner, columns, precision):
    rounds, way = precision in IN_WORDS, way_of(inner, columns, precision)
    if way == BY_LIBRARY:
        return f"NVIDIA's library{f', in {IN_WORDS[precision]}' if rounds else ''}"
    if way == ON_WARPGROUPS:
        rows, columns = product_on_warpgroups.ROWS, product_on_warpgroups.COLUMNS
        return (
            f"tiles of {rows} \N{MULTIPLICATION SIGN} {columns} by warpgroups on tensor cores, in {IN_WORDS[precision]}"
        )
    if way == BY_TILES and inner <= product_of_few.MOST:
        return f"a kernel for few features{', in float32' if rounds else ''}"
    tile = product_on_cores.TILE if way == ON_CORES else suited(columns)[0]
    tiles = f"tiles of {tile.rows} \N{MULTIPLICATION SIGN} {tile.columns}"
    if way == ON_CORES:
        return f"{tiles} on tensor cores, in {IN_WORDS[precision]}"
    return f"{tiles}{', in float32' if rounds else ''}"
