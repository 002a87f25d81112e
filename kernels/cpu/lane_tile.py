"""Register tiles over a set whose elements lie in the lanes of vectors, built from LLVM vector types.

`lane_tile` takes the features of one strip of elements, `lane_outer_tile` some products of two features summed over
elements; `lane_product.py` puts them together.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.core.types import int64, void
from numba.extending import intrinsic

from fastperm.kernels.cpu.register_tile import I32, I64, REGISTERS, VECTOR_BYTES

# The products, whose formulas stand in lane_product.py.
FORWARD, MASKED, OUTER = 0, 1, 2

# Features × vectors of elements: with the vectors of one step and a broadcast they fill 16 registers, or leave room in
# 32. The matrix of the forward pass is packed in panels of FEATURES columns.
FEATURES, VECTORS = (8, 2) if REGISTERS == 32 else (4, 3)
ROW_COUNTS = (8, 4, 2, 1) if REGISTERS == 32 else (4, 3, 2, 1)
# Features of x × features of g, in sums over elements.
OUTER_ROWS, OUTER_COLUMNS = (4, 4) if REGISTERS == 32 else (3, 4)
# Where features go in fours or twos: a 128-bit part of a vector is reduced together with its neighbours.
PART_BYTES = 16


@intrinsic(prefer_literal=True)
def lane_tile(typingctx, vectors, kind, first_element, below, operands):
    """Compute all features of one strip of elements, ``vectors`` vectors wide.

    ``vectors`` and ``kind`` are literals. ``below`` (array, first, stride, places) has the features below: of step i it
    begins at first + stride · places[i]. ``operands`` are those of the drivers in `lane_product`.
    """
    vectors_n, kind_n = vectors.literal_value, kind.literal_value
    signature = void(vectors, kind, int64, below, operands)

    def codegen(context, builder, signature, args):
        scalar = context.get_value_type(operands.types[0].dtype)
        strip = cgutils.unpack_tuple(builder, args[3])
        values = cgutils.unpack_tuple(builder, args[4])
        row = ir.Constant(I64, 0)
        for rows in ROW_COUNTS:
            tile = _StripTile(builder, scalar, (rows, vectors_n), kind_n, args[2], strip, values)
            row = tile.rows_from(row)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def lane_outer_tile(typingctx, rows, columns, first_row, first_column, operands):
    """Add ``rows`` × ``columns`` products of features, summed over the elements; both numbers are literals."""
    shape = rows.literal_value, columns.literal_value
    signature = void(rows, columns, int64, int64, operands)

    def codegen(context, builder, signature, args):
        scalar = context.get_value_type(operands.types[0].dtype)
        _OuterTile(builder, scalar, shape, cgutils.unpack_tuple(builder, args[4])).write(args[2], args[3])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def lane_copy(typingctx, source, source_place, target, target_place):
    """Copy one vector."""
    signature = void(source, int64, target, int64)

    def codegen(context, builder, signature, args):
        lane = _LaneTile(builder, context.get_value_type(source.dtype))
        lane.store(lane.load(args[0], args[1]), args[2], args[3])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def lane_clear(typingctx, sums, row):
    """Set the vector of a row of sums to zero."""
    signature = void(sums, int64)

    def codegen(context, builder, signature, args):
        lane = _LaneTile(builder, context.get_value_type(sums.dtype))
        lane.store(lane.zeros, args[0], builder.mul(args[1], ir.Constant(I64, lane.lanes)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def lane_sum(typingctx, sums, row):
    """Return the sum over the lanes of a row of sums, in pairs."""
    signature = sums.dtype(sums, int64)

    def codegen(context, builder, signature, args):
        lane = _LaneTile(builder, context.get_value_type(sums.dtype))
        value = lane.load(args[0], builder.mul(args[1], ir.Constant(I64, lane.lanes)))
        return lane.reduced([value])[0]

    return signature, codegen


class _LaneTile:
    """What both kinds of tile write with: vectors of one scalar type, through an llvmlite ``builder``."""

    def __init__(self, builder, scalar):
        self.builder, self.scalar = builder, scalar
        self.size = 4 if isinstance(scalar, ir.FloatType) else 8
        self.lanes = VECTOR_BYTES // self.size
        self.vector = ir.VectorType(scalar, self.lanes)
        self.zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        self.zero, self.one = ir.Constant(I64, 0), ir.Constant(I64, 1)
        name = f"llvm.fma.v{self.lanes}f{self.size * 8}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def fma(self, a, b, c):
        return self.builder.call(self._fma, [a, b, c])

    def vector_at(self, base, index):
        return self.builder.bitcast(self.builder.gep(base, [index]), self.vector.as_pointer())

    def load(self, base, index):
        return self.builder.load(self.vector_at(base, index), align=self.size)

    def store(self, value, base, index):
        self.builder.store(value, self.vector_at(base, index), align=self.size)

    def splat(self, value):
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        picks = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(lane, undefined, picks)

    def broadcast(self, base, index):
        return self.splat(self.builder.load(self.builder.gep(base, [index])))

    def keep_order(self):
        """Keep the compiler from loading ahead what would not fit the registers; no instruction comes of it."""
        self.builder.fence("acq_rel", "singlethread")

    def item(self, array, index):
        return self.builder.load(self.builder.gep(array, [index]))

    def places_after(self, first, count):
        return [self.builder.add(first, ir.Constant(I64, i)) for i in range(count)]

    def loop(self, count, sums, step):
        """Run ``step(i, sums)`` for i below ``count``, which may be zero; the sums stay in registers, as phi nodes."""
        builder = self.builder
        before = builder.block
        body, after = builder.append_basic_block("steps"), builder.append_basic_block("finish")
        builder.cbranch(builder.icmp_signed(">", count, self.zero), body, after)
        builder.position_at_end(body)
        i = builder.phi(I64)
        held = [builder.phi(self.vector) for _ in sums]
        result = step(i, held)
        following = builder.add(i, self.one)
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        i.add_incoming(self.zero, before)
        i.add_incoming(following, builder.block)
        for phi, start, value in zip(held, sums, result, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, builder.block)
        end = builder.block
        builder.position_at_end(after)
        final = [builder.phi(self.vector) for _ in sums]
        for phi, start, value in zip(final, sums, result, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, end)
        return final

    def reduced(self, vectors):
        """Return the sum over the lanes of each vector, some vectors at a time."""
        together = min(PART_BYTES // self.size, len(vectors))
        totals = []
        for first in range(0, len(vectors), together):
            value = self._interleaved(vectors[first : first + together])
            lanes = self.lanes
            while lanes > PART_BYTES // self.size:
                lanes //= 2
                low, high = (self._picked(value, value, list(range(s, s + lanes))) for s in (0, lanes))
                value = self.builder.fadd(low, high)
            while lanes > together:
                lanes //= 2
                low, high = (self._picked(value, value, list(range(s, 2 * lanes, 2))) for s in (0, 1))
                value = self.builder.fadd(low, high)
            totals += [self.builder.extract_element(value, ir.Constant(I32, i)) for i in range(together)]
        return totals

    def _interleaved(self, vectors):
        """Return one vector: in each 128-bit part, sums over that part of the lanes of each vector, side by side."""
        per_part = PART_BYTES // self.size
        while len(vectors) > 1:
            paired = []
            for a, b in zip(vectors[::2], vectors[1::2], strict=True):
                picks = []
                for odd in (0, 1):
                    own = [list(range(start + odd, start + per_part, 2)) for start in range(0, self.lanes, per_part)]
                    picks.append([p for part in own for p in (*part, *(place + self.lanes for place in part))])
                paired.append(self.builder.fadd(*(self._picked(a, b, pick) for pick in picks)))
            vectors = paired
        return vectors[0]

    def _picked(self, a, b, places):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


class _StripTile(_LaneTile):
    """Some features of some vectors of elements: their sums over the features below, and what follows."""

    def __init__(self, builder, scalar, shape, kind, first_element, strip, operands):
        super().__init__(builder, scalar)
        (self.rows, self.vectors), self.kind = shape, kind
        B, first_below, self.B_stride, self.places = strip
        self.B = builder.gep(B, [first_below])
        self.a, self.a_stride, self.c, _, self.stride, out, weight = operands[:7]
        self.listed_rows, self.n_rows, self.listed_steps, self.n_steps, self.floor, self.sums = operands[7:13]
        self.out, self.weight = (builder.gep(array, [first_element]) for array in (out, weight))

    def rows_from(self, first_row):
        """Loop over the rows, which are features; return the first one that is left."""
        builder = self.builder
        before = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("rows", "tile", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        row = builder.phi(I64)
        row.add_incoming(first_row, before)
        following = builder.add(row, ir.Constant(I64, self.rows))
        builder.cbranch(builder.icmp_signed("<=", following, self.n_rows), body, done)
        builder.position_at_end(body)
        self._tile(row)
        row.add_incoming(following, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return row

    def _tile(self, row):
        builder = self.builder
        numbers = self.places_after(row, self.rows)
        if self.kind == MASKED:
            numbers = [self.item(self.listed_rows, number) for number in numbers]
            a_rows = [builder.gep(self.a, [builder.mul(number, self.a_stride)]) for number in numbers]
        else:  # row r of a panel: its columns are the features
            panel = builder.and_(row, ir.Constant(I64, -FEATURES))
            start = builder.add(builder.mul(panel, self.a_stride), builder.sub(row, panel))
            a_rows = [builder.gep(self.a, [place]) for place in self.places_after(start, self.rows)]
        scale = 1 if self.kind == MASKED else FEATURES
        sums = []
        for number in numbers:
            c = self.broadcast(self.c, number)
            sums += [builder.fmul(c, w) for w in self._weights()] if self.kind == MASKED else [c] * self.vectors

        def step(i, sums):
            k = self.item(self.listed_steps, i)
            b_start = builder.mul(self.item(self.places, i), self.B_stride)
            b = [self.load(self.B, builder.add(b_start, ir.Constant(I64, v * self.lanes))) for v in range(self.vectors)]
            a_place = builder.mul(k, ir.Constant(I64, scale))
            result = []
            for r, a_row in enumerate(a_rows):
                self.keep_order()
                factor = self.broadcast(a_row, a_place)
                own = sums[r * self.vectors : (r + 1) * self.vectors]
                result += [self.fma(factor, value, total) for value, total in zip(b, own, strict=True)]
            return result

        result = self.loop(self.n_steps, sums, step)
        finish = self._finish_masked if self.kind == MASKED else self._finish_forward
        for r, number in enumerate(numbers):
            own = result[r * self.vectors : (r + 1) * self.vectors]
            total = finish(builder.mul(number, self.stride), own)
            place = builder.mul(number, ir.Constant(I64, self.lanes))
            self.store(builder.fadd(self.load(self.sums, place), total), self.sums, place)

    def _weights(self):
        return [self.load(self.weight, ir.Constant(I64, v * self.lanes)) for v in range(self.vectors)]

    def _finish_forward(self, start, values):
        builder = self.builder
        floor, total = self.splat(self.floor), None
        for v, (value, w) in enumerate(zip(values, self._weights(), strict=True)):
            # Ordered, the floor first: a NaN passes through, and x86 has one instruction for it.
            value = builder.select(builder.fcmp_ordered(">", floor, value), floor, value)
            self.store(value, self.out, builder.add(start, ir.Constant(I64, v * self.lanes)))
            total = builder.fmul(w, value) if total is None else self.fma(w, value, total)
        return total

    def _finish_masked(self, start, values):
        builder = self.builder
        total = None
        for v, value in enumerate(values):
            place = builder.add(start, ir.Constant(I64, v * self.lanes))
            positive = builder.fcmp_ordered(">", self.load(self.out, place), self.splat(self.floor))
            value = builder.select(positive, value, self.zeros)
            self.store(value, self.out, place)
            total = value if total is None else builder.fadd(total, value)
        return total


class _OuterTile(_LaneTile):
    """Some features of x times some of g, each product summed over the elements."""

    def __init__(self, builder, scalar, shape, operands):
        super().__init__(builder, scalar)
        self.rows, self.columns = shape
        self.x, self.g, self.stride, self.vectors, self.listed_rows, _, self.listed_columns = operands[:7]
        self.out, self.out_stride = operands[8:10]

    def write(self, first_row, first_column):
        builder = self.builder
        rows, columns = (
            [self.item(listed, place) for place in self.places_after(first, count)]
            for listed, first, count in (
                (self.listed_rows, first_row, self.rows),
                (self.listed_columns, first_column, self.columns),
            )
        )
        x_rows = [builder.gep(self.x, [builder.mul(number, self.stride)]) for number in rows]
        g_rows = [builder.gep(self.g, [builder.mul(number, self.stride)]) for number in columns]

        def step(i, sums):
            place = builder.mul(i, ir.Constant(I64, self.lanes))
            x = [self.load(row, place) for row in x_rows]
            result = []
            for c, g_row in enumerate(g_rows):
                self.keep_order()
                g = self.load(g_row, place)
                own = sums[c * self.rows : (c + 1) * self.rows]
                result += [self.fma(value, g, total) for value, total in zip(x, own, strict=True)]
            return result

        sums = self.loop(self.vectors, [self.zeros] * (self.rows * self.columns), step)
        for r, number in enumerate(rows):
            start = builder.mul(number, self.out_stride)
            for column, total in zip(columns, self.reduced(sums[r :: self.rows]), strict=True):
                address = builder.gep(self.out, [builder.add(start, column)])
                builder.store(builder.fadd(builder.load(address), total), address)
