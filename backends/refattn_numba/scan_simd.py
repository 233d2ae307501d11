"""The inner loops of the scans, as LLVM IR: a few columns of a state S, and the tokens that pass through it.

S is D rows, one per key dimension, of `width_of` columns: VECTORS registers. A row is loaded and stored once per pass,
and the sums that make o stay in registers. They run along D in order, and every token sees the same operations in
whatever block of tokens it falls: so a sequence may be cut anywhere, and no bit changes.

What a scan has (decays per token, per key, or none; a bonus) is read off the types of its arguments: None, or an array
of one or two axes. Arguments called ``x, at`` are as in `simd`.
"""

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refattn_numba.simd import _pointer
from refattn_numba.simd_rows import _folded
from refattn_numba.vectors import FLOATS, I64, POWERS, REGISTERS, VECTOR_BYTES, Vectors

VECTORS, TOKENS = (4, 2) if REGISTERS == 32 else (2, 2)
"""Registers in a row of S, and tokens of a pass where nothing is erased: v and o of each are in registers."""
LOG2E = {32: (1.4426950216293335, 1.9259629911266175e-08), 64: (1.4426950408889634, 2.0355273740931033e-17)}
"""1 / log(2) as the nearest number of that many bits, and what is missing."""


def columns_of(dtype):
    """Return how many columns of a state are walked together."""
    return VECTORS * VECTOR_BYTES // dtype.itemsize


