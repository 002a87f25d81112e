"""Which way a batch takes through a network, and why; what decides is `workers.least_large`.

| path | sets | when |
|---|---|---|
| set-resident | small | fewer elements than `least_large`: one worker takes a set through all layers, in its cache |
| chunked | large | the others: workers share the rows of a set, layer by layer; a prediction goes block by block |

`least_large` is the largest of LARGE_ELEMENTS, LARGE_NUMBERS over the width of the widest activation, and one part in
LARGE_PART of the elements of the batch.
"""

import numpy as np

from fastperm.kernels.cpu import workers


def paths(
    offsets,  # (S + 1,)
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
):
    """Return a list of (name of the path, the sets that take it, why)."""
    width = workers.widest_activation(widths, orders)
    large, least = workers.large_sets(offsets, width), workers.least_large(offsets, width)
    small = np.setdiff1d(np.arange(len(offsets) - 1), large)
    rule = (
        f"than {least:,} elements, the largest of {workers.LARGE_ELEMENTS:,}, {workers.LARGE_NUMBERS:,} / {width} (the "
        f"width) and 1/{workers.LARGE_PART} of the {offsets[-1]:,} elements of the batch"
    )
    found = []
    if small.size:
        found.append(("set-resident", small, f"fewer {rule}: one worker takes a set through all layers in its cache"))
    if large:
        found.append(("chunked", np.array(large), f"no fewer {rule}: workers share the rows of a set, layer by layer"))
    return found
