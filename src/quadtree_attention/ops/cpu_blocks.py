"""Products of small blocks in explicit vectors, for the Numba kernels: four queries, or two, times their listed keys.

LLVM vectorises only inner loops: it reduces each dot product on its own and writes every sum back to memory. Here the sums of a block stay in
registers, and sixteen dot products are reduced together. A vector has `LANES` numbers, 16 of float32 or 8 of float64, which LLVM splits as
the machine needs. `dim` must be a multiple of LANES. Positions count numbers from the start of an array, which must be contiguous.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

LANES = 16  # float32 numbers in a vector; half as many of float64
FAST = ("fast",)
I64 = ir.IntType(64)


def fits(x, dim):
    """Whether blocks can be used for arrays like ``x`` of ``dim`` channels."""
    return dim % (LANES * 4 // x.itemsize) == 0


@overload(fits, inline="always")
def _fits(x, dim):
    lanes = LANES * 32 // x.dtype.bitwidth

    def compiled(x, dim):
        return dim % lanes == 0

    return compiled


class _Block:
    """What the intrinsics share: the arrays' pointers, vectors of their type, loads and stores of them."""

    def __init__(self, context, builder, signature, args, bits: int = 512) -> None:
        self.builder = builder
        number = next(
            t.dtype for t in signature.args if isinstance(t, types.Array) and isinstance(t.dtype, types.Float)
        )
        self.number = ir.FloatType() if number == types.float32 else ir.DoubleType()
        self.bytes = number.bitwidth // 8
        self.lanes = bits // number.bitwidth
        self.vector = ir.VectorType(self.number, self.lanes)
        self.args = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]

    def load(self, array, at):
        pointer = self.builder.bitcast(self.builder.gep(array, [at]), self.vector.as_pointer())
        return self.builder.load(pointer, align=self.bytes)

    def store(self, vector, array, at):
        pointer = self.builder.bitcast(self.builder.gep(array, [at]), vector.type.as_pointer())
        self.builder.store(vector, pointer, align=self.bytes)

    def splat(self, value):
        lane = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        return self.shuffle(lane, lane, [0] * self.lanes)

    def shuffle(self, a, b, lanes):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def add(self, a, b):
        return self.builder.fadd(a, b, flags=FAST)

    def multiply(self, a, b):
        return self.builder.fmul(a, b, flags=FAST)

    def loop(self, count, step, start, body):
        """``for at in range(0, count, step): values = body(at, values)``, at least once; returns the last values."""
        builder = self.builder
        before = builder.block
        block = builder.append_basic_block("block")
        after = builder.append_basic_block("after")
        builder.branch(block)
        builder.position_at_end(block)
        at = builder.phi(I64)
        values = [builder.phi(value.type) for value in start]
        results = body(at, values)
        following = builder.add(at, ir.Constant(I64, step))
        end = builder.block
        at.add_incoming(ir.Constant(I64, 0), before)
        at.add_incoming(following, end)
        for phi, first, result in zip(values, start, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(result, end)
        builder.cbranch(builder.icmp_signed("<", following, count), block, after)
        builder.position_at_end(after)
        return results


def _row(block, at, row, step):
    """Position ``at + row * step``."""
    return block.builder.add(at, block.builder.mul(ir.Constant(I64, row), step))


def _sum_rows(rows, weight, weight_step, y, y_at, dim, token, count, out, out_at):
    """``out[i] += sum over j of weight[i, j] * y[token[j]]`` for rows of one vector; count at least 1.

    y_at and out_at: where the vector starts in row 0 of the head, and in the first row of out.
    """

    def codegen(context, builder, signature, args):
        block = _Block(context, builder, signature, args)
        weight, weight_step, y, y_at, dim, token, count, out, out_at = block.args
        places = [_row(block, out_at, i, dim) for i in range(rows)]

        def body(j, sums):
            key = builder.sext(builder.load(builder.gep(token, [j])), I64)
            x = block.load(y, builder.add(y_at, builder.mul(key, dim)))
            shares = [builder.load(builder.gep(weight, [_row(block, j, i, weight_step)])) for i in range(rows)]
            return [block.add(s, block.multiply(block.splat(w), x)) for s, w in zip(sums, shares, strict=True)]

        sums = block.loop(count, 1, [block.load(out, place) for place in places], body)
        for value, place in zip(sums, places, strict=True):
            block.store(value, out, place)
        return context.get_dummy_value()

    return types.void(weight, types.int64, y, types.int64, types.int64, token, types.int64, out, types.int64), codegen


def _scatter_rows(rows, weight, weight_step, x, x_at, dim, token, count, out, out_at):
    """``out[token[j]] += sum over i of weight[i, j] * x[i]`` for rows of one vector; count at least 1. Positions as in `_sum_rows`."""

    def codegen(context, builder, signature, args):
        block = _Block(context, builder, signature, args)
        weight, weight_step, x, x_at, dim, token, count, out, out_at = block.args
        vectors = [block.load(x, _row(block, x_at, i, dim)) for i in range(rows)]

        def body(j, _):
            key = builder.sext(builder.load(builder.gep(token, [j])), I64)
            place = builder.add(out_at, builder.mul(key, dim))
            total = block.load(out, place)
            for i, row in enumerate(vectors):
                share = builder.load(builder.gep(weight, [_row(block, j, i, weight_step)]))
                total = block.add(total, block.multiply(block.splat(share), row))
            block.store(total, out, place)
            return []

        block.loop(count, 1, [], body)
        return context.get_dummy_value()

    return types.void(weight, types.int64, x, types.int64, types.int64, token, types.int64, out, types.int64), codegen


def _dots(rows, x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step):
    """``out[i, first + j] = scale * x[i] . y[token[first + j]]`` for rows i and 16 / rows keys j; out_at: where ``out[0, first]`` is."""

    def codegen(context, builder, signature, args):
        block = _Block(context, builder, signature, args, bits=256)
        x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step = block.args
        keys = []
        for j in range(16 // rows):
            key = builder.sext(builder.load(builder.gep(token, [builder.add(first, ir.Constant(I64, j))])), I64)
            keys.append(builder.add(y_at, builder.mul(key, dim)))
        places = [_row(block, x_at, i, dim) for i in range(rows)]

        def body(d, sums):
            here = [block.load(x, builder.add(row, d)) for row in places]
            there = [block.load(y, builder.add(key, d)) for key in keys]
            pairs = ((a, b) for a in here for b in there)
            return [block.add(s, block.multiply(a, b)) for s, (a, b) in zip(sums, pairs, strict=True)]

        zero = ir.Constant(block.vector, [0.0] * block.lanes)
        sums = block.loop(dim, block.lanes, [zero] * 16, body)
        for n, four in enumerate(_reduced(block, sums)):
            factor = builder.insert_element(ir.Constant(four.type, ir.Undefined), scale, ir.Constant(ir.IntType(32), 0))
            four = block.multiply(four, block.shuffle(factor, factor, [0] * 4))
            row, column = divmod(4 * n, 16 // rows)
            at = builder.add(_row(block, out_at, row, out_step), ir.Constant(I64, column))
            block.store(four, out, at)
        return context.get_dummy_value()

    arguments = (
        x,
        types.int64,
        y,
        types.int64,
        types.int64,
        token,
        types.int64,
        x.dtype,
        out,
        types.int64,
        types.int64,
    )
    return types.void(*arguments), codegen


def _reduced(block, sums):
    """Reduce 16 vectors to their totals, as 4 vectors of 4: add halves of two vectors at a time until one number of each is left."""
    if block.lanes == 8:
        # Within the two halves of 4 lanes, as shuffles that cost one step each; then half to half.
        sums = _halved(block, sums, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        sums = _halved(block, sums, [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15])
        sums = _halved(block, sums, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        return [block.shuffle(s, s, half) for s in sums for half in ([0, 1, 2, 3], [4, 5, 6, 7])]
    sums = _halved(block, sums, [0, 4, 2, 6], [1, 5, 3, 7])
    return _halved(block, sums, [0, 1, 4, 5], [2, 3, 6, 7])


def _halved(block, sums, low, high):
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return [block.add(block.shuffle(a, b, low), block.shuffle(a, b, high)) for a, b in pairs]


@intrinsic
def sum_rows(typing_context, weight, weight_step, y, y_at, dim, token, count, out, out_at):
    """`_sum_rows` of 4 rows."""
    return _sum_rows(4, weight, weight_step, y, y_at, dim, token, count, out, out_at)


@intrinsic
def sum_two_rows(typing_context, weight, weight_step, y, y_at, dim, token, count, out, out_at):
    """`_sum_rows` of 2 rows."""
    return _sum_rows(2, weight, weight_step, y, y_at, dim, token, count, out, out_at)


@intrinsic
def scatter_rows(typing_context, weight, weight_step, x, x_at, dim, token, count, out, out_at):
    """`_scatter_rows` of 4 rows."""
    return _scatter_rows(4, weight, weight_step, x, x_at, dim, token, count, out, out_at)


@intrinsic
def scatter_two_rows(typing_context, weight, weight_step, x, x_at, dim, token, count, out, out_at):
    """`_scatter_rows` of 2 rows."""
    return _scatter_rows(2, weight, weight_step, x, x_at, dim, token, count, out, out_at)


@intrinsic
def dots(typing_context, x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step):
    """`_dots` of 4 rows."""
    return _dots(4, x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step)


@intrinsic
def dots_of_two(typing_context, x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step):
    """`_dots` of 2 rows."""
    return _dots(2, x, x_at, y, y_at, dim, token, first, scale, out, out_at, out_step)


def _product(rows, x, x_at, panel, panel_at, dim, out, out_at, out_step):
    """``out[i] = sum over d of x[i, d] * panel[d]`` for rows of one vector; dim at least 1.

    x_at: where row 0 of ``x [rows, dim]`` is; panel_at: where ``panel [dim, lanes]`` begins; out_at: where row 0 goes; out_step: from row to row.
    """

    def codegen(context, builder, signature, args):
        block = _Block(context, builder, signature, args)
        x, x_at, panel, panel_at, dim, out, out_at, out_step = block.args
        places = [_row(block, x_at, i, dim) for i in range(rows)]

        def body(d, sums):
            step = builder.mul(d, ir.Constant(I64, block.lanes))
            there = block.load(panel, builder.add(panel_at, step))
            here = [builder.load(builder.gep(x, [builder.add(place, d)])) for place in places]
            return [
                block.add(s, block.multiply(block.splat(number), there)) for s, number in zip(sums, here, strict=True)
            ]

        zero = ir.Constant(block.vector, [0.0] * block.lanes)
        sums = block.loop(dim, 1, [zero] * rows, body)
        for i, value in enumerate(sums):
            block.store(value, out, _row(block, out_at, i, out_step))
        return context.get_dummy_value()

    whole = types.int64
    return types.void(x, whole, panel, whole, whole, out, whole, whole), codegen


@intrinsic
def product(typing_context, x, x_at, panel, panel_at, dim, out, out_at, out_step):
    """`_product` of 6 rows: with float32 on AVX2 the sums, a vector of the panel and a number fill the registers."""
    return _product(6, x, x_at, panel, panel_at, dim, out, out_at, out_step)
