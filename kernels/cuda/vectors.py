"""Two or four numbers in one access of 64 or 128 bits, copies that need no register, tensor cores, and clusters.

Numba has none of these, so intrinsics emit them, and one for a single number: Numba's own index of an array may be
negative, and to ask costs more than the access; the simulator, which knows no intrinsics, gets twins in Python.
"""

import functools
import struct

import numpy as np

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

    @device
    def load1(array, place):
        """Return one float32 of an array; ``place``, counted in elements, is not negative."""
        return array[place]

    @device
    def load1_int(array, place):
        """Return one int32 of an array; ``place``, counted in elements, is not negative."""
        return array[place]

    @device
    def store1(array, place, a):
        """Write one float32 to an array; ``place``, counted in elements, is not negative."""
        array[place] = a

    @device
    def rest_of(array, place):
        """Return an array without what is before ``place``; a loop that goes on from there has no index to scale."""
        return array[place:]

    @device
    def load2(array, place):
        """Return two float32 of an array; ``place``, counted in elements, is a multiple of 2."""
        return array[place], array[place + 1]

    @device
    def store2(array, place, a, b):
        """Write two float32 to an array; ``place``, counted in elements, is a multiple of 2."""
        array[place] = a
        array[place + 1] = b

    @device
    def load1_or_zero(array, place, there):
        """Return what `load1` does if it is ``there``, in global memory, or zero; without a jump."""
        return array[place] if there else np.float32(0)

    @device
    def load4_or_zeros(array, place, there):
        """Return what `load4` does if they are ``there``, in global memory, or zeros; without a jump."""
        return load4(array, place) if there else (np.float32(0),) * 4

    @device
    def copy4(target, place, source, source_place):
        """Begin to copy four float32 from global to shared memory; both places are multiples of 4."""
        target[place : place + 4] = source[source_place : source_place + 4]

    @device
    def copy4_or_zeros(target, place, source, source_place, there):
        """Begin to copy like `copy4`, or, if they are not ``there``, to write zeros."""
        target[place : place + 4] = source[source_place : source_place + 4] if there else np.float32(0)

    @device
    def end_copies():
        """Make the copies that this thread has begun one group."""

    @device
    def wait_for_copies_but_one():
        """Wait until all groups of copies but the last one have arrived."""

    @device
    def block_barrier():
        """Wait for all threads of the block, and see what they wrote; for modules that have no kernel."""
        _cuda_of_kernel().syncthreads()

    @device
    def own_thread():
        """Return which thread of its block this is, read anew: what follows from it need not be kept until here."""
        return _cuda_of_kernel().threadIdx.x

    @device
    def own_block():
        """Return which block this is, read anew."""
        return _cuda_of_kernel().blockIdx.x

    # Numba's simulator runs one block at a time, which is a cluster by itself; that of the tests replaces these.

    @device
    def cluster_size():
        """Return how many blocks this cluster has."""
        return 1

    @device
    def cluster_rank():
        """Return which block of its cluster this is."""
        return 0

    @device
    def cluster_barrier():
        """Wait for all threads of the cluster, and see what they wrote."""
        _cuda_of_kernel().syncthreads()

    @device
    def load1_of_block(shared, place, rank):
        """Return one float32 of the shared memory of a block of the cluster."""
        return shared[place]

    def _cuda_of_kernel():
        # The simulator puts its own ``cuda`` into the module of a kernel while that runs, but into the module of a
        # function that is called there only until the first thread leaves it.
        from fastperm.kernels.cuda import product, product_on_cores, resident

        return next(own.cuda for own in (resident, product_on_cores, product) if hasattr(own.cuda, "threadIdx"))

    @device
    def relu(z):
        """Return the larger of z and 0; a NaN stays one."""
        return np.float32(0) if z <= np.float32(0) else z

    @device
    def push_sign(bits, x):
        """Return the bits, moved up by one, with that of x > 0 below them."""
        # As an array, which goes round at the end without a word.
        return (np.array([bits], np.int32) * np.int32(2) + np.int32(x > np.float32(0)))[0]

    @device
    def where_bit(bits, i, x):
        """Return x where bit i is set, and otherwise zero."""
        return x if bits >> i & 1 else np.float32(0)

    @device
    def round_tf32(x):
        """Return the nearest TF32; tensor cores by themselves cut off the last 13 bits. A NaN stays one."""
        if not abs(x) < np.float32(np.inf):  # a NaN stays one, whatever its bits
            return np.float32(np.nan) if np.isnan(x) else x
        return ((np.array(x, np.float32).view(np.int32) + np.int32(1 << 12)) & np.int32(-1 << 13)).view(np.float32)[()]

    @device
    def round_number_tf32(x):
        """Return what `round_tf32` does, with half of the work; a NaN may become zero."""
        # As an array, which goes round at the end without a word.
        bits = np.array([x], np.float32).view(np.int32) + np.int32(1 << 12)
        return (bits & np.int32(-1 << 13)).view(np.float32)[0]

    @device
    def round_bf16(low, high):
        """Return the bits of two bfloat16 as one float32, the nearest to two numbers. A NaN stays one."""
        return np.frombuffer(struct.pack("2H", _bits_of_bf16(low), _bits_of_bf16(high)), np.float32)[0]

    def _bits_of_bf16(x):
        (bits,) = struct.unpack("I", struct.pack("f", x))
        return 0x7FFF if np.isnan(x) else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16

    @device
    def low_halves(a, b):
        """Return the lower halves of the bits of two float32, as one float32, that of the first below."""
        return np.array([a, b], np.float32).view(np.uint16)[::2].copy().view(np.float32)[0]

    @device
    def high_halves(a, b):
        """Return the upper halves of the bits of two float32, as one float32, that of the first below."""
        return np.array([a, b], np.float32).view(np.uint16)[1::2].copy().view(np.float32)[0]

    @device
    def multiply_tf32(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """Return a b + c of a warp, when all of its block multiply, as PTX documents ``mma.m16n8k8`` for TF32."""
        registers = _registers_of_warp(a0, a1, a2, a3, b0, b1)
        return _multiplied((registers & np.int32(-1 << 13)).view(np.float32)[:, :, None], c0, c1, c2, c3)

    @device
    def multiply_bf16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """Return a b + c of a warp, when all of its block multiply, as PTX documents ``mma.m16n8k16`` for bfloat16."""
        registers = _registers_of_warp(a0, a1, a2, a3, b0, b1)
        pairs = np.stack([registers << 16, registers & np.int32(-1 << 16)], axis=-1)
        return _multiplied(pairs.view(np.float32), c0, c1, c2, c3)

    def _registers_of_warp(*own):
        """Return the bits of what the threads of a warp hold: (32, 6), four registers of a and two of b."""
        of_kernel = _cuda_of_kernel()
        thread = of_kernel.threadIdx.x
        registers = of_kernel.shared.array((of_kernel.blockDim.x, 6), np.float32)
        registers[thread] = own
        of_kernel.syncthreads()
        seen = registers[thread // 32 * 32 :][:32].view(np.int32).copy()
        of_kernel.syncthreads()
        return seen

    def _multiplied(seen, *own):
        """Return this thread's four numbers of a b + c; ``seen`` (32, 6, P) has the P numbers of each register."""
        of_a, of_b = _factors(_cuda_of_kernel().threadIdx.x % 32, seen.shape[2])
        # One number after the other.
        products = seen[of_a] * seen[of_b]
        sums = np.add.accumulate(np.column_stack([np.array(own, np.float32), products]), axis=1, dtype=np.float32)
        return tuple(sums[:, -1])

    @functools.cache
    def _factors(lane, pack):
        """Return where what makes a lane's four numbers of a b lies in ``seen``: of a, and of b."""
        half, row, column = 4 * pack, lane // 4, 2 * (lane % 4)
        i, j = np.array([[row], [row], [row + 8], [row + 8]]), np.array([[column], [column + 1]] * 2)
        k = np.arange(2 * half)
        thread, number = k % half // pack, k % pack
        return (i % 8 * 4 + thread, i // 8 + k // half * 2, number), (j * 4 + thread, 4 + k // half, number)

else:
    from llvmlite import ir
    from numba import types

    from fastperm.kernels.cuda.compiling import intrinsic

    _FLOAT, _INT = ir.FloatType(), ir.IntType(32)
    _SHARED = 3  # the number of this address space

    def address_of(context, builder, array_type, of, vector=_FLOAT):
        """Return the address of an element, given the array and its place, for the code of intrinsics."""
        array, place = of
        if isinstance(array_type, types.Array):
            array = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(array, [place]), vector.as_pointer())

    def together(builder, assembly, arguments):
        """Call what all threads of a warp do at once: a compiler may not let some of them do it in another place."""
        return builder.call(assembly, arguments, attrs=("convergent",))

    def statement_together(code):
        """Return signature and code of an intrinsic that is one statement, which all threads of a warp do at once."""
        return types.void(), lambda _, builder, *__: together(builder, _assembly(code, ""), []) and None

    def shared_address_of(context, builder, array_type, of):
        """Return the address of an element in shared memory, as a number of 32 bits."""
        # As the compiler says it, who knows where the array lies, so that it takes no instruction.
        address = builder.addrspacecast(address_of(context, builder, array_type, of), _FLOAT.as_pointer(_SHARED))
        return builder.ptrtoint(address, _INT)

    def _lane(i):
        return ir.Constant(_INT, i)

    def _load(length):
        vector_type = ir.VectorType(_FLOAT, length)

        def generate(context, builder, signature, arguments):
            address = address_of(context, builder, signature.args[0], arguments, vector_type)
            vector = builder.load(address, align=4 * length)
            numbers = [builder.extract_element(vector, _lane(i)) for i in range(length)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return generate

    def _store(length):
        vector_type = ir.VectorType(_FLOAT, length)

        def generate(context, builder, signature, arguments):
            address = address_of(context, builder, signature.args[0], arguments[:2], vector_type)
            vector = ir.Constant(vector_type, ir.Undefined)
            for i, number in enumerate(arguments[2:]):
                vector = builder.insert_element(vector, number, _lane(i))
            builder.store(vector, address, align=4 * length)

        return generate

    @intrinsic
    def load4(typing_context, array, place):
        """Return four float32 of an array; ``place``, counted in elements, is a multiple of 4."""
        return types.UniTuple(types.float32, 4)(array, types.int64), _load(4)

    @intrinsic
    def load1(typing_context, array, place):
        """Return one float32 of an array; ``place``, counted in elements, is not negative."""

        def generate(context, builder, signature, arguments):
            return builder.load(address_of(context, builder, signature.args[0], arguments))

        return types.float32(array, types.int64), generate

    @intrinsic
    def load1_int(typing_context, array, place):
        """Return one int32 of an array; ``place``, counted in elements, is not negative."""

        def generate(context, builder, signature, arguments):
            return builder.load(address_of(context, builder, signature.args[0], arguments, _INT))

        return types.int32(array, types.int64), generate

    @intrinsic
    def store1(typing_context, array, place, a):
        """Write one float32 to an array; ``place``, counted in elements, is not negative."""

        def generate(context, builder, signature, arguments):
            builder.store(arguments[2], address_of(context, builder, signature.args[0], arguments[:2]))

        return types.void(array, types.int64, types.float32), generate

    @intrinsic
    def rest_of(typing_context, array, place):
        """Return an array without what is before ``place``; a loop that goes on from there has no index to scale."""
        return array(array, types.int64), lambda _, builder, __, arguments: builder.gep(arguments[0], [arguments[1]])

    @intrinsic
    def load2(typing_context, array, place):
        """Return two float32 of an array; ``place``, counted in elements, is a multiple of 2."""
        return types.UniTuple(types.float32, 2)(array, types.int64), _load(2)

    def _load_or_zeros(length):
        targets = [f"${i}" for i in range(length)]
        # A predicate of its own, as a choice between two ways would be a jump.
        code = (
            f"{{ .reg .pred there; setp.ne.b32 there, ${length + 1}, 0; "
            + "".join(f"mov.f32 {target}, 0f00000000; " for target in targets)
            + f"@there ld.global.{f'v{length}.' if length > 1 else ''}f32 "
            + (f"{{{','.join(targets)}}}" if length > 1 else targets[0])
            + f", [${length}]; }}"
        )
        result = ir.LiteralStructType([_FLOAT] * length) if length > 1 else _FLOAT
        function = ir.FunctionType(result, [ir.IntType(64), _INT])
        load = ir.InlineAsm(function, code, ",".join([*["=&f"] * length, "l", "r"]), side_effect=True)

        def generate(context, builder, signature, arguments):
            address = address_of(context, builder, signature.args[0], arguments[:2])
            there = builder.zext(arguments[2], _INT)
            found = builder.call(load, [builder.ptrtoint(address, ir.IntType(64)), there])
            if length == 1:
                return found
            numbers = [builder.extract_value(found, i) for i in range(length)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return generate

    @intrinsic
    def load1_or_zero(typing_context, array, place, there):
        """Return what `load1` does if it is ``there``, in global memory, or zero; without a jump."""
        return types.float32(array, types.int64, types.boolean), _load_or_zeros(1)

    @intrinsic
    def load4_or_zeros(typing_context, array, place, there):
        """Return what `load4` does if they are ``there``, in global memory, or zeros; without a jump."""
        return types.UniTuple(types.float32, 4)(array, types.int64, types.boolean), _load_or_zeros(4)

    @intrinsic
    def store4(typing_context, array, place, a, b, c, d):
        """Write four float32 to an array; ``place``, counted in elements, is a multiple of 4."""
        return types.void(array, types.int64, *[types.float32] * 4), _store(4)

    @intrinsic
    def store2(typing_context, array, place, a, b):
        """Write two float32 to an array; ``place``, counted in elements, is a multiple of 2."""
        return types.void(array, types.int64, *[types.float32] * 2), _store(2)

    def _assembly(code, constraints, *kinds):
        return ir.InlineAsm(ir.FunctionType(ir.VoidType(), kinds), code, f"{constraints}~{{memory}}", side_effect=True)

    def _copy(context, builder, signature, arguments):
        """Begin to copy; the last argument, if there are five, says whether the numbers are there."""
        source = address_of(context, builder, signature.args[2], arguments[2:4])
        to = shared_address_of(context, builder, signature.args[0], arguments[:2])
        addresses = [to, builder.ptrtoint(source, ir.IntType(64))]
        if len(arguments) == 4:
            copy = _assembly("cp.async.cg.shared.global [$0], [$1], 16;", "r,l,", _INT, ir.IntType(64))
            builder.call(copy, addresses)
        else:  # so many bytes are read, and the others are zero
            count = builder.select(arguments[4], ir.Constant(_INT, 16), ir.Constant(_INT, 0))
            copy = _assembly("cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r,", _INT, ir.IntType(64), _INT)
            builder.call(copy, [*addresses, count])

    @intrinsic
    def copy4(typing_context, target, place, source, source_place):
        """Begin to copy four float32 from global to shared memory; both places are multiples of 4."""
        return types.void(target, types.int64, source, types.int64), _copy

    @intrinsic
    def copy4_or_zeros(typing_context, target, place, source, source_place, there):
        """Begin to copy like `copy4`, or, if they are not ``there``, to write zeros."""
        return types.void(target, types.int64, source, types.int64, types.boolean), _copy

    @intrinsic
    def end_copies(typing_context):
        """Make the copies that this thread has begun one group."""
        return types.void(), lambda _, builder, *__: _then_nothing(builder, "cp.async.commit_group;")

    @intrinsic
    def wait_for_copies_but_one(typing_context):
        """Wait until all groups of copies but the last one have arrived."""
        return types.void(), lambda _, builder, *__: _then_nothing(builder, "cp.async.wait_group 1;")

    def _register(name, *, anew=False):
        """Return signature and code of a special register of 32 bits, as int64."""
        read = ir.InlineAsm(ir.FunctionType(_INT, []), f"mov.u32 $0, %{name};", "=r", side_effect=anew)

        def generate(context, builder, signature, arguments):
            return builder.zext(builder.call(read, []), ir.IntType(64))

        return types.int64(), generate

    @device
    def block_barrier():
        """Wait for all threads of the block, and see what they wrote; for modules that have no kernel."""
        cuda.syncthreads()

    @intrinsic
    def own_thread(typing_context):
        """Return which thread of its block this is, read anew: what follows from it need not be kept until here."""
        return _register("tid.x", anew=True)

    @intrinsic
    def own_block(typing_context):
        """Return which block this is, read anew."""
        return _register("ctaid.x", anew=True)

    @intrinsic
    def cluster_size(typing_context):
        """Return how many blocks this cluster has."""
        return _register("cluster_nctarank")

    @intrinsic
    def cluster_rank(typing_context):
        """Return which block of its cluster this is."""
        return _register("cluster_ctarank")

    @intrinsic
    def cluster_barrier(typing_context):
        """Wait for all threads of the cluster, and see what they wrote."""
        return statement_together("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;")

    @intrinsic
    def load1_of_block(typing_context, shared, place, rank):
        """Return one float32 of the shared memory of a block of the cluster."""
        code = (
            "{ .reg .u64 own; .reg .u32 at; cvta.to.shared.u64 own, $1; cvt.u32.u64 at, own; "
            "mapa.shared::cluster.u32 at, at, $2; ld.shared::cluster.f32 $0, [at]; }"
        )
        kind = ir.FunctionType(_FLOAT, [ir.IntType(64), _INT])
        load = ir.InlineAsm(kind, code, "=f,l,r,~{memory}", side_effect=True)

        def generate(context, builder, signature, arguments):
            address = address_of(context, builder, signature.args[0], arguments[:2])
            rank = builder.trunc(arguments[2], _INT)
            return builder.call(load, [builder.ptrtoint(address, ir.IntType(64)), rank])

        return types.float32(shared, types.int64, types.int64), generate

    def _then_nothing(builder, code):
        builder.call(_assembly(code, ""), [])

    @intrinsic
    def relu(typing_context, z):
        """Return the larger of z and 0; a NaN stays one."""
        larger = ir.InlineAsm(ir.FunctionType(_FLOAT, [_FLOAT]), "max.NaN.f32 $0, $1, 0f00000000;", "=f,f")
        return types.float32(types.float32), lambda _, builder, __, arguments: builder.call(larger, arguments)

    @intrinsic
    def push_sign(typing_context, bits, x):
        """Return the bits, moved up by one, with that of x > 0 below them."""
        pushed = ir.InlineAsm(ir.FunctionType(_INT, [_INT] * 2), "shf.l.wrap.b32 $0, $1, $2, 1;", "=r,r,r")

        def generate(context, builder, signature, arguments):
            # The sign of 0 − x, which of a NaN is that of a positive one.
            negative = builder.fsub(ir.Constant(_FLOAT, 0.0), arguments[1])
            return builder.call(pushed, [builder.bitcast(negative, _INT), arguments[0]])

        return types.int32(types.int32, types.float32), generate

    @intrinsic
    def where_bit(typing_context, bits, i, x):
        """Return x where bit i is set, and otherwise zero."""

        def generate(context, builder, signature, arguments):
            own = builder.and_(arguments[0], builder.shl(ir.Constant(_INT, 1), builder.trunc(arguments[1], _INT)))
            is_set = builder.icmp_unsigned("!=", own, ir.Constant(_INT, 0))
            return builder.select(is_set, arguments[2], ir.Constant(_FLOAT, 0.0))

        return types.float32(types.int32, types.int64, types.float32), generate

    @intrinsic
    def round_tf32(typing_context, x):
        """Return the nearest TF32; tensor cores by themselves cut off the last 13 bits. A NaN stays one."""
        rounded = ir.InlineAsm(ir.FunctionType(_INT, [_FLOAT]), "cvt.rna.tf32.f32 $0, $1;", "=r,f")

        def generate(context, builder, signature, arguments):
            return builder.bitcast(builder.call(rounded, arguments), _FLOAT)

        return types.float32(types.float32), generate

    @intrinsic
    def round_number_tf32(typing_context, x):
        """Return what `round_tf32` does, with half of the work; a NaN may become zero."""

        def generate(context, builder, signature, arguments):
            bits = builder.add(builder.bitcast(arguments[0], _INT), ir.Constant(_INT, 1 << 12))
            return builder.bitcast(builder.and_(bits, ir.Constant(_INT, -1 << 13)), _FLOAT)

        return types.float32(types.float32), generate

    @intrinsic
    def round_bf16(typing_context, low, high):
        """Return the bits of two bfloat16 as one float32, the nearest to two numbers. A NaN stays one."""
        # The first number of the instruction becomes the upper half.
        kind = ir.FunctionType(_INT, [_FLOAT] * 2)
        rounded = ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")

        def generate(context, builder, signature, arguments):
            return builder.bitcast(builder.call(rounded, arguments), _FLOAT)

        return types.float32(types.float32, types.float32), generate

    def _halves(bytes_of):
        """Return signature and code of what puts four bytes of two float32 together, numbered from the last one."""
        together = ir.InlineAsm(ir.FunctionType(_INT, [_INT] * 2), f"prmt.b32 $0, $1, $2, {bytes_of};", "=r,r,r")

        def generate(context, builder, signature, arguments):
            bits = [builder.bitcast(argument, _INT) for argument in arguments]
            return builder.bitcast(builder.call(together, bits), _FLOAT)

        return types.float32(types.float32, types.float32), generate

    @intrinsic
    def low_halves(typing_context, a, b):
        """Return the lower halves of the bits of two float32, as one float32, that of the first below."""
        return _halves("0x5410")

    @intrinsic
    def high_halves(typing_context, a, b):
        """Return the upper halves of the bits of two float32, as one float32, that of the first below."""
        return _halves("0x7632")

    def _multiply(shape, kind):
        """Return signature and code of ``mma.sync``, for factors of a kind: six registers of 32 bits, as float32."""
        fragments = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13}"
        code = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {fragments};"
        result = ir.LiteralStructType([_FLOAT] * 4)
        function = ir.FunctionType(result, [_INT] * 6 + [_FLOAT] * 4)
        product = ir.InlineAsm(function, code, ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4), side_effect=True)

        def generate(context, builder, signature, arguments):
            bits = [builder.bitcast(argument, _INT) for argument in arguments[:6]]
            found = together(builder, product, bits + list(arguments[6:]))
            numbers = [builder.extract_value(found, i) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return types.UniTuple(types.float32, 4)(*[types.float32] * 10), generate

    @intrinsic
    def multiply_tf32(typing_context, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """Return a b + c of a warp: a (16, 8), b (8, 8), c (16, 8) in the fragments of ``mma.m16n8k8``."""
        return _multiply("m16n8k8", "tf32")

    @intrinsic
    def multiply_bf16(typing_context, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """Return a b + c of a warp: a (16, 16), b (16, 8), c (16, 8) in the fragments of ``mma.m16n8k16``."""
        return _multiply("m16n8k16", "bf16")


@device
def add1(array, place, a):
    """Add to one float32 of an array; ``place``, counted in elements, is not negative."""
    store1(array, place, load1(array, place) + a)


def aligned(array, columns):
    """Return whether all rows of an array of so many columns can be read by `load4`."""
    return columns % 4 == 0 and (array is None or _address_of(array) % 16 == 0)


def _address_of(array):
    return array.ctypes.data if SIMULATED else array.data.ptr
