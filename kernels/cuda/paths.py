"""Which way a batch takes through a network, and why; what decides is `product.TILES`.

| path | sets | when |
|---|---|---|
| fused tiles | all | always: a launch for the product of each layer, with tiles by the number of its columns |
"""

import numpy as np

from fastperm.kernels.cuda.product import suited


def paths(
    offsets,  # (S + 1,)
    widths,  # K_0, K_1, ..., K_D, K_fin
):
    """Return a list of (name of the path, the sets that take it, why)."""
    tiles = [suited(columns)[0] for columns in widths[1:]]
    rule = ", ".join(
        f"{columns} columns: {tile.rows} \N{MULTIPLICATION SIGN} {tile.columns}"
        for columns, tile in dict(zip(widths[1:], tiles, strict=True)).items()
    )
    return [("fused tiles", np.arange(len(offsets) - 1), f"layer by layer, all sets in one launch; tiles for {rule}")]
