"""The inner loops of the scans backwards, as LLVM IR: a few columns of a state, one after another.

A *tile* holds up to `lanes_of` columns of S or of its gradient, each `size` numbers long: keys lie along the registers.
So sums over columns (of a query, a key, a decay) stay in registers, and only sums over keys have to add up lanes; these
are added up for all columns of a tile at once, in one order. Tiles are ``x, at``; rows, one number per key, ``x, row``.

A decay below 0 stands for one that is exactly 0: what it meets is gone, be it NaN or infinite.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refattn_numba.simd import _pointer
from refattn_numba.simd_rows import _totals
from refattn_numba.vectors import I64, REGISTERS, Vectors

BLOCK = 4 if REGISTERS == 32 else 2
"""Registers of a row that are walked down the columns together."""


class Walk:
    """Loops over the registers of a row and the columns of a tile, and what is loaded and added up meanwhile."""

    def __init__(self, context, builder, signature, args, size, width):
        self.context, self.builder, self.kinds, self.args = context, builder, signature.args, args
        self.size, self.width = size, width
        self.vec = Vectors(builder, signature.args[0].dtype)
        self.here, self.count = None, 0

    def given(self, n):
        return self.kinds[n] != types.none

    def pointer(self, n, at=None):
        at = ir.Constant(I64, 0) if at is None else at
        return _pointer(self.context, self.builder, self.kinds[n], self.args[n], at)

    def blocks(self, body):
        """Call `body` to emit what is done with BLOCK registers of a row, and again for those left over."""
        lanes = ir.Constant(I64, self.vec.lanes)
        registers = self.builder.sdiv(self.size, lanes)
        done = self.builder.mul(self.builder.sdiv(registers, ir.Constant(I64, BLOCK)), ir.Constant(I64, BLOCK))
        with cgutils.for_range(self.builder, self.builder.sdiv(registers, ir.Constant(I64, BLOCK))) as loop:
            self.here = self.builder.mul(loop.index, ir.Constant(I64, BLOCK * self.vec.lanes))
            self.count = BLOCK
            body()
        with cgutils.for_range(self.builder, self.builder.sub(registers, done)) as loop:
            self.here = self.builder.mul(self.builder.add(done, loop.index), lanes)
            self.count = 1
            body()

    def columns(self):
        return cgutils.for_range(self.builder, self.width)

    def cells(self, first, column=None):
        """Return where the registers of this block lie in a row, or in a column of a tile."""
        at = self.here
        if column is not None:
            at = self.builder.add(at, self.builder.mul(column, self.size))
        return [
            self.builder.gep(first, [self.builder.add(at, ir.Constant(I64, n * self.vec.lanes))])
            for n in range(self.count)
        ]

    def loads(self, first, column=None):
        return [self.vec.load(cell) for cell in self.cells(first, column)]

    def stores(self, values, first, column=None):
        for value, cell in zip(values, self.cells(first, column), strict=True):
            self.vec.store(value, cell)

    def spread(self, first, column):
        return self.vec.splat(self.builder.load(self.builder.gep(first, [column])))

    def zeros(self):
        places = [cgutils.alloca_once(self.builder, self.vec.vector) for _ in range(self.count)]
        for place in places:
            self.builder.store(self.vec.constant(0.0), place)
        return places

    def add(self, places, xs, ys):
        for place, x, y in zip(places, xs, ys, strict=True):
            self.builder.store(self.vec.fma(x, y, self.builder.load(place)), place)

    def totals(self, places):
        return [self.builder.load(place) for place in places]

    def gone(self, decays):
        return [self.builder.fcmp_ordered("<", a, self.vec.constant(0.0)) for a in decays]

    def kept(self, gone, decays, values):
        """Return a ⊙ x, 0 where x is gone."""
        return [
            self.builder.select(g, self.vec.constant(0.0), self.builder.fmul(a, x))
            for g, a, x in zip(gone, decays, values, strict=True)
        ]

    def forget_sums(self, sums):
        """Set the sums over keys to 0: a register for each column of a whole tile."""
        for n in range(self.vec.lanes):
            self.vec.store(self.vec.constant(0.0), self.builder.gep(sums, [ir.Constant(I64, n * self.vec.lanes)]))

    def along(self, sums, column, xs, ys):
        """Add x · y of this block to the sum of a column."""
        cell = self.builder.gep(sums, [self.builder.mul(column, ir.Constant(I64, self.vec.lanes))])
        total = self.vec.load(cell)
        for x, y in zip(xs, ys, strict=True):
            total = self.vec.fma(x, y, total)
        self.vec.store(total, cell)

    def fold(self, sums, out):
        """Put the sum over keys of each column into `out`."""
        rows = [
            self.vec.load(self.builder.gep(sums, [ir.Constant(I64, n * self.vec.lanes)])) for n in range(self.vec.lanes)
        ]
        self.vec.store(_totals(self.builder, self.vec, rows), out)


@intrinsic
def advance(typing, old, old_at, new, new_at, size, width, k, a, row, u, u_at, b, r, r_at):
    """S' = a ⊙ S + k uᵀ, and - b rᵀ where b is given."""

    def generate(context, builder, signature, args):
        row, u_at, r_at = args[8], args[10], args[13]
        at = Walk(context, builder, signature, args, args[4], args[5])
        source, target = (at.pointer(n, args[n + 1]) for n in (0, 2))
        keys, decays, values = at.pointer(6, row), at.pointer(7, row), at.pointer(9, u_at)
        erases = at.given(11)
        gaps, found = (at.pointer(11, row), at.pointer(12, r_at)) if erases else (None, None)

        def body():
            key, decay = at.loads(keys), at.loads(decays)
            gone, gap = at.gone(decay), at.loads(gaps) if erases else []
            with at.columns() as loop:
                value = at.spread(values, loop.index)
                state = at.kept(gone, decay, at.loads(source, loop.index))
                state = [at.vec.fma(x, value, s) for x, s in zip(key, state, strict=True)]
                if erases:
                    held = builder.fsub(at.vec.constant(-0.0), at.spread(found, loop.index))
                    state = [at.vec.fma(x, held, s) for x, s in zip(gap, state, strict=True)]
                at.stores(state, target, loop.index)

        at.blocks(body)
        return context.get_dummy_value()

    i = types.intp
    return types.void(old, i, new, i, i, i, k, a, i, u, i, b, r, i), generate


