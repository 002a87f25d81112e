"""Launches that are made again and again with the same arguments: a CUDA graph.

A launch costs the host some microseconds, and what leads to it in Python ten times as much. A graph is launched once
for all of them. What is not a launch of this backend is not recorded: no product of NVIDIA's library, and nothing that
CuPy computes by itself.
"""

import logging

from fastperm.kernels.cuda.compiling import SIMULATED, recorded, xp

_logger = logging.getLogger("fastperm")


class Graph:
    """Launches that were made once, by `record`, and can be made again, by `launch`."""

    def __init__(self):
        self._launches = []  # with their arguments: as long as they are here, their memory is nobody else's
        self._graph = None

    def record(self, work):
        """Do the work, remember its launches, and return what it returns."""
        with recorded() as launches:
            result = work()
        self._launches = launches
        return result

    def launch(self):
        """Make all launches again on the current stream, in their order."""
        if self._graph is None and not SIMULATED:
            self._graph = self._captured()
        if self._graph:
            self._graph.launch()
        else:
            self._launch_one_by_one()

    def _launch_one_by_one(self):
        for kernel, blocks, arguments, settings in self._launches:
            kernel(blocks, *arguments, **settings)

    def _captured(self):
        """Return the launches as a CUDA graph; False where the driver makes none of them."""
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
            return False
        return graph
