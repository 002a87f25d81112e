r"""The inner product that every layer of this backend runs on: one register tile, one driver.

    z[r, j] = scale_r · c[j] + Σ_k a[r, k] · B[k, j]

    out[r, j] = max(z[r, j], floor),               sums[j] += Σ_r weight_r · out[r, j]      (`product`)
    out[r, j] = z[r, j] if out[r, j] > 0 else 0,   sums[j] += Σ_r out[r, j]                 (`product_masked`)
    out[r, j] += Σ_k a[r, k] · B[k, j]                                                      (`product_accumulate`)

``a`` is read through a stride for its rows and one for its steps, so the same code serves x·W (a step is the next
column), g·Wᵀ (with Wᵀ stored) and xᵀ·g (a row is a column of x, a step the next element). Start (bias, pooled term) and
finish happen while the tile is in registers: ReLU (floor 0, or −∞ for none) and the sums that the next layer's mean
needs; or the mask of the ReLU below, read from the very place that the gradient then takes, and the sums of that.

Every output is one chain of fused multiply-adds over k, whatever the tile: a row has the same bits wherever it stands.
A library's product does not promise that, brings thread pools that fight with ours, and is no faster: on one AVX-512
core this tile runs at 109–116 GFLOP/s with start and finish included, OpenBLAS's bare product at 98–105.
"""

import llvmlite.binding as llvm
import numpy as np
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

PLAIN, MASKED, ACCUMULATE = 0, 1, 2

# Rows whose sums are taken in the working precision before they go to float64: a multiple of every tile's rows.
ROW_BLOCK = 1008


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
    cut,  # literal: 1 if only `columns` of the last vector are there
    kind,  # literal: PLAIN, MASKED or ACCUMULATE
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
    sums,
    weight,
    weight_stride,
):
    """Compute one tile of ``rows`` × ``vectors`` vectors, all of it in registers."""
    rows_n, vectors_n = rows.literal_value, vectors.literal_value
    kind_n, is_cut = kind.literal_value, bool(cut.literal_value)
    scalar_type = a.dtype
    lanes = VECTOR_BYTES * 8 // scalar_type.bitwidth
    pointer_type = CPointer(scalar_type)
    signature = void(
        *(rows, vectors, cut, kind, int64, pointer_type, int64, int64, pointer_type, int64),
        *(pointer_type, pointer_type, int64, pointer_type, int64, int64, scalar_type),
        *(pointer_type, pointer_type, int64),
    )

    def codegen(context, builder, signature, args):
        columns, a, row_stride, step_stride, B, B_stride, c = args[4:11]
        scale, scale_stride, out, out_stride, steps, floor, sums, weight, weight_stride = args[11:]
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
        if is_cut:
            position = builder.trunc(columns, i32)
            whole = ir.VectorType(i32, lanes)
            first = builder.insert_element(ir.Constant(whole, ir.Undefined), position, ir.Constant(i32, 0))
            limit = builder.shuffle_vector(first, ir.Constant(whole, ir.Undefined), ir.Constant(whole, [0] * lanes))
            mask = builder.icmp_signed("<", ir.Constant(whole, list(range(lanes))), limit)

        def is_partial(j):
            return is_cut and j == vectors_n - 1

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
        if kind_n == ACCUMULATE:
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
        if kind_n == ACCUMULATE:
            for r, values in zip(row_numbers, result, strict=True):
                for j, value in enumerate(values):
                    store(value, out, r, out_stride, j)
            return context.get_dummy_value()
        floors = splat(floor)
        totals = [load(sums, zero, zero, j) for j in range(vectors_n)]
        for r, values in zip(row_numbers, result, strict=True):
            if kind_n == PLAIN:
                factor = splat(builder.load(builder.gep(weight, [builder.mul(weight_stride, r)])))
            for j, value in enumerate(values):
                if kind_n == PLAIN:
                    # "Greater or not a number": a NaN passes through instead of becoming the floor.
                    value = builder.select(builder.fcmp_unordered(">", value, floors), value, floors)
                    totals[j] = builder.call(fma, [factor, value, totals[j]])
                else:
                    mask_below = builder.fcmp_ordered(">", load(out, r, out_stride, j), zeros)
                    value = builder.select(mask_below, value, zeros)
                    totals[j] = builder.fadd(totals[j], value)
                store(value, out, r, out_stride, j)
        for j, total in enumerate(totals):
            store(total, sums, zero, zero, j)
        return context.get_dummy_value()

    return signature, codegen


def _make_rows(tile_rows, vectors, cut, kind):
    """Return the loop that takes ``tile_rows`` rows at a time, from row r on, and returns the first row left over."""

    @jit
    def rows(r, operands):
        columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride = operands[:9]
        out, out_stride, n, steps, floor, sums, weight, weight_stride = operands[9:]
        while r + tile_rows <= n:
            _tile(
                tile_rows, vectors, cut, kind, columns,
                advance(a, r * row_stride), row_stride, step_stride, B, B_stride, c,
                advance(scale, r * scale_stride), scale_stride, advance(out, r * out_stride), out_stride, steps, floor,
                sums, advance(weight, r * weight_stride), weight_stride,
            )  # fmt: skip
            r += tile_rows
        return r

    return rows


