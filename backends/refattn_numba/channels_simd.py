"""Registers of neighbouring channels, as LLVM IR: what each channel does by itself is done for a block of them at once.

A block is REGISTERS registers wide. `Block` holds one number per channel and has the operators of arithmetic, `Body`
makes blocks from what an intrinsic was given. No lane sees another, so no bit depends on where a channel stands.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from refattn_numba import vectors
from refattn_numba.scan_simd import _exp
from refattn_numba.simd import _pointer
from refattn_numba.vectors import I64, POWERS, VECTOR_BYTES, Vectors

WIDE = 2 if vectors.REGISTERS == 32 else 1
"""Registers of a block."""
SCALES = bool(llvm.get_host_cpu_features().get("avx512f"))
"""Whether this machine multiplies by a power of two, whatever its exponent, in one instruction."""
LOG2E = 1.4426950408889634


def channels_of(dtype):
    """Return how many channels a block has."""
    return WIDE * VECTOR_BYTES // dtype.itemsize


class Block:
    """A number for each channel of a block."""

    def __init__(self, body, registers):
        self.body, self.registers = body, registers

    def _with(self, join, *others):
        return Block(self.body, [join(*x) for x in zip(self.registers, *(x.registers for x in others), strict=True)])

    def _of(self, other):
        return other if isinstance(other, Block) else self.body.number(other)

    def __add__(self, other):
        return self._with(self.body.builder.fadd, self._of(other))

    def __sub__(self, other):
        return self._with(self.body.builder.fsub, self._of(other))

    def __mul__(self, other):
        return self._with(self.body.builder.fmul, self._of(other))

    def __truediv__(self, other):
        return self._with(self.body.builder.fdiv, self._of(other))

    def __neg__(self):
        return self.body.number(-0.0) - self

    def compared(self, sign, other):
        """Return where this is less, equal ... (`sign`); NaN never is."""
        return self._with(lambda x, y: self.body.builder.fcmp_ordered(sign, x, y), self._of(other))

    def where(self, x, y):
        """Return x where this, a comparison, holds, else y."""
        x, y = (y if isinstance(y, Block) else self.body.number(y) for y in (x, y))
        return self._with(self.body.builder.select, x, y)


class Body:
    """The arguments of an intrinsic by name, and what is done with blocks."""

    def __init__(self, context, builder, names, signature, args):
        self.context, self.builder = context, builder
        self.kinds, self.values = (dict(zip(names.split(), x, strict=True)) for x in (signature.args, args))
        self.vec = Vectors(builder, next(kind.dtype for kind in signature.args if hasattr(kind, "dtype")))
        self.width = WIDE * self.vec.lanes

    def __getitem__(self, name):
        return self.values[name]

    def whole(self, n):
        """Return an integer as LLVM has it."""
        return ir.Constant(I64, n) if isinstance(n, int) else n

    def sum(self, *terms):
        """Return the sum of integers."""
        total, *more = map(self.whole, terms)
        for term in more:
            total = self.builder.add(total, term)
        return total

    def product(self, x, y):
        """Return the product of two integers."""
        return self.builder.mul(self.whole(x), self.whole(y))

    def less(self, x, y):
        """Return whether x < y, of integers."""
        return self.builder.icmp_signed("<", self.whole(x), self.whole(y))

    def choose(self, condition, x, y):
        """Return the integer or pointer x if the condition holds, else y."""
        return self.builder.select(condition, self.whole(x), self.whole(y))

    def if_(self, name):
        """Do what follows if the boolean argument holds."""
        flag = self.values[name]
        return self.builder.if_then(self.builder.icmp_unsigned("!=", flag, ir.Constant(flag.type, 0)))

    def loop(self, count, start=None):
        """Loop; `.index` is the integer."""
        return cgutils.for_range(self.builder, self.whole(count), start=None if start is None else self.whole(start))

    def backwards(self, count):
        """Return the integer of a turn of a loop counted down."""
        return lambda loop: self.builder.sub(self.builder.sub(self.whole(count), ir.Constant(I64, 1)), loop.index)

    def pointer(self, name, *terms):
        """Return where element Σ terms of an array lies."""
        return _pointer(self.context, self.builder, self.kinds[name], self.values[name], self.sum(0, *terms))

    def moved(self, pointer, *terms):
        """Return the pointer so many elements on."""
        return self.builder.gep(pointer, [self.sum(*terms)])

    def number(self, x):
        """Return a block that has one number everywhere."""
        return Block(self, [self.vec.constant(x)] * WIDE)

    def cells(self, pointer):
        """Return where the registers of a block lie."""
        return [self.moved(pointer, n * self.vec.lanes) for n in range(WIDE)]

    def load(self, pointer):
        """Return the block that begins there."""
        return Block(self, [self.vec.load(cell) for cell in self.cells(pointer)])

    def store(self, block, pointer):
        """Write a block."""
        for x, cell in zip(block.registers, self.cells(pointer), strict=True):
            self.vec.store(x, cell)

    def spread(self, pointer):
        """Return the number there, for every channel."""
        return Block(self, [self.vec.splat(self.builder.load(pointer))] * WIDE)

    def place(self, block):
        """Return a place whose block may change, with its first."""
        found = Place(self, [cgutils.alloca_once(self.builder, self.vec.vector) for _ in range(WIDE)])
        found.set(block)
        return found

    def fma(self, x, y, z):
        """Return x y + z, rounded once."""
        return x._with(self.vec.fma, y, z)

    def exp(self, x):
        """Return e^x."""
        return x._with(lambda part: _exp(self.builder, self.vec, part))

    def exp2(self, x):
        """Return 2^x for any x."""
        return x._with(lambda part: _exp2(self.builder, self.vec, part))

    def sigmoid(self, x):
        """Return 1 / (1 + e^-x)."""
        return self.number(1.0) / (self.exp(-x) + 1.0)

    def softplus(self, x):
        """Return log(1 + e^x) = max(x, 0) + 2 artanh(y / (2 + y)), where y = e^-|x|."""
        positive = x.compared(">", 0.0)
        y = self.exp(positive.where(-x, x))
        s = y / (y + 2.0)
        square, series = s * s, self.number(0.0)
        for n in reversed(range(10 if self.vec.bits == 32 else 18)):  # s² <= 1/9
            series = self.fma(series, square, self.number(2 / (2 * n + 1)))
        return self.fma(series, s, positive.where(x, 0.0))


class Place:
    """A block that changes from one turn of a loop to the next."""

    def __init__(self, body, places):
        self.body, self.places = body, places

    def get(self):
        """Return the block."""
        return Block(self.body, [self.body.builder.load(place) for place in self.places])

    def set(self, block):
        """Put another in its place."""
        for x, place in zip(block.registers, self.places, strict=True):
            self.body.builder.store(x, place)


def _exp2(builder, vec, x):
    """Return 2^x = 2^n · 2^f with n the integer nearest to x; 0 for -inf, inf for inf, NaN for NaN."""
    most = 200.0 if vec.bits == 32 else 1200.0
    for sign, border in ((">", most), ("<", -most)):
        x = builder.select(builder.fcmp_ordered(sign, x, vec.constant(border)), vec.constant(border), x)
    mantissa, bias = (23, 127) if vec.bits == 32 else (52, 1023)
    shift = vec.constant(1.5 * 2.0**mantissa)
    shifted = builder.fadd(x, shift)
    n = builder.fsub(shifted, shift)
    f = builder.fsub(x, n)
    coefficients = POWERS[vec.bits]
    y = vec.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        y = vec.fma(y, f, vec.constant(coefficient))
    if SCALES and VECTOR_BYTES == 64:
        mask = ir.IntType(vec.lanes)
        kind = ir.FunctionType(vec.vector, [vec.vector, vec.vector, vec.vector, mask, ir.IntType(32)])
        name = f"llvm.x86.avx512.mask.scalef.p{'s' if vec.bits == 32 else 'd'}.512"
        scale = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(scale, [y, n, y, ir.Constant(mask, -1), ir.Constant(ir.IntType(32), 4)])
    n = builder.sub(builder.bitcast(shifted, vec.integers), builder.bitcast(shift, vec.integers))
    half = builder.ashr(n, vec.whole(1))
    for part in (half, builder.sub(n, half)):  # 2^n in two factors: it may be subnormal
        bits = builder.shl(builder.add(part, vec.whole(bias)), vec.whole(mantissa))
        y = builder.fmul(y, builder.bitcast(bits, vec.vector))
    return y
