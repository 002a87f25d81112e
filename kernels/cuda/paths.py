"""Which way a batch takes through a network, and why.

| path | sets | when |
|---|---|---|
| resident | all | `resident.layout_for` finds a layout: narrow layers, a mean or a sum, and a set fits on chip |
| fused tiles | all | otherwise: a launch for the product of each layer, with tiles by the number of its columns |

In fused tiles, a product of at least `product.LIBRARY` columns is NVIDIA's.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cuda.product import LIBRARY, suited
from fastperm.kernels.cuda.resident import Layout, layout_for


def paths(
    offsets,  # (S + 1,)
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
):
    """Return a list of (name of the path, the sets that take it, why)."""
    sets, layout = np.arange(len(offsets) - 1), layout_for(offsets, widths, aggregate, pool)
    if isinstance(layout, Layout):
        room = layout.shared_bytes(np.diff(offsets).max())
        why = f"a block of {layout.threads} threads and {room:,} bytes of shared memory takes a set through all layers"
        return [("resident", sets, f"{why}, as wide as {layout.width}")]
    tiles = {columns: _product(inner, columns) for inner, columns in pairwise(widths)}
    rule = ", ".join(f"{columns} columns: {tile}" for columns, tile in tiles.items())
    return [("fused tiles", sets, f"{layout}: layer by layer, all sets in one launch; {rule}")]


def _product(inner, columns):
    if min(inner, columns) >= LIBRARY:
        return "NVIDIA's library"
    tile, _ = suited(columns)
    return f"tiles of {tile.rows} \N{MULTIPLICATION SIGN} {tile.columns}"
