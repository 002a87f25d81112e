"""The register tile: a few rows of a product, all of their sums held in vector registers, built from LLVM vector types.

`tile_panel` is the only function that others use; `product.py` puts tiles together into products.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config
from numba.core.types import int64, void
from numba.extending import intrinsic

# What a tile starts from and how it finishes; the formulas stand in product.py.
PLAIN, ACCUMULATE = 0, 1

I32, I64 = ir.IntType(32), ir.IntType(64)
WORD = 64


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
# Rows of a tile that is V vectors wide: rows × V sums, V vectors of B and one broadcast fit the register file.
# Measured on AVX-512: 12 × 32 and 10 × 32 fall to half the rate of these.
ROWS = {1: 24, 2: 8, 3: 8, 4: 6} if REGISTERS == 32 else {1: 12, 2: 6, 3: 3, 4: 2}
WIDEST = 4 if REGISTERS == 32 else 2


@intrinsic(prefer_literal=True)
def tile_panel(typingctx, vectors, cut, kind, first_column, operands):
    """Compute a panel of columns, ``vectors`` vectors wide: all its rows, as many at a time as registers hold.

    ``vectors``, ``cut`` and ``kind`` are literals. With ``cut``, only as much of the last vector is read and written as
    there are columns. ``operands`` are those of the drivers in `product`.
    """
    vectors_n, is_cut, kind_n = (argument.literal_value for argument in (vectors, cut, kind))
    signature = void(vectors, cut, kind, int64, operands)

    def codegen(context, builder, signature, args):
        scalar = operands.types[1].dtype
        values = cgutils.unpack_tuple(builder, args[4])
        row = ir.Constant(I64, 0)
        for rows in sorted({ROWS[vectors_n], min(4, ROWS[vectors_n]), 1}, reverse=True):
            shape = (rows, vectors_n, bool(is_cut))
            tile = _Tile(builder, context.get_value_type(scalar), scalar.bitwidth, shape, kind_n, args[3], values)
            row = tile.rows_from(row)
        return context.get_dummy_value()

    return signature, codegen


class _Tile:
    """Writes the instructions of one tile shape through an llvmlite ``builder``."""

    def __init__(self, builder, scalar, bits, shape, kind, first_column, operands):
        self.builder, self.bits, self.kind = builder, bits, kind
        self.rows, self.vectors, self.cut = shape
        columns, self.a, self.row_stride, self.step_stride, B, self.B_stride, c = operands[:7]
        self.scale, self.scale_stride, out, self.out_stride, self.n, self.steps, self.floor = operands[7:14]
        sums, self.weight, self.weight_stride, self.listed = operands[14:]
        self.B, self.c, self.out, self.sums = (builder.gep(array, [first_column]) for array in (B, c, out, sums))
        self.lanes = VECTOR_BYTES * 8 // bits
        self.vector = ir.VectorType(scalar, self.lanes)
        self.zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        self.zero = ir.Constant(I64, 0)
        self.fma = self._function("fma", self.vector, [self.vector] * 3)
        self.mask = self._column_mask(builder.sub(columns, first_column))  # LLVM drops it where nothing is cut

    def rows_from(self, first_row):
        """Loop over the rows; return the first one that is left."""
        builder = self.builder
        before = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("rows", "tile", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        row = builder.phi(I64)
        row.add_incoming(first_row, before)
        following = builder.add(row, ir.Constant(I64, self.rows))
        builder.cbranch(builder.icmp_signed("<=", following, self.n), body, done)
        builder.position_at_end(body)
        numbers = [builder.add(row, ir.Constant(I64, r)) for r in range(self.rows)]
        if self.kind == ACCUMULATE:
            numbers = [builder.load(builder.gep(self.listed, [number])) for number in numbers]
        self._finish(numbers, self._steps(numbers, self._start(numbers)))
        row.add_incoming(following, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return row

    def _start(self, numbers):
        if self.kind == ACCUMULATE:
            return [[self.zeros] * self.vectors for _ in numbers]
        common = [self._load(self.c, self.zero, self.zero, j) for j in range(self.vectors)]
        factors = [self._broadcast(self.scale, self.builder.mul(self.scale_stride, r)) for r in numbers]
        return [[self.builder.fmul(factor, value) for value in common] for factor in factors]

    def _steps(self, numbers, start):
        """Add a[r, k] · B[k, :] for every k that counts; the sums stay in registers, as phi nodes of loops."""
        # A tile one vector wide has so many rows that few steps are zero in all of them.
        if self.kind == ACCUMULATE or self.vectors == 1:
            return self._all_steps(numbers, start)
        return self._steps_that_count(numbers, start)

    def _all_steps(self, numbers, start):
        """Take every step."""
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("steps"), builder.append_basic_block("finish")
        row_starts = [builder.mul(self.row_stride, r) for r in numbers]
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        held = self._phis(start, before)
        result = self._step(k, row_starts, held)
        following = builder.add(k, ir.Constant(I64, 1))
        k.add_incoming(self.zero, before)
        k.add_incoming(following, loop)
        self._add_incoming(held, result, loop)
        builder.cbranch(builder.icmp_signed("<", following, self.steps), loop, after)
        builder.position_at_end(after)
        return result

    def _steps_that_count(self, numbers, start):
        """Take the steps k for which some row of the tile has a[r, k] other than zero, 64 of them to a word of bits."""
        builder = self.builder
        before = builder.block
        words, scan, scanned, found, loop, following_word, after = (
            builder.append_basic_block(name)
            for name in ("words", "scan", "scanned", "found", "steps", "next_word", "finish")
        )
        row_starts = [builder.mul(self.row_stride, r) for r in numbers]
        builder.branch(words)

        builder.position_at_end(words)
        first = builder.phi(I64)
        first.add_incoming(self.zero, before)
        held = self._phis(start, before)
        last = builder.add(first, ir.Constant(I64, WORD))
        last = builder.select(builder.icmp_signed("<", last, self.steps), last, self.steps)
        builder.cbranch(builder.icmp_signed("<", first, self.steps), scan, after)

        builder.position_at_end(scan)
        k, word = builder.phi(I64), builder.phi(I64)
        k.add_incoming(first, words)
        word.add_incoming(self.zero, words)
        beyond = builder.add(k, ir.Constant(I64, self.lanes))
        builder.cbranch(builder.icmp_signed("<=", beyond, last), found, scanned)
        builder.position_at_end(found)
        bits = builder.shl(self._nonzero(row_starts, k), builder.sub(k, first))
        k.add_incoming(beyond, found)
        word.add_incoming(builder.or_(word, bits), found)
        builder.branch(scan)

        builder.position_at_end(scanned)
        # What is left of the row, less than a vector, is taken as it is.
        one = ir.Constant(I64, 1)
        rest = builder.sub(builder.shl(one, builder.sub(last, k)), one)
        place = builder.and_(builder.sub(k, first), ir.Constant(I64, WORD - 1))
        whole = builder.or_(word, builder.shl(rest, place))
        builder.cbranch(builder.icmp_unsigned("!=", whole, self.zero), loop, following_word)

        builder.position_at_end(loop)
        left = builder.phi(I64)
        inner = self._phis(held, scanned)
        step = builder.add(first, builder.cttz(left, ir.Constant(ir.IntType(1), 1)))
        result = self._step(step, row_starts, inner)
        later = builder.and_(left, builder.sub(left, one))
        left.add_incoming(whole, scanned)
        left.add_incoming(later, loop)
        self._add_incoming(inner, result, loop)
        builder.cbranch(builder.icmp_unsigned("!=", later, self.zero), loop, following_word)

        builder.position_at_end(following_word)
        carried = self._phis(held, scanned)
        self._add_incoming(carried, result, loop)
        first.add_incoming(last, following_word)
        self._add_incoming(held, carried, following_word)
        builder.branch(words)
        builder.position_at_end(after)
        return held

    def _step(self, k, row_starts, sums):
        """Return the sums after step k."""
        builder = self.builder
        b_row = [self._load(self.B, k, self.B_stride, j) for j in range(self.vectors)]
        a_step = builder.mul(k, self.step_stride)
        result = []
        for row_start, own in zip(row_starts, sums, strict=True):
            factor = self._broadcast(self.a, builder.add(row_start, a_step))
            result.append([builder.call(self.fma, [factor, b, total]) for b, total in zip(b_row, own, strict=True)])
        return result

    def _nonzero(self, row_starts, k):
        """Return a word whose bits say for which of a vector of steps from k on some row is not zero."""
        builder = self.builder
        integers = ir.VectorType(ir.IntType(self.bits), self.lanes)
        together = None
        for row_start in row_starts:
            address = builder.bitcast(builder.gep(self.a, [builder.add(row_start, k)]), integers.as_pointer())
            values = builder.load(address, align=self.bits // 8)
            together = values if together is None else builder.or_(together, values)
        flags = builder.icmp_unsigned("!=", together, ir.Constant(integers, [0] * self.lanes))
        return builder.zext(builder.bitcast(flags, ir.IntType(self.lanes)), I64)

    def _phis(self, values, block):
        """Return phi nodes that begin with ``values`` where one comes from ``block``."""
        phis = [[self.builder.phi(self.vector) for _ in row] for row in values]
        self._add_incoming(phis, values, block)
        return phis

    @staticmethod
    def _add_incoming(phis, values, block):
        for phi_row, row in zip(phis, values, strict=True):
            for phi, value in zip(phi_row, row, strict=True):
                phi.add_incoming(value, block)

    def _finish(self, numbers, result):
        if self.kind == ACCUMULATE:
            for r, values in zip(numbers, result, strict=True):
                for j, value in enumerate(values):
                    self._add_to(self.out, r, self.out_stride, j, value)
            return
        # The rows of a tile are summed by themselves: a running sum over all rows would lose digits.
        totals = [self.zeros] * self.vectors
        for r, values in zip(numbers, result, strict=True):
            totals = self._finish_plain(r, values, totals)
        for j, total in enumerate(totals):
            self._add_to(self.sums, self.zero, self.zero, j, total)

    def _finish_plain(self, r, values, totals):
        builder = self.builder
        floor = self._splat(self.floor)
        weight = self._broadcast(self.weight, builder.mul(self.weight_stride, r))
        added = []
        for j, (value, total) in enumerate(zip(values, totals, strict=True)):
            # "Greater or not a number": a NaN passes through instead of becoming the floor.
            value = builder.select(builder.fcmp_unordered(">", value, floor), value, floor)
            self._store(value, self.out, r, self.out_stride, j)
            added.append(builder.call(self.fma, [weight, value, total]))
        return added

    def _add_to(self, base, row, stride, j, value):
        self._store(self.builder.fadd(self._load(base, row, stride, j), value), base, row, stride, j)

    def _function(self, name, result, arguments, suffix=""):
        full_name = f"llvm.{name}.v{self.lanes}f{self.bits}{suffix}"
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), full_name)

    def _splat(self, value):
        undefined = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        lane = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        picks = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(lane, undefined, picks)

    def _broadcast(self, base, index):
        return self._splat(self.builder.load(self.builder.gep(base, [index])))

    def _column_mask(self, columns):
        limit = self._splat(self.builder.trunc(columns, I32))
        places = ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", places, limit)

    def _address(self, base, row, stride, j):
        index = self.builder.add(self.builder.mul(stride, row), ir.Constant(I64, self.lanes * j))
        return self.builder.bitcast(self.builder.gep(base, [index]), self.vector.as_pointer())

    def _is_cut(self, j):
        return self.cut and j == self.vectors - 1

    def _load(self, base, row, stride, j):
        address = self._address(base, row, stride, j)
        if not self._is_cut(j):
            return self.builder.load(address, align=self.bits // 8)
        load = self._function("masked.load", self.vector, [address.type, I32, self.mask.type, self.vector], ".p0")
        return self.builder.call(load, [address, ir.Constant(I32, self.bits // 8), self.mask, self.zeros])

    def _store(self, value, base, row, stride, j):
        address = self._address(base, row, stride, j)
        if not self._is_cut(j):
            self.builder.store(value, address, align=self.bits // 8)
            return
        store = self._function("masked.store", ir.VoidType(), [self.vector, address.type, I32, self.mask.type], ".p0")
        self.builder.call(store, [value, address, ir.Constant(I32, self.bits // 8), self.mask])
