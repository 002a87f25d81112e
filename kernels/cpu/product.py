r"""The inner product that every layer of this backend runs on: one register tile, one driver.

    out[r, j] = max(scale_r · c[j] + Σ_k a[r, k] · B[k, j], floor)      (`product`)
    out[r, j] += Σ_k a[r, k] · B[k, j]                                  (`product_accumulate`)

``a`` is read through a stride for its rows and one for its steps, so the same code serves x·W (a step is the next
column), g·Wᵀ (with Wᵀ stored) and xᵀ·g (a row is a column of x, a step the next element). Start (bias, pooled term) and
finish (ReLU, with floor 0, or none, with floor −∞) happen while the tile is in registers.

Every output is one chain of fused multiply-adds over k, whatever the tile: a row has the same bits wherever it stands.
A library's product does not promise that, brings thread pools that fight with ours, and is no faster: on one AVX-512
core this tile runs at 109–116 GFLOP/s with start and finish included, OpenBLAS's bare product at 98–105.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config
from numba.core.types import CPointer, int64, void  # type: ignore[attr-defined]
from numba.extending import intrinsic

from fastperm.kernels.cpu.compiling import jit


def _vector_registers():
    """Return (bytes in a vector register, number of them) of the processor that Numba compiles for."""
    if config.CPU_NAME == "generic":
        return 16, 16
    if config.CPU_FEATURES is not None:
        features = {item[1:] for item in config.CPU_FEATURES.split(",") if item.startswith("+")}
    else:
        features = {name for name, present in llvm.get_host_cpu_features().items() if present}
    if "avx512f" in features:
        return 64, 32
    if "avx2" in features or "avx" in features:
        return 32, 16
    return 16, 32 if "neon" in features else 16


VECTOR_BYTES, REGISTERS = _vector_registers()
# Rows of a tile that is V vectors wide: rows × V accumulators, V vectors of B and one broadcast fit the register file.
# Measured on AVX-512: 12 × 32 and 10 × 32 fall to half the rate of these.
ROWS_1, ROWS_2, ROWS_3, ROWS_4 = (24, 14, 8, 6) if REGISTERS == 32 else (12, 6, 3, 2)
WIDEST = 4 if REGISTERS == 32 else 2


@intrinsic
def pointer(typingctx, array, offset):
    """Return the address of element ``offset`` of a C-contiguous array."""
    signature = CPointer(array.dtype)(array, int64)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return signature, codegen


@intrinsic
def advance(typingctx, base, count):
    """Return the address ``count`` elements after ``base``."""
    signature = base(base, int64)

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return signature, codegen


@intrinsic(prefer_literal=True)
def _tile(
    typingctx,
    rows,  # literal: rows of the tile
    vectors,  # literal: vectors in a row
    masked,  # literal: 1 if only `columns` of the last vector are there
    accumulate,  # literal: 1 to start from out, 0 to start from scale_r · c
    columns,
    a,
    row_stride,
    step_stride,
    B,
    B_stride,
    c,
    scale,
    scale_stride,
    out,
    out_stride,
    steps,  # at least 1
    floor,
):
    """Compute one tile of ``rows`` × ``vectors`` vectors, all of it in registers."""
    rows_n, vectors_n = rows.literal_value, vectors.literal_value
    accumulates, is_masked = bool(accumulate.literal_value), bool(masked.literal_value)
    scalar_type = a.dtype
    lanes = VECTOR_BYTES * 8 // scalar_type.bitwidth
    pointer_type = CPointer(scalar_type)
    signature = void(
        *(rows, vectors, masked, accumulate, int64, pointer_type, int64, int64, pointer_type, int64),
        *(pointer_type, pointer_type, int64, pointer_type, int64, int64, scalar_type),
    )

    def codegen(context, builder, signature, args):
        columns, a, row_stride, step_stride, B, B_stride, c = args[4:11]
        scale, scale_stride, out, out_stride, steps, floor = args[11:]
        scalar = context.get_value_type(scalar_type)
        vector = ir.VectorType(scalar, lanes)
        i1s = ir.VectorType(ir.IntType(1), lanes)
        i64, i32 = ir.IntType(64), ir.IntType(32)
        suffix = f"v{lanes}f{scalar_type.bitwidth}"
        align = scalar_type.bitwidth // 8

        def function(name, result, arguments):
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)

        fma = function(f"llvm.fma.{suffix}", vector, [vector] * 3)
        zeros = ir.Constant(vector, [0.0] * lanes)

        def splat(value):
            lane = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(i32, 0))
            picks = ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
            return builder.shuffle_vector(lane, ir.Constant(vector, ir.Undefined), picks)

        mask = None
        if is_masked:
            position = builder.trunc(columns, i32)
            whole = ir.VectorType(i32, lanes)
            first = builder.insert_element(ir.Constant(whole, ir.Undefined), position, ir.Constant(i32, 0))
            limit = builder.shuffle_vector(first, ir.Constant(whole, ir.Undefined), ir.Constant(whole, [0] * lanes))
            mask = builder.icmp_signed("<", ir.Constant(whole, list(range(lanes))), limit)

        def is_partial(j):
            return is_masked and j == vectors_n - 1

        def address(base, row, stride, j):
            index = builder.add(builder.mul(stride, row), ir.Constant(i64, lanes * j))
            return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

        def load(base, row, stride, j):
            where = address(base, row, stride, j)
            if not is_partial(j):
                return builder.load(where, align=align)
            masked_load = function(f"llvm.masked.load.{suffix}.p0", vector, [vector.as_pointer(), i32, i1s, vector])
            return builder.call(masked_load, [where, ir.Constant(i32, align), mask, zeros])

        def store(value, base, row, stride, j):
            where = address(base, row, stride, j)
            if not is_partial(j):
                builder.store(value, where, align=align)
                return
            masked_store = function(
                f"llvm.masked.store.{suffix}.p0", ir.VoidType(), [vector, vector.as_pointer(), i32, i1s]
            )
            builder.call(masked_store, [value, where, ir.Constant(i32, align), mask])

        row_numbers = [ir.Constant(i64, r) for r in range(rows_n)]
        zero = ir.Constant(i64, 0)
        if accumulates:
            start = [[load(out, r, out_stride, j) for j in range(vectors_n)] for r in row_numbers]
        else:
            common = [load(c, zero, zero, j) for j in range(vectors_n)]
            start = []
            for r in row_numbers:
                factor = splat(builder.load(builder.gep(scale, [builder.mul(scale_stride, r)])))
                start.append([builder.fmul(factor, value) for value in common])

        before = builder.block
        loop, after = builder.append_basic_block("steps"), builder.append_basic_block("finish")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(i64)
        k.add_incoming(zero, before)
        held = [[builder.phi(vector) for _ in range(vectors_n)] for _ in range(rows_n)]
        for phis, values in zip(held, start, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(value, before)
        b_row = [load(B, k, B_stride, j) for j in range(vectors_n)]
        a_step = builder.mul(k, step_stride)
        result = []
        for r in range(rows_n):
            index = builder.add(builder.mul(row_stride, row_numbers[r]), a_step)
            factor = splat(builder.load(builder.gep(a, [index])))
            result.append([builder.call(fma, [factor, b_row[j], held[r][j]]) for j in range(vectors_n)])
        following = builder.add(k, ir.Constant(i64, 1))
        k.add_incoming(following, loop)
        for phis, values in zip(held, result, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)

        builder.position_at_end(after)
        floors = None if accumulates else splat(floor)
        for r, values in zip(row_numbers, result, strict=True):
            for j, value in enumerate(values):
                if floors is not None:
                    # "Greater or not a number": a NaN passes through instead of becoming the floor.
                    value = builder.select(builder.fcmp_unordered(">", value, floors), value, floors)
                store(value, out, r, out_stride, j)
        return context.get_dummy_value()

    return signature, codegen


def _make_rows(tile_rows, vectors, masked, accumulate):
    """Return the loop that takes ``tile_rows`` rows at a time, from row r on, and returns the first row left over."""

    @jit
    def rows(r, operands):
        columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride, out, out_stride, n, steps, floor = (
            operands
        )
        while r + tile_rows <= n:
            _tile(
                tile_rows, vectors, masked, accumulate, columns,
                advance(a, r * row_stride), row_stride, step_stride, B, B_stride, c,
                advance(scale, r * scale_stride), scale_stride, advance(out, r * out_stride), out_stride, steps, floor,
            )  # fmt: skip
            r += tile_rows
        return r

    return rows


def _make_panel(tile_rows, vectors, masked, accumulate):
    """Return the product for one panel of columns, ``vectors`` vectors wide (the last one cut if masked)."""
    many = _make_rows(tile_rows, vectors, masked, accumulate)
    few = _make_rows(min(4, tile_rows), vectors, masked, accumulate)
    single = _make_rows(1, vectors, masked, accumulate)

    @jit
    def panel(operands):
        single(few(many(0, operands), operands), operands)

    return panel


def _make_driver(accumulate):
    """Return the loop over panels: as many of the widest as fit, one of what is left, one for the cut vector."""
    panel_1, panel_2 = _make_panel(ROWS_1, 1, 0, accumulate), _make_panel(ROWS_2, 2, 0, accumulate)
    panel_3, panel_4 = _make_panel(ROWS_3, 3, 0, accumulate), _make_panel(ROWS_4, 4, 0, accumulate)
    panel_cut = _make_panel(ROWS_1, 1, 1, accumulate)

    @jit
    def driver(lanes, operands):
        columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride, out, out_stride, n, steps, floor = (
            operands
        )
        j = 0
        while j < columns:
            vectors = min((columns - j) // lanes, WIDEST)
            here = (
                columns - j, a, row_stride, step_stride, advance(B, j), B_stride, advance(c, j),
                scale, scale_stride, advance(out, j), out_stride, n, steps, floor,
            )  # fmt: skip
            if vectors == 4:
                panel_4(here)
            elif vectors == 3:
                panel_3(here)
            elif vectors == 2:
                panel_2(here)
            elif vectors == 1:
                panel_1(here)
            else:
                panel_cut(here)
            j += max(vectors, 1) * lanes

    return driver


_start_from_c = _make_driver(0)
_start_from_out = _make_driver(1)


@jit
def product(
    a,  # pointer to a[0, 0]
    row_stride,
    step_stride,
    B,  # (steps, columns), C-contiguous
    c,  # (columns,)
    scale,  # pointer to scale_0
    scale_stride,  # 0 for one scale, 1 for one per row
    out,  # pointer to out[0, 0]; rows are contiguous
    n,  # rows
    floor,  # 0 for relu, -inf for identity
):
    """Write max(scale_r · c + a_r · B, floor) to the n rows of out."""
    steps, columns = B.shape
    operands = (
        columns, a, row_stride, step_stride, pointer(B, 0), columns, pointer(c, 0),
        scale, scale_stride, out, columns, n, steps, floor,
    )  # fmt: skip
    _start_from_c(VECTOR_BYTES // B.itemsize, operands)


@jit
def product_accumulate(
    a,  # pointer to a[0, 0]
    row_stride,
    step_stride,
    B,  # pointer to B[0, 0]; rows are contiguous
    out,  # (n, columns), C-contiguous
    steps,
):
    """Add a · B to out."""
    n, columns = out.shape
    operands = (
        columns, a, row_stride, step_stride, B, columns, B,
        B, 0, pointer(out, 0), columns, n, steps, out[0, 0],
    )  # fmt: skip
    _start_from_out(VECTOR_BYTES // out.itemsize, operands)
