"""Four numbers in one access of 128 bits.

Numba has no such access, so an intrinsic emits it; the simulator, which knows no intrinsics, gets a twin in Python.
"""

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device

if SIMULATED or cuda is None:

    @device
    def load4(array, place):
        """Return four float32 of an array; ``place``, counted in elements, is a multiple of 4."""
        return array[place], array[place + 1], array[place + 2], array[place + 3]

    @device
    def store4(array, place, a, b, c, d):
        """Write four float32 to an array; ``place``, counted in elements, is a multiple of 4."""
        array[place] = a
        array[place + 1] = b
        array[place + 2] = c
        array[place + 3] = d

else:
    from llvmlite import ir
    from numba import types

    from fastperm.kernels.cuda.compiling import intrinsic

    _VECTOR = ir.VectorType(ir.FloatType(), 4)

    def _address(context, builder, array_type, array, place):
        if isinstance(array_type, types.Array):
            array = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(array, [place]), _VECTOR.as_pointer())

    def _lane(i):
        return ir.Constant(ir.IntType(32), i)

    @intrinsic
    def load4(typing_context, array, place):
        """Return four float32 of an array; ``place``, counted in elements, is a multiple of 4."""

        def generate(context, builder, signature, arguments):
            address = _address(context, builder, signature.args[0], *arguments)
            vector = builder.load(address, align=16)
            numbers = [builder.extract_element(vector, _lane(i)) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return types.UniTuple(types.float32, 4)(array, types.int64), generate

    @intrinsic
    def store4(typing_context, array, place, a, b, c, d):
        """Write four float32 to an array; ``place``, counted in elements, is a multiple of 4."""

        def generate(context, builder, signature, arguments):
            address = _address(context, builder, signature.args[0], *arguments[:2])
            vector = ir.Constant(_VECTOR, ir.Undefined)
            for i, number in enumerate(arguments[2:]):
                vector = builder.insert_element(vector, number, _lane(i))
            builder.store(vector, address, align=16)

        return types.void(array, types.int64, *[types.float32] * 4), generate


def aligned(array, columns):
    """Return whether all rows of an array of so many columns can be read by `load4`."""
    return columns % 4 == 0 and (array is None or _address_of(array) % 16 == 0)


def _address_of(array):
    return array.ctypes.data if SIMULATED else array.data.ptr
