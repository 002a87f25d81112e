"""What compiled code does with addresses: it calls C functions, counts with other threads, and borrows memory.

Numba counts the references to every array, by an atomic instruction whenever one is sliced or handed to a function. For
one set in a small network that is hundreds of them, and two threads that count the same array wait for each other. So
the kernels of whole sets count at the start of a task, and then borrow.
"""

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastperm.kernels.cpu.compiling import subroutine


@intrinsic
def call_address(typingctx, address, operands):
    """Call the C function at ``address`` with the members of a tuple."""
    signature = types.void(types.int64, operands)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def address_of(typingctx, array, offset):
    """Return the address of element ``offset`` of a C-contiguous array."""
    signature = types.CPointer(array.dtype)(array, types.int64)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return signature, codegen


@intrinsic
def borrowed(typingctx, arrays):
    """Return a tuple of arrays, and whatever else is in it, without their counters.

    Somebody else must hold them until the last use. An argument is held by the caller until the call is over; a local
    array only until the last mention of its name, so let that be in `hold`.
    """

    def codegen(context, builder, signature, args):
        return _without_counters(context, builder, signature.return_type, args[0])

    return arrays(arrays), codegen


def _without_counters(context, builder, kind, value):
    if isinstance(kind, types.BaseTuple):
        members = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_without_counters(context, builder, *member) for member in members])
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    return value


@intrinsic
def hold(typingctx, arrays):
    """Do nothing: a last mention of what was `borrowed`."""
    return types.void(arrays), lambda context, builder, signature, args: context.get_dummy_value()


@intrinsic
def fetch_and_add(typingctx, counter):
    """Add one to the number in an array (1,) int64 that threads share, and return what it was."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@subroutine
def matrix_at(array, start, rows, columns):
    """Return the part of a flat array that begins at ``start`` as a matrix; it is borrowed, see `borrowed`."""
    return carray(address_of(array, start), (rows, columns))
