"""A stand-in for CuPy, as strict as CuPy: its arrays never become NumPy's by themselves, and never mix with them.

Memory is the host's, so that the simulator can run kernels on it. What CuPy leaves as it finds it, `empty`, is all NaN.
"""

import ctypes
import operator
from types import ModuleType, SimpleNamespace
from weakref import WeakValueDictionary

import numpy as np

_owners: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()  # what arrays lie in, by its address

BINARY = ("add", "sub", "mul", "truediv", "and_", "or_", "lshift", "lt", "le", "gt", "ge", "eq", "ne")


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on the device."""

    device = SimpleNamespace(id=0)
    __hash__ = None

    def __init__(self, array):
        self._array = array
        owner = _owner(array)
        if owner.nbytes:
            _owners[owner.ctypes.data] = owner

    @property
    def __cuda_array_interface__(self):
        return self._array.__array_interface__

    def __dlpack_device__(self):
        return 2, self.device.id

    def get(self):
        return self._array.copy()

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        return _wrapped(getattr(ufunc, method)(*_on_device(inputs), **settings))

    def __getattr__(self, name):
        if name.startswith("__array"):  # by which NumPy would take it
            raise AttributeError(name)
        found = getattr(self._array, name)
        return _function(found) if callable(found) else found

    @property
    def T(self):  # noqa: N802 (CuPy's name)
        return ndarray(self._array.T)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._array.ctypes.data)

    def __len__(self):
        return len(self._array)

    def __bool__(self):
        return bool(self._array)

    def __int__(self):
        return int(self._array)

    def __float__(self):
        return float(self._array)

    def __format__(self, form):
        return format(self._array[()], form)

    def __invert__(self):
        return ndarray(~self._array)

    def __iadd__(self, other):
        self._array += _on_device(other)
        return self

    def __getitem__(self, index):
        return _wrapped(self._array[_on_device(index)])

    def __setitem__(self, index, value):
        self._array[_on_device(index)] = _on_device(value)


def piece_at(address):
    """Return where the memory begins that an array with this address lies in, and its bytes."""
    for start, owner in list(_owners.items()):
        if start <= address < start + owner.nbytes:
            memory = (ctypes.c_uint8 * owner.nbytes).from_address(start)
            return start, np.frombuffer(memory, np.uint8)
    raise KeyError(f"no array on the device has the address {address:#x}")


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _operator(name):
    function = getattr(operator, name)
    return lambda self, other: _wrapped(function(self._array, _on_device(other)))


for _name in BINARY:
    setattr(ndarray, f"__{_name.rstrip('_')}__", _operator(_name))


def _on_device(value):
    """Return what stands behind an array of the device; one of the host is refused."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_device, value))
    return value


def _wrapped(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return value


def _function(function):
    return lambda *args, **settings: _wrapped(
        function(*map(_on_device, args), **{name: _on_device(value) for name, value in settings.items()})
    )


# Of NVIDIA's headers.
CUDA_R_32F, CUDA_R_16BF = 0, 14
CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77


def gemm_ex(handle, of_A, of_B, m, n, k, alpha, A, A_type, lda, B, B_type, ldb, beta, C, C_type, ldc, compute, how):
    """Write α op(A) op(B) + β C as cuBLAS does, for A and B in float32 or bfloat16: matrices lie column by column."""
    assert (handle, B_type, C_type, how) == ("handle", A_type, CUDA_R_32F, CUBLAS_GEMM_DEFAULT)
    assert (A_type, compute) in {
        (CUDA_R_32F, CUBLAS_COMPUTE_32F),
        (CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
        (CUDA_R_16BF, CUBLAS_COMPUTE_32F),
    }
    one, added = (ctypes.c_float.from_address(place).value for place in (alpha, beta))
    factors = []
    for place, lead, way, (rows, columns) in ((A, lda, of_A, (m, k)), (B, ldb, of_B, (k, n))):
        assert way in (CUBLAS_OP_N, CUBLAS_OP_T)
        shape = (rows, columns) if way == CUBLAS_OP_N else (columns, rows)
        if A_type == CUDA_R_16BF:
            numbers = (_columns(place, *shape, lead, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            numbers = _columns(place, *shape, lead, np.float32)
        factors.append(numbers if way == CUBLAS_OP_N else numbers.T)
    out = _columns(C, m, n, ldc, np.float32)
    before = added * out if added else 0  # C may be anything where it is not added
    out[:] = one * (factors[0] @ factors[1]) + before


def _columns(place, rows, columns, lead, dtype):
    assert lead >= rows
    size = (lead * (columns - 1) + rows) * np.dtype(dtype).itemsize
    memory = np.frombuffer((ctypes.c_char * size).from_address(place), dtype)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), (memory.itemsize, lead * memory.itemsize))


class PinnedMemory(bytearray):
    """Memory of the host, at an address that stays, which the device can address, too."""

    def __init__(self, size):
        super().__init__(size)
        self._array = np.frombuffer(self, np.uint8)
        self.ptr = self._array.ctypes.data
        _owners[self.ptr] = self._array


class Cupy(ModuleType):
    """The module."""

    ndarray = ndarray

    def __init__(self, current=0):
        super().__init__("cupy")
        self.cuda = SimpleNamespace(
            Device=lambda: SimpleNamespace(id=current),
            get_current_stream=lambda: SimpleNamespace(ptr=0, synchronize=lambda: None, is_capturing=lambda: False),
            alloc_pinned_memory=PinnedMemory,
            cublas=SimpleNamespace(
                gemmEx=gemm_ex,
                CUBLAS_OP_N=CUBLAS_OP_N,
                CUBLAS_OP_T=CUBLAS_OP_T,
                CUBLAS_COMPUTE_32F=CUBLAS_COMPUTE_32F,
                CUBLAS_COMPUTE_32F_FAST_TF32=CUBLAS_COMPUTE_32F_FAST_TF32,
                CUBLAS_GEMM_DEFAULT=CUBLAS_GEMM_DEFAULT,
            ),
            device=SimpleNamespace(get_cublas_handle=lambda: "handle"),
            runtime=SimpleNamespace(
                CUDA_R_32F=CUDA_R_32F,
                CUDA_R_16BF=CUDA_R_16BF,
                pointerGetAttributes=lambda _: SimpleNamespace(device=0),
            ),
        )
        self.add = SimpleNamespace(reduceat=_function(np.add.reduceat))

    @staticmethod
    def asarray(x, dtype=None):
        """Take an array to the device; one that lies there is itself."""
        if isinstance(x, ndarray) and (dtype is None or x.dtype == dtype):
            return x
        if hasattr(x, "owner"):  # some other library's, on the device
            return ndarray(x.owner)
        return ndarray(np.array(x._array if isinstance(x, ndarray) else x, dtype))

    @staticmethod
    def array(x):
        """Take a copy of an array to the device."""
        return ndarray(np.array(x._array if isinstance(x, ndarray) else x))

    @staticmethod
    def from_dlpack(x):
        return ndarray(x.owner)

    @staticmethod
    def ascontiguousarray(x, dtype=None):
        wanted = np.ascontiguousarray(x._array, dtype)
        return x if wanted is x._array else ndarray(wanted)

    @staticmethod
    def empty(shape, dtype=float):
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(255) if array.ndim else array.fill(-1)
        return ndarray(array)

    @classmethod
    def empty_like(cls, array):
        return cls.empty(array.shape, array.dtype)

    def __getattr__(self, name):
        found = getattr(np, name)
        return _function(found) if callable(found) and not isinstance(found, type) else found
