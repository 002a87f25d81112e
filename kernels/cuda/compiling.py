"""How the cuda backend is compiled and launched; the only module here that imports numba.cuda.

Numba makes PTX out of a kernel, and CuPy loads and launches it: a launch through Numba itself costs some 88 µs of host
time, as it takes every array for nine parameters. So kernels take bare pointers and sizes, and index flat arrays.

PTX is kept on disk, in a folder ``cuda-STAMP`` of the user's cache folder, where STAMP is that of all sources of the
backend and of the reference. The name of a file holds the kernel, the architecture and the version of the compiler. A
machine that has no compiler takes what it finds there: such a folder can be filled on one machine (`fill_cache`) and
used on another. Where the folder cannot be written to, every process compiles for itself.

With ``NUMBA_ENABLE_CUDASIM=1`` the same kernels run on NumPy arrays, in Numba's simulator, without a GPU.
"""

import contextlib
import ctypes
import functools
import importlib
import logging
import os
import re
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numba.misc.appdirs import user_cache_dir

from fastperm.kernels.cuda.analysis import inliner, lister, live_map, postprocessor, resolver, rewriter
from fastperm.kernels.sources import stamp_of

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

# Of CUDA, for parameters in one block of memory (CU_LAUNCH_PARAM_…).
_BUFFER, _BUFFER_SIZE = 1, 2
# Of CUDA (CUDA_ERROR_…): there is no memory; and what the driver says of PTX that it does not take (INVALID_IMAGE,
# NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION, INVALID_SOURCE, NOT_FOUND).
_OUT_OF_MEMORY, _REFUSALS = 2, (200, 209, 218, 222, 300, 500)
# Of CUDA (CU_STREAM_PER_THREAD): an address that stands for another stream in each thread.
_PER_THREAD = 2

FLOAT32 = numba.types.float32  # for dynamic shared memory, where the simulator does not take NumPy's

_logger = logging.getLogger("fastperm")

# Why numba-cuda, which compiles the kernels, is not there; None if it is.
NO_COMPILER = None
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the version that Numba itself brings, where numba-cuda is missing
        from numba import cuda

        if not SIMULATED:
            from numba.cuda.extending import intrinsic as intrinsic  # for vectors.py
except ImportError as error:  # kernels that were compiled elsewhere can still be launched
    cuda, NO_COMPILER = None, f"is not installed ({error})"
except Exception as error:  # a library that it loads at import may be broken in any way
    cuda, NO_COMPILER = None, f"cannot be imported ({type(error).__name__}: {error})"

# Oldest first. PTX for an architecture also runs on later ones: the driver compiles it for the card it finds.
ARCHITECTURES = ((8, 0), (9, 0), (10, 0))

# How many blocks may be a cluster, and from which architecture on: they run at the same time, and read each other's
# shared memory. More than 8 are not promised for every card, and Numba's simulator runs one block at a time.
CLUSTERS, LEAST_OF_CLUSTERS = (1, 2, 4, 8), (9, 0)
# The one architecture that has products of warpgroups; later ones have others.
HOPPER = (9, 0)
SIMULATED_CLUSTERS = (1,)

KERNELS: dict[str, "Kernel"] = {}

_analysis = threading.Lock()


class Work(NamedTuple):
    """What was put on a stream, by a call that can be made again."""

    function: Callable
    arguments: tuple
    settings: dict
    launch: bool  # of a kernel of ours: a stream that is captured takes it

    def again(self):
        """Put it on the current stream again."""
        self.function(*self.arguments, **self.settings)


class _Records(threading.local):
    """Where the work of this thread is remembered, the innermost last; nowhere, as a rule."""

    def __init__(self):
        self.lists: list[list[Work]] = []


_records = _Records()


class _Packed(threading.local):
    """Memory for the parameters of a launch, which reads them before it returns, of each thread its own."""

    def __init__(self, size):
        self.memory, self._size = ctypes.create_string_buffer(size), ctypes.c_size_t(size)
        addresses = _BUFFER, ctypes.addressof(self.memory), _BUFFER_SIZE, ctypes.addressof(self._size), None
        self._extra = (ctypes.c_void_p * 5)(*addresses)
        self.extra = ctypes.addressof(self._extra)


