"""Products of a warpgroup, four warps, on the tensor cores of Hopper (compute capability 9.0), and waits for them.

One factor is in registers, the other one in shared memory, where the tensor cores read it by themselves, while the
threads go on. Registers of a product, and the shared memory that it reads, are its own until it was waited for.

That factor lies there as *core matrices* of 8 columns × 16 bytes along k, 128 bytes without a gap (PTX,
"asynchronous warpgroup-level matrix shared memory layout", without swizzling): two of them, one behind the other, are
what a product takes of 8 columns, and the next 8 columns follow.
"""

from fastperm.kernels.cuda.compiling import SIMULATED, cuda

COLUMNS = 256  # of a product, which has 64 rows
SUMS = 128  # of a thread
CORE = 32  # words of a core matrix
WARPGROUP = 128  # threads

if SIMULATED or cuda is None:  # which has no warpgroups: nothing that uses them is launched there
    multiply_tf32 = multiply_bf16 = None
    begin_products = end_products = wait_for_products = wait_for_products_but_one = None

else:
    from llvmlite import ir
    from numba import types

    from fastperm.kernels.cuda.compiling import intrinsic
    from fastperm.kernels.cuda.vectors import shared_address_of, statement_together, together

    _FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    # Of a descriptor, in units of 16 bytes: from one core matrix to the next along k, and along the columns.
    _STRIDES = (4 * CORE >> 4) << 16 | (8 * CORE >> 4) << 32

    @intrinsic
    def begin_products(typing_context):
        """Let products that follow see what registers hold."""
        return statement_together("wgmma.fence.sync.aligned;")

    @intrinsic
    def end_products(typing_context):
        """Make the products that were begun one group."""
        return statement_together("wgmma.commit_group.sync.aligned;")

    @intrinsic
    def wait_for_products(typing_context):
        """Wait until all products are done."""
        return statement_together("wgmma.wait_group.sync.aligned 0;")

    @intrinsic
    def wait_for_products_but_one(typing_context):
        """Wait until all groups of products but the last one are done."""
        return statement_together("wgmma.wait_group.sync.aligned 1;")

    def _multiply(steps, kind, ending):
        """Return signature and code of ``wgmma.mma_async`` for a in registers, of so many steps along k."""
        sums = ",".join(f"${i}" for i in range(SUMS))
        a = ",".join(f"${SUMS + i}" for i in range(4))
        code = (
            f"wgmma.mma_async.sync.aligned.m64n{COLUMNS}k{steps}.f32.{kind}.{kind} "
            f"{{{sums}}}, {{{a}}}, ${SUMS + 4}, 1, 1, 1{ending};"
        )
        constraints = [*["=f"] * SUMS, *["r"] * 4, "l", *map(str, range(SUMS))]
        result = ir.LiteralStructType([_FLOAT] * SUMS)
        function = ir.FunctionType(result, [_INT] * 4 + [_LONG] + [_FLOAT] * SUMS)
        product = ir.InlineAsm(function, code, ",".join(constraints), side_effect=True)

        def generate(context, builder, signature, arguments):
            sums, *a, shared, place = arguments
            sums = context.make_array(signature.args[0])(context, builder, sums).data
            places = [builder.gep(sums, [ir.Constant(_LONG, i)]) for i in range(SUMS)]
            address = shared_address_of(context, builder, signature.args[5], (shared, place))
            # Above 18 bits an address says which block of the cluster it is in.
            sixteens = builder.and_(builder.lshr(address, ir.Constant(_INT, 4)), ir.Constant(_INT, 0x3FFF))
            descriptor = builder.or_(builder.zext(sixteens, _LONG), ir.Constant(_LONG, _STRIDES))
            bits = [builder.bitcast(own, _INT) for own in a]
            found = together(builder, product, [*bits, descriptor, *map(builder.load, places)])
            for i, own in enumerate(places):
                builder.store(builder.extract_value(found, i), own)

        return generate

    @intrinsic
    def multiply_tf32(typing_context, sums, a0, a1, a2, a3, shared, place):
        """Begin to add a b to the sums of a warpgroup: a (64, 8) in registers, b (8, 256) at a place."""
        return types.void(sums, *[types.float32] * 4, shared, types.int64), _multiply(8, "tf32", "")

    @intrinsic
    def multiply_bf16(typing_context, sums, a0, a1, a2, a3, shared, place):
        """Begin to add a b to the sums of a warpgroup: a (64, 16) in registers, b (16, 256) at a place."""
        return types.void(sums, *[types.float32] * 4, shared, types.int64), _multiply(16, "bf16", ", 0")
