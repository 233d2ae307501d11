"""This machine's vector registers, and the arithmetic that `simd` builds its loops from, as LLVM IR."""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

LANES = 64
I64 = ir.IntType(64)


def _registers() -> tuple[int, int]:
    """Return (bytes in a vector register, registers) of this machine."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2"):
        return 32, 16
    if features.get("neon") or features.get("asimd") or llvm.get_default_triple().startswith("aarch64"):
        return 16, 32
    return 16, 16


def _converts_halves() -> bool:
    """Return whether this machine turns float16 into float32 by itself."""
    return bool(llvm.get_host_cpu_features().get("f16c")) or llvm.get_default_triple().startswith("aarch64")


VECTOR_BYTES, REGISTERS = _registers()
CONVERTS_HALVES = _converts_halves()
BLOCK_ROWS, BLOCK_VECTORS = (6, 4) if REGISTERS == 32 else (6, 2)  # the block of a product that stays in registers

FLOATS = {types.float32: (ir.FloatType(), 32), types.float64: (ir.DoubleType(), 64)}


class Vectors:
    """Vector types and constants for one float type, and the instructions that the loops below share."""

    def __init__(self, builder, element):
        self.builder = builder
        self.scalar, self.bits = FLOATS[element]
        self.lanes = VECTOR_BYTES * 8 // self.bits
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.integer = ir.IntType(self.bits)
        self.integers = ir.VectorType(self.integer, self.lanes)
        self.name = f"v{self.lanes}f{self.bits}"

    def constant(self, x):
        return ir.Constant(self.vector, [float(x)] * self.lanes)

    def whole(self, n):
        return ir.Constant(self.integers, [n] * self.lanes)

    def splat(self, x):
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def load(self, pointer):
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.bits // 8)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.bits // 8)

    def fma(self, a, b, c):
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.{self.name}")
        return self.builder.call(function, [a, b, c])

    def maximum(self, a, b):
        """Return a where a > b, else b; a NaN in a is passed over."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def exp2(self, x):
        """Return 2^x for x <= 0, NaN for NaN, and 0 where the result would be near the smallest normal number.

        2^x = 2^n · 2^f with n the nearest integer: adding `shift` leaves n in the low bits of the sum, from where it
        is moved into the exponent; 2^f on [-1/2, 1/2] is a polynomial (POWERS).
        """
        b = self.builder
        mantissa, bias, least = (23, 127, -125.0) if self.bits == 32 else (52, 1023, -1021.0)
        shift = self.constant(1.5 * 2.0**mantissa)
        shifted = b.fadd(x, shift)
        f = b.fsub(x, b.fsub(shifted, shift))
        n = b.shl(b.bitcast(shifted, self.integers), self.whole(mantissa))
        power = b.bitcast(b.add(n, self.whole(bias << mantissa)), self.vector)  # 2^n
        coefficients = POWERS[self.bits]
        y = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            y = self.fma(y, f, self.constant(coefficient))
        return b.select(b.fcmp_unordered(">=", x, self.constant(least)), b.fmul(y, power), self.constant(0.0))


# 2^f on [-1/2, 1/2], highest power first: Chebyshev fits with relative errors 2e-9 and 4e-20.
# tests/backends/test_simd.py measures what the whole of `exp2` makes of them.
POWERS = {
    32: (1.5461444698569e-4, 1.3400428177616e-3, 9.6180566785246e-3, 5.5503272266703e-2, 2.4022650922289e-1,
         6.9314720670283e-1, 1.0),
    64: (2.57335683087568912e-11, 4.45667534104920588e-10, 7.05489438634834804e-9, 1.01780511929606490e-7,
         1.32154868159999770e-6, 1.52527338562934663e-5, 1.54035303933627553e-4, 1.33335581463903528e-3,
         9.61812910762848305e-3, 5.55041086648216990e-2, 2.40226506959100712e-1, 6.93147180559945308e-1, 1.0),
}  # fmt: skip