def _make_panel(tile_rows, vectors, cut, kind):
    """Return the product for one panel of columns, ``vectors`` vectors wide (the last one cut if ``cut``)."""
    many = _make_rows(tile_rows, vectors, cut, kind)
    few = _make_rows(min(4, tile_rows), vectors, cut, kind)
    single = _make_rows(1, vectors, cut, kind)

    @jit
    def panel(operands):
        single(few(many(0, operands), operands), operands)

    return panel


def _make_driver(kind):
    """Return the loop over panels: as many of the widest as fit, one of what is left, one for the cut vector."""
    panel_1, panel_2 = _make_panel(ROWS_1, 1, 0, kind), _make_panel(ROWS_2, 2, 0, kind)
    panel_3, panel_4 = _make_panel(ROWS_3, 3, 0, kind), _make_panel(ROWS_4, 4, 0, kind)
    panel_cut = _make_panel(ROWS_1, 1, 1, kind)

    @jit
    def driver(lanes, operands):
        columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride = operands[:9]
        out, out_stride, n, steps, floor, sums, weight, weight_stride = operands[9:]
        j = 0
        while j < columns:
            vectors = min((columns - j) // lanes, WIDEST)
            here = (
                columns - j, a, row_stride, step_stride, advance(B, j), B_stride, advance(c, j), scale, scale_stride,
                advance(out, j), out_stride, n, steps, floor, advance(sums, j), weight, weight_stride,
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


_plain, _masked, _accumulate = _make_driver(PLAIN), _make_driver(MASKED), _make_driver(ACCUMULATE)


# These three take arrays, never pointers: Numba lets go of an array after the last mention of its name, and whoever
# calls with an array holds it until the call is over.


@jit
def product(
    a,  # (n, steps)
    B,  # (steps, columns)
    c,  # (columns,)
    scale,  # (n,) or (1,)
    out,  # (n, columns)
    floor,  # 0 for relu, -inf for identity
    totals,  # (columns,), float64, added to
    weight,  # (n,) or (1,)
):
    """Write max(scale_r · c + a_r · B, floor) to out, and add its weighted sums to totals. All arrays C-contiguous."""
    steps, columns = B.shape
    n = a.size // steps
    scale_stride, weight_stride = min(scale.size - 1, 1), min(weight.size - 1, 1)
    sums = np.empty(columns, B.dtype)
    for first in range(0, n, ROW_BLOCK):
        sums[:] = 0
        operands = (
            columns, pointer(a, first * steps), steps, 1, pointer(B, 0), columns, pointer(c, 0),
            pointer(scale, first * scale_stride), scale_stride, pointer(out, first * columns), columns,
            min(ROW_BLOCK, n - first), steps, floor, pointer(sums, 0), pointer(weight, first * weight_stride),
            weight_stride,
        )  # fmt: skip
        _plain(VECTOR_BYTES // B.itemsize, operands)
        for j in range(columns):
            totals[j] += sums[j]


@jit
def product_masked(
    a,  # (n, steps)
    B,  # (steps, columns)
    c,  # (columns,)
    scale,  # (n,) or (1,)
    out,  # (n, columns)
    totals,  # (columns,), float64, added to
):
    """Write scale_r · c + a_r · B where out > 0, 0 elsewhere, and add its sums to totals. All arrays C-contiguous."""
    steps, columns = B.shape
    n = a.size // steps
    scale_stride = min(scale.size - 1, 1)
    sums = np.empty(columns, B.dtype)
    for first in range(0, n, ROW_BLOCK):
        sums[:] = 0
        operands = (
            columns, pointer(a, first * steps), steps, 1, pointer(B, 0), columns, pointer(c, 0),
            pointer(scale, first * scale_stride), scale_stride, pointer(out, first * columns), columns,
            min(ROW_BLOCK, n - first), steps, sums[0], pointer(sums, 0), pointer(scale, 0), 0,
        )  # fmt: skip
        _masked(VECTOR_BYTES // B.itemsize, operands)
        for j in range(columns):
            totals[j] += sums[j]


@jit
def product_accumulate(
    x,  # (steps, n)
    g,  # (steps, columns)
    out,  # (n, columns)
):
    """Add xᵀ g to out. All arrays C-contiguous."""
    n, columns = out.shape
    steps = x.size // n
    operands = (
        columns, pointer(x, 0), 1, n, pointer(g, 0), columns, pointer(g, 0), pointer(g, 0), 0,
        pointer(out, 0), columns, n, steps, out[0, 0], pointer(g, 0), pointer(g, 0), 0,
    )  # fmt: skip
    _accumulate(VECTOR_BYTES // out.itemsize, operands)