class Kernel:
    """A kernel: calling it launches it on the current stream.

    Parameters
    ----------
    function : function
        Its body: each thread runs it.
    name : str
        Its name, unique in the backend.
    parameters : sequence of str
        Types of its parameters: "f4", "f8", "i4", "i8", or one of these with "*" for an array, which is a pointer.
    threads : int
        Threads of a block.
    blocks : int, default=1
        Blocks that a multiprocessor should hold: what their registers leave room for.
    dynamic : bool, default=False
        Whether its shared memory has a size that the launch gives.
    clustered : bool, default=False
        Whether its blocks are clusters, as large as the launch says.
    only : (int, int) or None, default=None
        The one architecture that it runs on, whose own instructions it has; None for all.
    """

    def __init__(self, function, name, parameters, threads, blocks=1, dynamic=False, clustered=False, only=None):
        self.function, self.name, self.parameters, self.threads = function, name, tuple(parameters), threads
        self.blocks, self.dynamic, self.clustered, self.only = blocks, dynamic, clustered, only
        self._takes = tuple(map(_argument, self.parameters))
        # Aligned as C aligns them, and so does CUDA.
        self._packing = struct.Struct("@" + "".join(map(_code, self.parameters)))
        self._packed = _Packed(self._packing.size)
        if name in KERNELS:
            raise ValueError(f"there are two kernels called {name}")
        KERNELS[name] = self

    def __call__(self, blocks, *arguments, shared=0, cluster=1):
        """Launch so many blocks, each with so many bytes of dynamic shared memory, in clusters of so many blocks.

        None stands for an array that the kernel will not touch.
        """
        if blocks == 0:
            return
        if _records.lists:
            settings = {"shared": shared, "cluster": cluster}
            _records.lists[-1].append(Work(self, (blocks, *arguments), settings, True))
        values = tuple([take(argument) for take, argument in zip(self._takes, arguments, strict=True)])
        if SIMULATED:
            flat = map(_simulated_argument, self.parameters, values)
            self._simulated.cluster = cluster  # for the simulator of the tests; Numba's own knows none
            self._simulated[blocks, self.threads, 0, shared](*flat)
            return
        # As one block of memory: CuPy's own launch takes twice the time for the twenty or so parameters of a kernel.
        self._packing.pack_into(self._packed.memory, 0, *values)
        function, stream = _loaded(self.name, current_device(), cluster), xp().cuda.get_current_stream().ptr
        try:
            xp().cuda.driver.launchKernel(
                *(function.kernel.ptr, blocks, 1, 1, self.threads, 1, 1, shared, stream, 0, self._packed.extra)
            )
        except Exception as error:
            raise_memory_error(error)
            raise

    def compile(self, architecture, by=None):
        """Return PTX for an architecture, such as (9, 0), whose entry bears the name of the kernel.

        ``by`` is the architecture that NVIDIA's compiler is asked for, by default the latest of `ARCHITECTURES`: for
        that it is one with a later LLVM, whose large kernels spill half as much, or nothing, on all of them.
        """
        with quick_analysis(), warnings.catch_warnings():  # the filters as another thread has left them
            warnings.simplefilter("ignore")  # advice about CUDA's own compiler
            ptx, _ = cuda.compile_ptx(self.function, self.signature, cc=by or ARCHITECTURES[-1])
        return self.for_architecture(self.finished(ptx), architecture)

    def for_architecture(self, ptx, architecture):
        """Return its PTX with the name of another architecture that it runs on; nothing else differs."""
        own = name_of(architecture) + ("a" if self.only else "")  # which says that no other one runs it
        return re.sub(r"^\.target sm_\w+", f".target {own}", ptx, flags=re.MULTILINE)

    def finished(self, ptx):
        """Return what Numba has made of the kernel as a GPU should get it."""
        entry = re.findall(r"\.entry (\w+)", ptx)[0]
        # Numba aligns shared memory to its elements, and its simulator knows no other way; vectors need 16 bytes.
        ptx = re.sub(r"\.shared \.align [1248] ", ".shared .align 16 ", ptx.replace(entry, self.name))
        # Without these, a thread may get more registers than there are for a block.
        bounds = f".maxntid {self.threads}, 1, 1\n.minnctapersm {self.blocks}"
        if self.clustered:
            bounds += f"\n{_cluster_of(1)}"
        return re.sub(rf"(\.entry {self.name}\([^)]*\))", rf"\1\n{bounds}", ptx)

    def runs_on(self, architecture):
        """Return whether an architecture has what the kernel needs."""
        if self.only:
            return architecture == self.only
        return architecture >= LEAST_OF_CLUSTERS or not self.clustered

    @property
    def signature(self):
        """The types of its parameters, as Numba knows them."""
        return numba.types.void(*(_numba_type(parameter) for parameter in self.parameters))

    @functools.cached_property
    def _simulated(self):
        return cuda.jit(self.function)