@intrinsic
def read(typing, S, S_at, size, width, k, row, a, out, out_at, sums):
    """Put (a ⊙ S)ᵀ k into `out`; Sᵀ k if a is None."""

    def generate(context, builder, signature, args):
        at = Walk(context, builder, signature, args, args[2], args[3])
        tile, keys, totals = at.pointer(0, args[1]), at.pointer(4, args[5]), at.pointer(9)
        decays = at.pointer(6, args[5]) if at.given(6) else None
        at.forget_sums(totals)

        def body():
            key = at.loads(keys)
            decay = at.loads(decays) if decays is not None else []
            gone = at.gone(decay)
            with at.columns() as loop:
                state = at.loads(tile, loop.index)
                state = at.kept(gone, decay, state) if decay else state
                at.along(totals, loop.index, key, state)

        at.blocks(body)
        at.fold(totals, at.pointer(7, args[8]))
        return context.get_dummy_value()

    i = types.intp
    return types.void(S, i, i, i, k, i, a, out, i, sums), generate


@intrinsic
def answer(typing, dS, S, S_at, size, width, q, do, dq, scale):
    """Undo o = scale Sᵀ q: dS += scale q doᵀ, dq = scale S do."""

    def generate(context, builder, signature, args):
        at = Walk(context, builder, signature, args, args[3], args[4])
        gradient, tile = at.pointer(0), at.pointer(1, args[2])
        queries, pulls, out = (at.pointer(n) for n in (5, 6, 7))
        factor = at.vec.splat(args[8])

        def body():
            query, total = [builder.fmul(factor, x) for x in at.loads(queries)], at.zeros()
            with at.columns() as loop:
                pull = at.spread(pulls, loop.index)
                at.add(total, at.loads(tile, loop.index), [pull] * at.count)
                slope = at.loads(gradient, loop.index)
                at.stores([at.vec.fma(x, pull, s) for x, s in zip(query, slope, strict=True)], gradient, loop.index)
            at.stores([builder.fmul(factor, x) for x in at.totals(total)], out)

        at.blocks(body)
        return context.get_dummy_value()

    i = types.intp
    return types.void(dS, S, i, i, i, q, do, dq, dS.dtype), generate


