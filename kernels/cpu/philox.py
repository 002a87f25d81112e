"""That of ``kernels/reference/philox.py``."""

from fastperm.kernels.reference.philox import normals as normals
from fastperm.kernels.reference.philox import philox as philox
from fastperm.kernels.reference.philox import uniforms as uniforms