def _cluster_of(blocks):
    """Return what PTX says of a kernel whose blocks are clusters; any launch of it then makes them."""
    return f".reqnctapercluster {blocks}, 1, 1"


def kernel(parameters, *, name=None, **settings):
    """Make a `Kernel` of a function, with the types of its parameters in one string."""
    return lambda function: Kernel(function, name or function.__name__.lstrip("_"), parameters.split(), **settings)


def device(function):
    """Make a function that kernels call.

    It becomes part of them before Numba infers types: local arrays that it is given stay in registers, and Numba, which
    compiles functions of their own for the current device, asks for none.
    """
    if cuda is None:
        return function
    return cuda.jit(device=True)(function) if SIMULATED else cuda.jit(device=True, inline="always")(function)


@contextlib.contextmanager
def quick_analysis():
    """Let Numba do our way meanwhile what ``analysis.py`` does, where it is known how Numba comes to it."""
    ours = {
        ("numba.cuda.core.analysis", "compute_live_map"): lambda _: live_map,
        ("numba.cuda.core.postproc", "PostProcessor.run"): postprocessor,
        ("numba.cuda.core.ssa", "_run_block_rewrite"): rewriter,
        ("numba.cuda.core.inline_closurecall", "InlineWorker.inline_function"): inliner,
        ("numba.cuda.core.ir", "Inst._rec_list_vars"): lister,
        ("numba.core.types.functions", "BaseFunction.get_call_type"): resolver,
    }
    with _analysis, contextlib.ExitStack() as stack:  # another thread would put ours back as Numba's
        for (place, path), make in ours.items():
            # They are not for others to change, and may move.
            with contextlib.suppress(ImportError, AttributeError):
                *outer, name = path.split(".")
                owner = functools.reduce(getattr, outer, importlib.import_module(place))
                numbas = getattr(owner, name)
                stack.callback(setattr, owner, name, numbas)
                setattr(owner, name, make(numbas))
        yield


@contextlib.contextmanager
def recorded():
    """Give a list that gets all `Work` of this backend that this thread puts on streams meanwhile."""
    found: list[Work] = []
    _records.lists.append(found)
    try:
        yield found
    finally:
        _records.lists.pop()


def put(function, *arguments):
    """Call a function that puts work on the current stream that is no launch of a kernel of ours."""
    if _records.lists:
        _records.lists[-1].append(Work(function, arguments, {}, False))
    function(*arguments)


@functools.cache
def xp():
    """Return the module of arrays: CuPy, or NumPy in the simulator. CuPy is imported here, on first use."""
    if SIMULATED:
        return np
    import cupy

    return cupy


def cache_folder():
    """Return the folder of compiled kernels: in ``FASTPERM_CACHE_DIR``, or ``fastperm`` in the user's cache folder."""
    return Path(os.environ.get("FASTPERM_CACHE_DIR") or user_cache_dir("fastperm")) / f"cuda-{_source_stamp()}"


def fill_cache(architectures=ARCHITECTURES, *, processes=1):
    """Compile all kernels for these architectures into `cache_folder`, and return how many files it has for them."""
    wanted = [tuple(architectures)] * len(KERNELS)
    if processes == 1:
        return sum(map(_fill, KERNELS, wanted))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:  # Numba compiles in one thread at a time
        return sum(pool.map(_fill, KERNELS, wanted))


def _fill(name, architectures):
    """Compile a kernel into `cache_folder` for those of these architectures that it runs on; return their number."""
    kernel = KERNELS[name]
    own = [architecture for architecture in architectures if kernel.runs_on(architecture)]
    made = functools.cache(lambda: kernel.compile(own[0]))  # if any of them is missing
    return sum(_ptx(name, one, make=lambda one=one: kernel.for_architecture(made(), one)).exists() for one in own)


