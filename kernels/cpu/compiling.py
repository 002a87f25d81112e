"""How the cpu backend is compiled: without the GIL, and cached on disk in the user's cache folder.

Numba's own ``cache=True`` writes beside the source, where index files survive an uninstall and then shadow an
editable install, and it looks only at the file of the function itself: a change in another file that was inlined goes
unnoticed. Here one stamp covers every source file of the backend and of the reference, and versions have folders of
their own, ``cpu-STAMP``: those that share one could take each other's code.
"""

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
from pathlib import Path

import llvmlite
import numba
from llvmlite import binding as llvm
from numba.core import caching
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, compile_result
from numba.core.registry import CPUDispatcher
from numba.core.types.misc import unliteral
from numba.misc.appdirs import user_cache_dir

from fastperm.kernels.sources import stamp_of


def cache_folder():
    """Return the folder of compiled code: ``FASTPERM_CACHE_DIR``, or ``fastperm`` in the user's cache folder."""
    return Path(os.environ.get("FASTPERM_CACHE_DIR") or user_cache_dir("fastperm"))


_logger = logging.getLogger("fastperm")


def why_not_kept():
    """Return why compiled code cannot be kept in `cache_folder`, or None if it can."""
    try:
        _own_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_own_folder()):
            return None
    except OSError as error:
        return error.strerror


@functools.cache
def _say_that_it_compiles():
    """Say, once in a process, what takes the time: a first step that seems to hang would be killed."""
    if why := why_not_kept():
        _logger.warning(
            "compiling kernels, up to a minute, in every process: they cannot be kept in %s (%s); "
            "FASTPERM_CACHE_DIR sets another folder",
            *(cache_folder(), why),
        )
    else:
        _logger.warning("compiling kernels, up to a minute; they are kept in %s", cache_folder())


@functools.cache
def _source_stamp():
    """Return the hash of what compiled code follows from: the sources, and what compiles them."""
    versions = f"{stamp_of(Path(__file__).parent)} numba {numba.__version__} llvmlite {llvmlite.__version__}"
    return hashlib.sha256(versions.encode()).hexdigest()


def _own_folder():
    """Return the folder of what this version has compiled."""
    return cache_folder() / f"cpu-{_source_stamp()[:16]}"


class _Locator(caching._CacheLocator):
    def __init__(self, py_func):
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self):
        return str(_own_folder())

    def get_source_stamp(self):
        return _source_stamp()

    def get_disambiguator(self):
        return str(self._line)

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func)


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _SubroutineCacheImpl(_CacheImpl):
    """What `_Linked` gives to be kept, and how it comes back."""

    def rebuild(self, target_context, payload):
        (name, bitcode), fndesc, environment, signature, _, _, _, reload_init, environments = payload
        library = _Linked(target_context.codegen(), name)
        library.take(bitcode)
        return compile_result(
            target_context=target_context,
            typing_context=target_context.typing_context,
            library=library,
            environment=environment,
            entry_point=target_context.get_executable(library, fndesc, environment),
            fndesc=fndesc,
            signature=signature,
            objectmode=False,
            lifted=(),
            reload_init=reload_init,
            referenced_envs=environments,
        )


class _CacheFile(caching.IndexDataCacheFile):
    """The code of a function for each kind of arguments, in files that are named by these.

    Numba counts the files: two processes that compile at once for different arguments give both the same number, and
    one of them is taken for the other. Here one may at most be forgotten, and is compiled again.
    """

    def save(self, key, data):
        name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


class _FunctionCache(caching.FunctionCache):
    """A cache that may fail: what cannot be read is compiled again, what cannot be written is left."""

    _impl_class: type[caching.CacheImpl] = _CacheImpl

    def __init__(self, py_func):
        super().__init__(py_func)
        self._cache_file = _CacheFile(self._cache_path, self._impl.filename_base, _source_stamp())

    def load_overload(self, sig, target_context):
        found = None
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a damaged pickle can raise anything
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            _say_that_it_compiles()
        return found

    def save_overload(self, sig, data):
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _NoCache(caching.NullCache):
    """In a home that cannot be written to, every process compiles anew."""

    def load_overload(self, sig, target_context):
        _say_that_it_compiles()


class _SubroutineCache(_FunctionCache):
    _impl_class = _SubroutineCacheImpl


if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and the cpu kernels are there in compiled form only")

_OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}
_functions: list[CFunc] = []  # C functions live as long as the process: their addresses are handed out


class _Function(CPUDispatcher):
    """A function that is compiled anew for other types, but not, as Numba would, for each number written in a call.

    Nor with a wrapper for callers in C: it goes through all optimisations with the function inlined once more.
    """

    def __init__(self, function, pipeline_class=Compiler, **options):
        super().__init__(
            py_func=function,
            targetoptions={"nopython": True, "nogil": True, "no_cfunc_wrapper": True, **options},
            pipeline_class=pipeline_class,
        )

    def get_call_template(self, args, kws):
        named = {name: unliteral(kind) for name, kind in kws.items()}
        return super().get_call_template(tuple(map(unliteral, args)), named)


class _Linked(JITCodeLibrary):
    """The code of a subroutine, which becomes part of that of its callers.

    So it is only simplified here; each caller inlines and vectorises it, and makes machine code of it. It cannot raise
    or print what it has computed: for that it would need an environment in memory.
    """

    def take(self, bitcode):
        """Begin with what `serialize_using_object_code` has given."""
        self._final_module = llvm.parse_bitcode(bitcode)
        self._finalized = True

    def serialize_using_object_code(self):
        return self.name, self._get_module_for_linking().as_bitcode()

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """It only gets the environment of a function, for machine code."""
        return self

    def set_env(self, name, environment):
        pass

    def _optimize_final_module(self):
        level = self._codegen._opt_level
        manager, builder = self._codegen._module_pass_manager(
            loop_vectorize=False, slp_vectorize=False, opt=level, cost="cheap"
        )
        manager.run(self._final_module, builder)

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _SubroutineCompiler(Compiler):
    def compile_extra(self, func):
        self.state.library = _Linked(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


class _Subroutine(_Function):
    """A function without the wrapper that Python would need, which takes longer to compile than many a function."""

    def __init__(self, function, **options):
        super().__init__(function, no_cpython_wrapper=True, pipeline_class=_SubroutineCompiler, **options)

    def add_overload(self, cres):
        self.overloads[tuple(cres.signature.args)] = cres  # not for Python, which would call a null pointer

    def _compile_for_args(self, *args, **kws):
        raise TypeError(f"{self.py_func.__name__} is a subroutine of compiled code, which Python cannot call")


def jit(function):
    """Compile ``function`` on first use: no GIL, fused multiply-add allowed, division as in NumPy, cached on disk."""
    return _cached(_Function(function, **_OPTIONS), function)


def subroutine(function):
    """Compile ``function`` as `jit` does, but for compiled callers only: that is faster."""
    return _cached(_Subroutine(function, **_OPTIONS), function, _SubroutineCache)


def c_function(function, signature):
    """Compile ``function`` now, cached on disk, and return the address of a C function of this signature."""
    compiled = _cached(
        CFunc(function, (signature.args, signature.return_type), {}, {"nopython": True, **_OPTIONS}), function
    )
    compiled.compile()
    _functions.append(compiled)
    return compiled.address


def _cached(compiled, function, cache=_FunctionCache):
    try:
        _own_folder().mkdir(parents=True, exist_ok=True)
        compiled._cache = cache(function)
    except OSError:
        compiled._cache = _NoCache()
    return compiled
