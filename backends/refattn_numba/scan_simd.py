"""The inner loops of the scans, as LLVM IR: a few columns of a state S, and the tokens that pass through it.

S is D rows, one per key dimension, of a few registers. A row is loaded and stored once per pass, and the sums that make
o stay in registers. They run along D in order, and every token and column sees the same operations in whatever block of
tokens and columns it falls: so a sequence may be cut anywhere, and no bit changes.

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
from refattn_numba.vectors import I64, POWERS, REGISTERS, VECTOR_BYTES, Vectors

WIDE, NARROW = ((0,) * 4, (0,) * 2) if REGISTERS == 32 else ((0,) * 2, (0,))
"""As many zeros as there are registers in a row of S: a tuple has its length in its type."""
TOKENS = 2
"""Tokens of a pass where nothing is erased: v and o of each are in registers."""
LOG2E = {32: (1.4426950216293335, 1.9259629911266175e-08), 64: (1.4426950408889634, 2.0355273740931033e-17)}
"""1 / log(2) as the nearest number of that many bits, and what is missing."""


def columns_of(registers, dtype):
    """Return how many columns of a state are walked together."""
    return len(registers) * VECTOR_BYTES // dtype.itemsize


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
    """What the passes over S below share: arguments by name, the rows of S, and numbers spread over a register."""

    def __init__(self, context, builder, names, signature, args):
        self.context, self.builder = context, builder
        self.kinds, self.values = (dict(zip(names.split(), x, strict=True)) for x in (signature.args, args))
        self.vec = Vectors(builder, self.kinds["S"].dtype)
        self.state = self.pointer("S", None)
        self.columns = [ir.Constant(I64, n * self.vec.lanes) for n in range(len(self.kinds["registers"]))]

    def has(self, name):
        return self.kinds[name] != types.none

    def axes(self, name):
        return self.kinds[name].ndim if self.has(name) else 0

    def pointer(self, name, at):
        first = ir.Constant(I64, 0) if at is None else self.values[at]
        return _pointer(self.context, self.builder, self.kinds[name], self.values[name], first)

    def rows(self, name, at, step, count):
        pointer = self.pointer(name, at)
        return [self.builder.gep(pointer, [self.builder.mul(step, ir.Constant(I64, n))]) for n in range(count)]

    def cells(self, pointer):
        return [self.builder.gep(pointer, [column]) for column in self.columns]

    def loads(self, pointer):
        return [self.vec.load(cell) for cell in self.cells(pointer)]

    def stores(self, values, pointer):
        for value, cell in zip(values, self.cells(pointer), strict=True):
            self.vec.store(value, cell)

    def row(self, d):
        return self.builder.gep(self.state, [self.builder.mul(d, ir.Constant(I64, len(self.columns) * self.vec.lanes))])

    def spread(self, pointer, index=None):
        index = ir.Constant(I64, 0) if index is None else index
        return self.vec.splat(self.builder.load(self.builder.gep(pointer, [index])))

    def sums(self, first=None):
        """Return places for the sums of one row, which begin at `first` or 0."""
        places = [cgutils.alloca_once(self.builder, self.vec.vector) for _ in self.columns]
        for place, value in zip(places, first or [self.vec.constant(0.0)] * len(places), strict=True):
            self.builder.store(value, place)
        return places

    def add(self, places, factor, values):
        for place, value in zip(places, values, strict=True):
            self.builder.store(self.vec.fma(factor, value, self.builder.load(place)), place)

    def totals(self, places):
        return [self.builder.load(place) for place in places]

    def scaled(self, places):
        size = self.vec.splat(self.values["scale"])
        return [self.builder.fmul(size, x) for x in self.totals(places)]


def _walk(tokens):
    """Return an intrinsic that takes `tokens` tokens through S."""

    @intrinsic
    def walk(typing, registers, S, D, q, q_at, k, k_at, v, v_at, v_row, g, a, a_at, u, c, c_at, o, o_at, o_row, scale):
        """S = e^g S + k vᵀ and o = scale Sᵀ q; with a bonus, o = scale (Sᵀ q + c v) before that.

        a holds e^g, a number per token (g has one axis) or D of them (two); g and u only say what there is.
        """
        names = "registers S D q q_at k k_at v v_at v_row g a a_at u c c_at o o_at o_row scale"

        def generate(context, builder, signature, args):
            at = _Pass(context, builder, names, signature, args)
            vec, D, one, decay = at.vec, at.values["D"], ir.Constant(I64, 1), at.axes("g")
            queries, keys = at.rows("q", "q_at", D, tokens), at.rows("k", "k_at", D, tokens)
            values = [at.loads(row) for row in at.rows("v", "v_at", at.values["v_row"], tokens)]
            decays = at.rows("a", "a_at", D if decay == 2 else one, tokens)
            constant = [at.spread(row) if decay == 1 else None for row in decays]
            first = [None] * tokens
            if at.has("u"):
                own = [at.spread(row) for row in at.rows("c", "c_at", one, tokens)]
                first = [[builder.fmul(own[j], value) for value in values[j]] for j in range(tokens)]
            sums = [at.sums(first[j]) for j in range(tokens)]
            with cgutils.for_range(builder, D) as loop:
                d = loop.index
                here = at.row(d)
                state = at.loads(here)
                for j in range(tokens):
                    key, query = at.spread(keys[j], d), at.spread(queries[j], d)
                    if at.has("u"):
                        at.add(sums[j], query, state)
                    if decay == 0:
                        state = [vec.fma(key, x, s) for x, s in zip(values[j], state, strict=True)]
                    else:
                        kept = constant[j] if decay == 1 else at.spread(decays[j], d)
                        new = [builder.fmul(key, x) for x in values[j]]
                        state = [vec.fma(kept, s, x) for s, x in zip(state, new, strict=True)]
                    if not at.has("u"):
                        at.add(sums[j], query, state)
                at.stores(state, here)
            for places, row in zip(sums, at.rows("o", "o_at", at.values["o_row"], tokens), strict=True):
                at.stores(at.scaled(places), row)
            return context.get_dummy_value()

        i = types.intp
        return types.void(registers, S, i, q, i, k, i, v, i, i, g, a, i, u, c, i, o, i, i, S.dtype), generate

    return walk


walk_one, walk_many = _walk(1), _walk(TOKENS)


@intrinsic
def read_state(typing, registers, S, D, k, k_at, r):
    """Put Sᵀ k into r, added up as `step` does it."""

    def generate(context, builder, signature, args):
        at = _Pass(context, builder, "registers S D k k_at r", signature, args)
        key, sums = at.pointer("k", "k_at"), at.sums()
        with cgutils.for_range(builder, at.values["D"]) as loop:
            at.add(sums, at.spread(key, loop.index), at.loads(at.row(loop.index)))
        at.stores(at.totals(sums), at.pointer("r", None))
        return context.get_dummy_value()

    return types.void(registers, S, types.intp, k, types.intp, r), generate


@intrinsic
def step(
    typing, registers, S, D, q, q_at, k, k_at, v, v_at, then, then_at, g, a, a_at, beta, beta_at, kappa, b, b_at, r,
    o, o_at, scale,
):  # fmt: skip
    """Take one token through S by a rule that erases, and put what the next token will erase into r.

    r holds what is found under this token's key. With beta, S = e^g S + k (beta (v - e^g r))ᵀ, where r is not decayed
    yet if g has one axis; with kappa, S = e^g S + k vᵀ - b rᵀ. Then o = scale Sᵀ q and r = Sᵀ then.
    """
    names = "registers S D q q_at k k_at v v_at then then_at g a a_at beta beta_at kappa b b_at r o o_at scale"

    def generate(context, builder, signature, args):
        at = _Pass(context, builder, names, signature, args)
        vec, decay, found = at.vec, at.axes("g"), at.pointer("r", None)
        query, key, coming = (at.pointer(name, f"{name}_at") for name in ("q", "k", "then"))
        decays, gone = at.pointer("a", "a_at"), at.pointer("b", "b_at")
        value, held = at.loads(at.pointer("v", "v_at")), at.loads(found)
        constant = at.spread(decays) if decay == 1 else None
        if at.has("kappa"):
            held = [builder.fsub(vec.constant(-0.0), x) for x in held]
        else:
            held = [builder.fmul(constant, x) for x in held] if decay == 1 else held
            share = at.spread(at.pointer("beta", "beta_at"))
            value = [builder.fmul(share, builder.fsub(x, y)) for x, y in zip(value, held, strict=True)]
        read, next_held = at.sums(), at.sums()
        with cgutils.for_range(builder, at.values["D"]) as loop:
            d = loop.index
            here = at.row(d)
            state, factor = at.loads(here), at.spread(key, d)
            if decay == 0:
                state = [vec.fma(factor, x, s) for x, s in zip(value, state, strict=True)]
            else:
                new = [builder.fmul(factor, x) for x in value]
                if at.has("kappa"):
                    erase = at.spread(gone, d)
                    new = [vec.fma(erase, x, y) for x, y in zip(held, new, strict=True)]
                kept = constant if decay == 1 else at.spread(decays, d)
                state = [vec.fma(kept, s, x) for s, x in zip(state, new, strict=True)]
            at.stores(state, here)
            at.add(read, at.spread(query, d), state)
            at.add(next_held, at.spread(coming, d), state)
        at.stores(at.totals(next_held), found)
        at.stores(at.scaled(read), at.pointer("o", "o_at"))
        return context.get_dummy_value()

    i = types.intp
    kinds = (registers, S, i, q, i, k, i, v, i, then, i, g, a, i, beta, i, kappa, b, i, r, o, i, S.dtype)
    return types.void(*kinds), generate