def load(name):
    """Load a kernel on the current device."""
    _loaded(name, current_device(), 1)


def compiler():
    """Return name and version of the compiler that is installed here, or None."""
    if cuda is None or SIMULATED:
        return None
    try:
        return f"numba-cuda-{metadata.version('numba-cuda')}"
    except metadata.PackageNotFoundError:
        return None


def target(capability):
    """Return the architecture to compile for, given the compute capability of a card: the latest that it can run.

    Raises
    ------
    RuntimeError
        If the card is too old.
    """
    suitable = [architecture for architecture in ARCHITECTURES if architecture <= capability]
    if not suitable:
        wanted, found = (".".join(map(str, version)) for version in (ARCHITECTURES[0], capability))
        raise RuntimeError(f"the GPU has compute capability {found}; expected at least {wanted}")
    return suitable[-1]


def current_architecture():
    """Return what to compile for on the current device."""
    import cupy

    capability = cupy.cuda.Device().compute_capability
    return target((int(capability[:-1]), int(capability[-1])))


def most_shared_memory():
    """Return the bytes of shared memory that a block may have on the current device."""
    return 1 << 15 if SIMULATED else _most_shared_memory(current_device())


@functools.cache
def _most_shared_memory(device):
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


def memory_bytes():
    """Return the bytes of memory that the current device has."""
    return 1 << 33 if SIMULATED else _memory_bytes(current_device())


@functools.cache
def _memory_bytes(device):
    return xp().cuda.runtime.memGetInfo()[1]


def clusters():
    """Return how many blocks a cluster may have on the current device, the fewest first; nothing if it has none."""
    return SIMULATED_CLUSTERS if SIMULATED else _clusters(current_device())


@functools.cache
def _clusters(device):
    return CLUSTERS if current_architecture() >= LEAST_OF_CLUSTERS else ()


def compiled_elsewhere(architecture):
    """Return whether `cache_folder` has all kernels for an architecture, from whatever compiler."""
    return all(_stored(name, architecture) for name, kernel in KERNELS.items() if kernel.runs_on(architecture))


@functools.cache
def _source_stamp():
    return stamp_of(Path(__file__).parent)[:16]


def _stored(name, architecture):
    """Return the files of a kernel, the newest last."""
    found = cache_folder().glob(f"{name}-{name_of(architecture)}-*.ptx")
    return sorted(found, key=lambda path: path.stat().st_mtime)


def name_of(architecture):
    """Return what NVIDIA calls an architecture: sm_90 for (9, 0)."""
    return f"sm_{architecture[0]}{architecture[1]}"


def _ptx(name, architecture, folder=None, make=None):
    """Return the file with the PTX of a kernel, compiled into ``folder``, or `cache_folder`, if it is not there.

    ``make`` is called for the PTX; by default the kernel is compiled.
    """
    made_by = compiler()
    if made_by is None:
        if stored := _stored(name, architecture):
            return stored[-1]
        raise RuntimeError(
            f"kernel {name} was not compiled for {name_of(architecture)}: numba-cuda "
            f"{NO_COMPILER or 'is not installed'}, and {cache_folder()} does not have it"
        )
    path = (folder or cache_folder()) / f"{name}-{name_of(architecture)}-{made_by}.ptx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes and threads may compile the same kernel at once: each writes a file of its own.
        unfinished = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        unfinished.touch()  # before it is compiled: this folder may refuse
        try:
            unfinished.write_text(make() if make else KERNELS[name].compile(architecture))
            unfinished.replace(path)
        except OSError:
            raise
        except Exception as error:  # a compiler that does not go with its libraries; another's work will do
            if not (stored := _stored(name, architecture)):
                raise
            _logger.warning("%s does not compile kernel %s (%s); %s is taken", made_by, name, error, stored[-1])
            return stored[-1]
        finally:
            unfinished.unlink(missing_ok=True)
    return path


@functools.cache
def _own_folder():
    """Return a folder that goes away with this process."""
    return tempfile.TemporaryDirectory(prefix="fastperm-")


def current_device():
    """Return the number of the current device."""
    return xp().cuda.runtime.getDevice()