@intrinsic
def width_of(typing, array):
    """Return `columns_of` the dtype of an array, as a constant."""

    def generate(context, builder, signature, args):
        return ir.Constant(I64, VECTORS * VECTOR_BYTES // (FLOATS[signature.args[0].dtype][1] // 8))

    return types.int64(array), generate


def _exp(builder, vec, x):
    """Return e^x = 2^n · 2^f with n the integer nearest to x / log(2); -inf gives 0, and NaN stays NaN."""
    mantissa, bias, least, most = (23, 127, -151.0, 128.0) if vec.bits == 32 else (52, 1023, -1076.0, 1024.0)
    factor, rest = (vec.constant(part) for part in LOG2E[vec.bits])
    shift = vec.constant(1.5 * 2.0**mantissa)
    power = builder.fmul(x, factor)
    shifted = builder.fadd(power, shift)
    f = vec.fma(x, factor, builder.fsub(shift, shifted))
    f = vec.fma(x, rest, f)
    coefficients = POWERS[vec.bits]
    y = vec.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        y = vec.fma(y, f, vec.constant(coefficient))
    n = builder.sub(builder.bitcast(shifted, vec.integers), builder.bitcast(shift, vec.integers))
    half = builder.ashr(n, vec.whole(1))  # 2^n in two factors: it may be subnormal
    for part in (half, builder.sub(n, half)):
        bits = builder.shl(builder.add(part, vec.whole(bias)), vec.whole(mantissa))
        y = builder.fmul(y, builder.bitcast(bits, vec.vector))
    y = builder.select(builder.fcmp_unordered(">=", power, vec.constant(least)), y, vec.constant(0.0))
    return builder.select(builder.fcmp_ordered(">=", power, vec.constant(most)), vec.constant(math.inf), y)


@intrinsic
def exp_row(typing, x, size):
    """x[n] = e^x[n] for n < size, a multiple of a register; return whether one of them was -inf."""

    def generate(context, builder, signature, args):
        vec = Vectors(builder, signature.args[0].dtype)
        first = _pointer(context, builder, signature.args[0], args[0], ir.Constant(I64, 0))
        bools = ir.VectorType(ir.IntType(1), vec.lanes)
        found = cgutils.alloca_once_value(builder, ir.Constant(bools, [0] * vec.lanes))
        builder.store(ir.Constant(bools, [0] * vec.lanes), found)
        with cgutils.for_range(builder, builder.sdiv(args[1], ir.Constant(I64, vec.lanes))) as loop:
            cell = builder.gep(first, [builder.mul(loop.index, ir.Constant(I64, vec.lanes))])
            value = vec.load(cell)
            gone = builder.fcmp_ordered("==", value, vec.constant(-math.inf))
            builder.store(builder.or_(builder.load(found), gone), found)
            vec.store(_exp(builder, vec, value), cell)
        lanes = builder.bitcast(builder.load(found), ir.IntType(vec.lanes))
        return builder.icmp_unsigned("!=", lanes, ir.Constant(lanes.type, 0))

    return types.boolean(x, types.intp), generate


@intrinsic
def dot(typing, x, x_at, y, y_at, size):
    """Return the sum of x[x_at + n] * y[y_at + n] for n < size: lane by lane, then the lanes, then what is left."""

    def generate(context, builder, signature, args):
        x, x_at, y, y_at, size = args
        vec = Vectors(builder, signature.args[0].dtype)
        left, right = (
            _pointer(context, builder, signature.args[n], array, at) for n, array, at in ((0, x, x_at), (2, y, y_at))
        )
        whole = builder.sdiv(size, ir.Constant(I64, vec.lanes))
        total = cgutils.alloca_once_value(builder, vec.constant(0.0))
        builder.store(vec.constant(0.0), total)
        with cgutils.for_range(builder, whole) as loop:
            at = builder.mul(loop.index, ir.Constant(I64, vec.lanes))
            product = vec.fma(
                vec.load(builder.gep(left, [at])), vec.load(builder.gep(right, [at])), builder.load(total)
            )
            builder.store(product, total)
        one = cgutils.alloca_once(builder, vec.scalar)
        builder.store(_folded(builder, vec, builder.load(total), builder.fadd), one)
        done = builder.mul(whole, ir.Constant(I64, vec.lanes))
        with cgutils.for_range(builder, builder.sub(size, done)) as loop:
            at = builder.add(done, loop.index)
            term = builder.fmul(builder.load(builder.gep(left, [at])), builder.load(builder.gep(right, [at])))
            builder.store(builder.fadd(builder.load(one), term), one)
        return builder.load(one)

    return x.dtype(x, types.intp, y, types.intp, types.intp), generate


class _Pass:
    """What the passes over S below share: its rows, registers of W columns, and numbers that are spread over one."""

    def __init__(self, context, builder, kinds, S):
        self.context, self.builder, self.kinds = context, builder, kinds
        self.vec = Vectors(builder, kinds[0].dtype)
        self.state = self.pointer(0, S, ir.Constant(I64, 0))
        self.columns = [ir.Constant(I64, n * self.vec.lanes) for n in range(VECTORS)]

    def pointer(self, n, array, at):
        return _pointer(self.context, self.builder, self.kinds[n], array, at)

    def cells(self, pointer):
        return [self.builder.gep(pointer, [column]) for column in self.columns]

    def loads(self, pointer):
        return [self.vec.load(cell) for cell in self.cells(pointer)]

    def stores(self, values, pointer):
        for value, cell in zip(values, self.cells(pointer), strict=True):
            self.vec.store(value, cell)

    def row(self, d):
        return self.builder.gep(self.state, [self.builder.mul(d, ir.Constant(I64, VECTORS * self.vec.lanes))])

    def spread(self, pointer, index):
        return self.vec.splat(self.builder.load(self.builder.gep(pointer, [index])))

    def sums(self, first=None):
        """Return places for the sums of one row, which begin at `first` or 0."""
        places = [cgutils.alloca_once(self.builder, self.vec.vector) for _ in self.columns]
        for place, value in zip(places, first or [self.vec.constant(0.0)] * VECTORS, strict=True):
            self.builder.store(value, place)
        return places

    def add(self, places, factor, values):
        for place, value in zip(places, values, strict=True):
            self.builder.store(self.vec.fma(factor, value, self.builder.load(place)), place)

    def totals(self, places):
        return [self.builder.load(place) for place in places]


def _walk(tokens):
    """Return an intrinsic that takes `tokens` tokens through S."""

    @intrinsic
    def walk(typing, S, D, q, q_at, k, k_at, v, v_at, v_row, g, a, a_at, u, c, c_at, o, o_at, o_row, scale):
        """S = e^g S + k vᵀ and o = scale Sᵀ q; with a bonus, o = scale (Sᵀ q + c v) before that.

        a holds e^g, a number per token (g has one axis) or D of them (two); g and u only say what there is.
        """

        def generate(context, builder, signature, args):
            S, D, q, q_at, k, k_at, v, v_at, v_row, _, a, a_at, _, c, c_at, o, o_at, o_row, scale = args
            kinds = signature.args
            at = _Pass(context, builder, kinds, S)
            vec = at.vec
            decay = 0 if kinds[9] == types.none else kinds[9].ndim
            before = kinds[12] != types.none

            def rows(n, array, first, step):
                pointer = at.pointer(n, array, first)
                return [builder.gep(pointer, [builder.mul(step, ir.Constant(I64, j))]) for j in range(tokens)]

            queries, keys = rows(2, q, q_at, D), rows(4, k, k_at, D)
            values = [at.loads(row) for row in rows(6, v, v_at, v_row)]
            decays = rows(10, a, a_at, D if decay == 2 else ir.Constant(I64, 1))
            zero = ir.Constant(I64, 0)
            constant = [at.spread(row, zero) if decay == 1 else None for row in decays]
            bonus = [None] * tokens
            if before:
                own = [at.spread(row, zero) for row in rows(13, c, c_at, ir.Constant(I64, 1))]
                bonus = [[builder.fmul(own[j], value) for value in values[j]] for j in range(tokens)]
            sums = [at.sums(bonus[j]) for j in range(tokens)]
            with cgutils.for_range(builder, D) as loop:
                d = loop.index
                here = at.row(d)
                state = at.loads(here)
                for j in range(tokens):
                    key, query = at.spread(keys[j], d), at.spread(queries[j], d)
                    if before:
                        at.add(sums[j], query, state)
                    if decay == 0:
                        state = [vec.fma(key, x, s) for x, s in zip(values[j], state, strict=True)]
                    else:
                        kept = constant[j] if decay == 1 else at.spread(decays[j], d)
                        new = [builder.fmul(key, x) for x in values[j]]
                        state = [vec.fma(kept, s, x) for s, x in zip(state, new, strict=True)]
                    if not before:
                        at.add(sums[j], query, state)
                at.stores(state, here)
            size = vec.splat(scale)
            for place, row in zip(sums, rows(15, o, o_at, o_row), strict=True):
                at.stores([builder.fmul(size, x) for x in at.totals(place)], row)
            return context.get_dummy_value()

        i = types.intp
        return types.void(S, i, q, i, k, i, v, i, i, g, a, i, u, c, i, o, i, i, S.dtype), generate

    return walk


walk_one, walk_many = _walk(1), _walk(TOKENS)


@intrinsic
def read_state(typing, S, D, k, k_at, r):
    """Put Sᵀ k into r, added up as `step` does it."""

    def generate(context, builder, signature, args):
        S, D, k, k_at, r = args
        at = _Pass(context, builder, signature.args, S)
        key, sums = at.pointer(2, k, k_at), at.sums()
        with cgutils.for_range(builder, D) as loop:
            at.add(sums, at.spread(key, loop.index), at.loads(at.row(loop.index)))
        at.stores(at.totals(sums), at.pointer(4, r, ir.Constant(I64, 0)))
        return context.get_dummy_value()

    return types.void(S, types.intp, k, types.intp, r), generate


@intrinsic
def step(
    typing, S, D, q, q_at, k, k_at, v, v_at, then, then_at, g, a, a_at, beta, beta_at, kappa, b, b_at, r, o, o_at, scale
):  # fmt: skip
    """Take one token through S by a rule that erases, and put what the next token will erase into r.

    r holds what is found under this token's key. With beta, S = e^g S + k (beta (v - e^g r))ᵀ, where r is not decayed
    yet if g has one axis; with kappa, S = e^g S + k vᵀ - b rᵀ. Then o = scale Sᵀ q and r = Sᵀ then.
    """

    def generate(context, builder, signature, args):
        S, D, q, q_at, k, k_at, v, v_at, then, then_at, _, a, a_at, beta, beta_at, _, b, b_at, r, o, o_at, scale = args
        kinds = signature.args
        at = _Pass(context, builder, kinds, S)
        vec, zero = at.vec, ir.Constant(I64, 0)
        decay = 0 if kinds[10] == types.none else kinds[10].ndim
        query, key, coming = at.pointer(2, q, q_at), at.pointer(4, k, k_at), at.pointer(8, then, then_at)
        found, decays = at.pointer(18, r, zero), at.pointer(11, a, a_at)
        value, held = at.loads(at.pointer(6, v, v_at)), at.loads(found)
        constant = at.spread(decays, zero) if decay == 1 else None
        if kinds[15] == types.none:
            held = [builder.fmul(constant, x) for x in held] if decay == 1 else held
            share = at.spread(at.pointer(13, beta, beta_at), zero)
            value = [builder.fmul(share, builder.fsub(x, y)) for x, y in zip(value, held, strict=True)]
        else:
            erase = at.pointer(16, b, b_at)
            held = [builder.fsub(vec.constant(-0.0), x) for x in held]
        read, next_held = at.sums(), at.sums()
        with cgutils.for_range(builder, D) as loop:
            d = loop.index
            here = at.row(d)
            state, factor = at.loads(here), at.spread(key, d)
            if kinds[15] != types.none:
                gone = at.spread(erase, d)
                new = [vec.fma(factor, x, builder.fmul(gone, y)) for x, y in zip(value, held, strict=True)]
            elif decay:
                new = [builder.fmul(factor, x) for x in value]
            if decay:
                kept = constant if decay == 1 else at.spread(decays, d)
                state = [vec.fma(kept, s, x) for s, x in zip(state, new, strict=True)]
            else:
                state = [vec.fma(factor, x, s) for s, x in zip(state, value, strict=True)]
            at.stores(state, here)
            at.add(read, at.spread(query, d), state)
            at.add(next_held, at.spread(coming, d), state)
        at.stores(at.totals(next_held), found)
        size = vec.splat(scale)
        at.stores([builder.fmul(size, x) for x in at.totals(read)], at.pointer(19, o, o_at))
        return context.get_dummy_value()

    i = types.intp
    return types.void(S, i, q, i, k, i, v, i, then, i, g, a, i, beta, i, kappa, b, i, r, o, i, S.dtype), generate
