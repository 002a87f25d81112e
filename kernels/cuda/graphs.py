"""Launches that are made again and again with the same arguments: a CUDA graph.

A launch costs the host some microseconds, and what leads to it in Python ten times as much. A graph is launched once
for all of them. What is not a launch of this backend is not recorded: no product of NVIDIA's library, and nothing that
CuPy computes by itself.
"""

import logging

from fastperm.kernels.cuda.compiling import SIMULATED, recorded, xp

_logger = logging.getLogger("fastperm")


class Graph:
    """Launches that were made once, and can be made again by `launch`.

    Parameters
    ----------
    work : callable
        Makes the launches, once, now. What it returns is the attribute ``result``.
    lent : sequence of arrays
        Arguments whose memory is the caller's, who sees to it that they are there whenever the graph is launched. That
        of all others stays the graph's.
    """

    def __init__(self, work, lent=()):
        with recorded() as self._launches:
            self.result = work()
        self._graph = None if SIMULATED else self._captured()
        if self._graph:
            places = {array.data.ptr for array in lent if array is not None}
            arrays = [one for _, _, arguments, _ in self._launches for one in arguments if hasattr(one, "data")]
            self._own, self._launches = [one for one in arrays if one.data.ptr not in places], []

    def launch(self):
        """Make all launches again on the current stream, in their order."""
        if self._graph:
            self._graph.launch()
        else:
            self._launch_one_by_one()

    def _launch_one_by_one(self):
        for kernel, blocks, arguments, shared in self._launches:
            kernel(blocks, *arguments, shared=shared)

    def _captured(self):
        """Return the launches as a CUDA graph; None where the driver makes none of them."""
        stream = xp().cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        try:
            with stream:
                stream.begin_capture()
                try:
                    self._launch_one_by_one()
                finally:
                    graph = stream.end_capture()
        except Exception as error:  # then it goes on as it began
            _logger.warning("a training step cannot be captured as a CUDA graph (%s); its kernels are launched", error)
            return None
        return graph