def current_place():
    """Return what tells streams apart: the current device, the address of its current stream, and a thread or 0."""
    if SIMULATED:
        return 0, 0, 0
    stream = xp().cuda.get_current_stream().ptr
    return current_device(), stream, threading.get_ident() if stream == _PER_THREAD else 0


def raise_memory_error(error):
    """Raise a MemoryError if that is what an error of CUDA means, which for CuPy is one only where it allocates."""
    if getattr(error, "status", None) == _OUT_OF_MEMORY:
        raise MemoryError(str(error)) from error


@functools.cache
def _loaded(name, device, cluster):
    """Return the kernel as CuPy launches it, in clusters of so many blocks, on a device, which is the current one."""
    architecture = current_architecture()
    try:
        path = _ptx(name, architecture)
    except OSError:  # a home that cannot be written to
        path = _ptx(name, architecture, Path(_own_folder().name))
    # The file may be damaged: once more, from the source. If it has an instruction that this card lacks: for the card
    # itself. If that is refused too, the driver says why.
    ways = [None] if architecture == ARCHITECTURES[-1] else [None, architecture]
    attempt = 0
    while True:
        try:
            return _loaded_from(path, name, cluster, attempt)
        except Exception as error:
            raise_memory_error(error)
            if getattr(error, "status", _REFUSALS[0]) not in _REFUSALS:  # the file is not to blame
                raise
            if not compiler():
                raise RuntimeError(f"the GPU's driver does not take {path} ({error})") from error
            if attempt == len(ways):
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
            _logger.warning("the GPU's driver does not take %s (%s); it is compiled anew", path, error)
            path = _compiled_anew(path, name, architecture, ways[attempt])
            attempt += 1


def _compiled_anew(path, name, architecture, by):
    """Return the file that takes the place of one that the driver refused, in another folder if need be."""
    make = functools.partial(KERNELS[name].compile, architecture, by=by)
    try:
        path.unlink(missing_ok=True)
        return _ptx(name, architecture, path.parent, make)
    except OSError:  # the folder is somebody else's
        own = Path(_own_folder().name)
        (own / path.name).unlink(missing_ok=True)
        return _ptx(name, architecture, own, make)


def _loaded_from(path, name, cluster, attempt):
    import cupy

    if cluster > 1 or attempt:  # CuPy takes no text, and knows a file again by its name, whatever it holds
        text = path.read_text().replace(_cluster_of(1), _cluster_of(cluster))
        path = Path(_own_folder().name) / f"{path.stem}-{cluster}-{attempt}-{threading.get_ident()}.ptx"
        path.write_text(text)
    function = cupy.RawModule(path=str(path)).get_function(name)
    if KERNELS[name].dynamic:
        function.max_dynamic_shared_size_bytes = most_shared_memory()
    return function


def _numba_type(parameter):
    own = {"f4": numba.types.float32, "f8": numba.types.float64, "i4": numba.types.int32, "i8": numba.types.int64}
    element = own[parameter.rstrip("*")]
    return numba.types.CPointer(element) if parameter.endswith("*") else element


def _code(parameter):
    """Return the character of a parameter for `struct`."""
    return "P" if parameter.endswith("*") else {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}[parameter]


def _argument(parameter):
    """Return a function that makes what a kernel is passed: an address (in the simulator an array), or a number."""
    dtype = np.dtype(parameter.rstrip("*"))
    if not parameter.endswith("*"):
        if SIMULATED:
            return dtype.type
        return int if dtype.kind == "i" else float

    def take(argument):
        if argument is None:
            return 0
        if not SIMULATED and isinstance(argument, np.ndarray):  # whose address means nothing to the GPU
            raise TypeError("the cuda backend expected an array on the GPU, got one of NumPy")
        if argument.dtype != dtype:
            raise TypeError(f"the cuda backend expected an array of {dtype}, got {argument.dtype}")
        return argument if SIMULATED else argument.data.ptr

    return take


def _simulated_argument(parameter, value):
    if parameter.endswith("*"):
        if isinstance(value, int):  # no array
            return np.zeros(1, parameter[:-1])
        value = getattr(value, "on_host", value)
        assert value.flags.c_contiguous  # a copy would be written to in its place
        return value.reshape(-1) if value.flags.writeable else value.flatten()  # the simulator writes everything back
    return value
