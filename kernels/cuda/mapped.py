"""A number of the host that kernels read and write where it is.

It lies in memory that is pinned, which every GPU of today's can address. So what the host tells a kernel, or a kernel
the host, needs no copy, which would cost more than the kernel. Only one thread should touch it: each time it takes a
way across the bus.
"""

from types import SimpleNamespace

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, xp


class MappedNumber:
    """A number that a kernel is passed as an array of one.

    Parameters
    ----------
    dtype : dtype
        Its type.

    Attributes
    ----------
    on_host : array of shape (1,)
        The number, for the host. What kernels write is there once their stream has been waited for.
    """

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        memory = bytearray(self.dtype.itemsize) if SIMULATED else xp().cuda.alloc_pinned_memory(self.dtype.itemsize)
        self.on_host = np.frombuffer(memory, self.dtype, 1)
        self.on_host[0] = 0
        self.data = SimpleNamespace(ptr=self.on_host.ctypes.data)  # the same address for both