@intrinsic
def written(typing, dS, size, width, k, row, u, u_at, dk, du, b, r, r_at, db, dr, sums):
    """Undo + k uᵀ, and - b rᵀ where b is given: dk = dS u, du = dSᵀ k, db = -dS r, dr = -dSᵀ b."""

    def generate(context, builder, signature, args):
        row = args[4]
        at = Walk(context, builder, signature, args, args[1], args[2])
        gradient, keys, values, sums_u = at.pointer(0), at.pointer(3, row), at.pointer(5, args[6]), at.pointer(14)
        erases = at.given(9)
        gaps, found = (at.pointer(9, row), at.pointer(10, args[11])) if erases else (None, None)
        sums_r = builder.gep(sums_u, [ir.Constant(I64, at.vec.lanes * at.vec.lanes)])
        at.forget_sums(sums_u)
        if erases:
            at.forget_sums(sums_r)

        def body():
            key, total, gap_total = at.loads(keys), at.zeros(), at.zeros()
            gap = [builder.fsub(at.vec.constant(-0.0), x) for x in at.loads(gaps)] if erases else []
            with at.columns() as loop:
                slope, value = at.loads(gradient, loop.index), at.spread(values, loop.index)
                at.add(total, slope, [value] * at.count)
                at.along(sums_u, loop.index, key, slope)
                if erases:
                    at.add(gap_total, slope, [at.spread(found, loop.index)] * at.count)
                    at.along(sums_r, loop.index, gap, slope)
            at.stores(at.totals(total), at.pointer(7))
            if erases:
                lost = [builder.fsub(at.vec.constant(-0.0), x) for x in at.totals(gap_total)]
                at.stores(lost, at.pointer(12))

        at.blocks(body)
        at.fold(sums_u, at.pointer(8))
        if erases:
            at.fold(sums_r, at.pointer(13))
        return context.get_dummy_value()

    i = types.intp
    return types.void(dS, i, i, k, i, u, i, dk, du, b, r, i, db, dr, sums), generate


@intrinsic
def kept_back(typing, dS, S, S_at, size, width, a, row, dg, e, dr, de, decayed, q, do, dq, scale):
    """Undo a ⊙ S: dS = a ⊙ dS, and dg = a ⊙ Σ dS ⊙ S of the columns.

    With e, what was read is undone, too: r = (a ⊙ S)ᵀ e, where `decayed` is given, or else r = Sᵀ e. With q, what the
    same S answered is, afterwards: `answer`.
    """

    def generate(context, builder, signature, args):
        at = Walk(context, builder, signature, args, args[3], args[4])
        reads, first, answers = at.given(8), at.given(11), at.given(12)
        gradient, tile, decays = at.pointer(0), at.pointer(1, args[2]), at.pointer(5, args[6])
        keys, pulls = (at.pointer(8, args[6]), at.pointer(9)) if reads else (None, None)
        queries, answered = (at.pointer(12), at.pointer(13)) if answers else (None, None)
        factor = at.vec.splat(args[15])

        def body():
            decay, key = at.loads(decays), at.loads(keys) if reads else []
            gone, total, key_total, query_total = at.gone(decay), at.zeros(), at.zeros(), at.zeros()
            query = [builder.fmul(factor, x) for x in at.loads(queries)] if answers else []
            with at.columns() as loop:
                slope, state = at.loads(gradient, loop.index), at.loads(tile, loop.index)
                pull = at.spread(pulls, loop.index) if reads else None
                if reads:
                    at.add(key_total, state, [pull] * at.count)
                if reads and first:
                    slope = [at.vec.fma(x, pull, s) for x, s in zip(key, slope, strict=True)]
                at.add(total, slope, state)
                slope = at.kept(gone, decay, slope)
                if reads and not first:
                    slope = [at.vec.fma(x, pull, s) for x, s in zip(key, slope, strict=True)]
                if answers:
                    pull = at.spread(answered, loop.index)
                    at.add(query_total, state, [pull] * at.count)
                    slope = [at.vec.fma(x, pull, s) for x, s in zip(query, slope, strict=True)]
                at.stores(slope, gradient, loop.index)
            at.stores(at.kept(gone, decay, at.totals(total)), at.pointer(7))
            if reads:
                found = at.totals(key_total)
                at.stores(at.kept(gone, decay, found) if first else found, at.pointer(10))
            if answers:
                at.stores([builder.fmul(factor, x) for x in at.totals(query_total)], at.pointer(14))

        at.blocks(body)
        return context.get_dummy_value()

    i = types.intp
    return types.void(dS, S, i, i, i, a, i, dg, e, dr, de, decayed, q, do, dq, dS.dtype), generate
