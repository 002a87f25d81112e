"""Work that is put on a stream again and again with the same arguments: CUDA graphs.

A launch costs the host some microseconds, and what leads to it in Python ten times as much. A graph is launched once
for all of them. CuPy lets no product of NVIDIA's library into a graph: such a product stands between two graphs, and is
called again. Whatever else CuPy computes by itself is not recorded at all.
"""

import logging
from itertools import groupby

from fastperm.kernels.cuda.compiling import SIMULATED, recorded, xp

_logger = logging.getLogger("fastperm")


class Graph:
    """Work that was done once, and can be done again by `launch`.

    Parameters
    ----------
    work : callable
        Does it, once, now. What it returns is the attribute ``result``.
    lent : sequence of arrays
        Arguments whose memory is the caller's, who sees to it that they are there whenever the graph is launched. That
        of all others stays the graph's.
    """

    def __init__(self, work, lent=()):
        with recorded() as found:
            self.result = work()
        self._parts: list = []
        for launches, together in groupby(found, lambda one: one.launch):
            in_a_row = list(together)
            self._parts += _captured(in_a_row) if launches and not SIMULATED else in_a_row
        arguments = [argument for one in found for argument in one.arguments if hasattr(argument, "data")]
        places = set() if SIMULATED else {array.data.ptr for array in lent if array is not None}
        self._own = [array for array in arguments if not SIMULATED and array.data.ptr not in places]

    def launch(self):
        """Do all work again on the current stream, in its order."""
        for part in self._parts:
            part.again()


class _Captured:
    """Launches as the driver keeps them."""

    def __init__(self, graph):
        self.again = graph.launch


def _captured(launches):
    """Return launches in a row as one CUDA graph, in a list; or as they are, where the driver makes none of them."""
    if len(launches) == 1:
        return launches
    stream = xp().cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    try:
        with stream:
            stream.begin_capture()
            try:
                for one in launches:
                    one.again()
            finally:
                graph = stream.end_capture()
    except Exception as error:  # then it goes on as it began
        _logger.warning("a training step cannot be captured as a CUDA graph (%s); its kernels are launched", error)
        return launches
    return [_Captured(graph)]
