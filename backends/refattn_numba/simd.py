"""The few vector loops that a compiler will not find by itself, written as LLVM IR: everything else is plain Numba.

All of them work on tiles whose rows are LANES = 64 numbers wide, one column per query: a row belongs to one key (or one
dimension), so the softmax runs down the columns and never has to add up the lanes of a register. The product keeps a
block of the result in registers and takes, at each step, one row of B and one scalar of A per row of the result; A may
be transposed by its strides, so keys and values are read where they lie, unpacked and uncopied.

Arguments called ``x, at`` are an array and the index of the first element (counted in the flattened array).
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
I64 = ir.IntType(64)


def _registers() -> tuple[int, int]:
    """Return (bytes in a vector register, registers) of this machine."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx"):
        return 32, 16
    if features.get("neon") or features.get("asimd") or llvm.get_default_triple().startswith("aarch64"):
        return 16, 32
    return 16, 16


VECTOR_BYTES, REGISTERS = _registers()
BLOCK_ROWS, BLOCK_VECTORS = (6, 4) if REGISTERS == 32 else (6, 2)  # the block of a product that stays in registers

_FLOATS = {types.float32: (ir.FloatType(), 32), types.float64: (ir.DoubleType(), 64)}


class _Vectors:
    """Vector types and constants for one float type, and the instructions that the loops below share."""

    def __init__(self, builder, element):
        self.builder = builder
        self.scalar, self.bits = _FLOATS[element]
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


def _pointer(context, builder, kind, array, at):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


@intrinsic
def fetch_add(typing, counter):
    """Return counter[0] and add one to it, as one step that no other thread can split."""

    def generate(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(counter), generate


def _product_block(rows, vectors):
    """Return an intrinsic for C[rows, vectors] (+)= A[rows, K] · B[K, vectors] with C in registers."""

    @intrinsic
    def product(typing, a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, K, add):
        def generate(context, builder, signature, args):
            a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, K, add = args
            vec = _Vectors(builder, signature.args[0].dtype)
            a_pointer = _pointer(context, builder, signature.args[0], a, a_at)
            b_pointer = _pointer(context, builder, signature.args[4], b, b_at)
            c_pointer = _pointer(context, builder, signature.args[7], c, c_at)
            a_rows = [builder.gep(a_pointer, [builder.mul(a_row, ir.Constant(I64, r))]) for r in range(rows)]
            c_cells = [
                builder.gep(c_pointer, [builder.add(builder.mul(c_row, ir.Constant(I64, r)), ir.Constant(I64, n * vec.lanes))])
                for r in range(rows)
                for n in range(vectors)
            ]
            adding = builder.icmp_signed("!=", add, ir.Constant(add.type, 0))
            accumulators = [cgutils.alloca_once_value(builder, vec.constant(0.0)) for _ in c_cells]
            with builder.if_then(adding):
                for accumulator, cell in zip(accumulators, c_cells, strict=True):
                    builder.store(vec.load(cell), accumulator)
            with cgutils.for_range(builder, K) as loop:
                b_here = builder.gep(b_pointer, [builder.mul(loop.index, b_row)])
                a_here = builder.mul(loop.index, a_step)
                columns = [vec.load(builder.gep(b_here, [ir.Constant(I64, n * vec.lanes)])) for n in range(vectors)]
                for r in range(rows):
                    scalar = vec.splat(builder.load(builder.gep(a_rows[r], [a_here])))
                    for n in range(vectors):
                        accumulator = accumulators[r * vectors + n]
                        builder.store(vec.fma(scalar, columns[n], builder.load(accumulator)), accumulator)
            for accumulator, cell in zip(accumulators, c_cells, strict=True):
                vec.store(builder.load(accumulator), cell)
            return context.get_dummy_value()

        array, i = types.Array, types.intp
        if not all(isinstance(x, array) for x in (a, b, c)):
            raise TypeError("product: a, b and c must be arrays")
        return types.void(a, i, i, i, b, i, i, c, i, i, i, types.boolean), generate

    return product


_wide = {rows: _product_block(rows, BLOCK_VECTORS) for rows in (6, 4, 2, 1)}
_wide_6, _wide_4, _wide_2, _wide_1 = _wide[6], _wide[4], _wide[2], _wide[1]
_thin_6, _thin_1 = _product_block(6, 1), _product_block(1, 1)


@njit(nogil=True)
def product(a, a_at, a_row, a_step, rows, b, b_at, b_row, c, c_at, c_row, width, K, add):
    """C[rows, width] = A[rows, K] · B[K, width], plus C if `add`; width is a multiple of `lanes_of(c)`.

    A's element (r, k) lies at a_at + r * a_row + k * a_step; the rows of B and C are contiguous, b_row and c_row apart.
    """
    lanes = lanes_of(c)
    n = 0
    while n < width:
        wide = width - n >= BLOCK_VECTORS * lanes
        r = 0
        while r < rows:
            left = rows - r
            A, C = a_at + r * a_row, c_at + r * c_row + n
            if wide:
                if left >= 6:
                    _wide_6(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                    r += 6
                elif left >= 4:
                    _wide_4(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                    r += 4
                elif left >= 2:
                    _wide_2(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                    r += 2
                else:
                    _wide_1(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                    r += 1
            elif left >= 6:
                _thin_6(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                r += 6
            else:
                _thin_1(a, A, a_row, a_step, b, b_at + n, b_row, c, C, c_row, K, add)
                r += 1
        n += BLOCK_VECTORS * lanes if wide else lanes


@intrinsic
def lanes_of(typing, array):
    """Return how many numbers of the array's dtype fit into a vector register, as a constant."""

    def generate(context, builder, signature, args):
        return ir.Constant(I64, VECTOR_BYTES // (_FLOATS[signature.args[0].dtype][1] // 8))

    return types.int64(array), generate


def _registers_of(builder, vec, width):
    """Loop over the first `width` columns of a tile row, a register at a time; the index is the register's."""
    return cgutils.for_range(builder, builder.sdiv(width, ir.Constant(I64, vec.lanes)))


def _cell(builder, vec, tile, row, register):
    at = builder.add(builder.mul(row, ir.Constant(I64, LANES)), builder.mul(register, ir.Constant(I64, vec.lanes)))
    return builder.gep(tile, [at])


@intrinsic
def column_maximum(typing, tile, rows, width, top):
    """Raise each of the `width` entries of `top` to the largest of its column in the first `rows` rows of `tile`."""

    def generate(context, builder, signature, args):
        tile, rows, width, top = args
        vec, zero = _Vectors(builder, signature.args[0].dtype), ir.Constant(I64, 0)
        first = _pointer(context, builder, signature.args[0], tile, zero)
        out = _pointer(context, builder, signature.args[3], top, zero)
        with _registers_of(builder, vec, width) as register:
            here = _cell(builder, vec, out, zero, register.index)
            largest = cgutils.alloca_once_value(builder, vec.constant(0.0))
            builder.store(vec.load(here), largest)
            with cgutils.for_range(builder, rows) as row:
                value = vec.load(_cell(builder, vec, first, row.index, register.index))
                builder.store(vec.maximum(value, builder.load(largest)), largest)
            vec.store(builder.load(largest), here)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, top), generate


@intrinsic
def exp2_columns(typing, tile, rows, width, factor, shift, total):
    """tile[r, n] = 2^(factor * tile[r, n] - shift[n]) for rows r and columns n < width; column sums go onto `total`."""

    def generate(context, builder, signature, args):
        tile, rows, width, factor, shift, total = args
        vec, zero = _Vectors(builder, signature.args[0].dtype), ir.Constant(I64, 0)
        first, shifts, sums = (
            _pointer(context, builder, signature.args[n], array, zero) for n, array in ((0, tile), (4, shift), (5, total))
        )
        factors = vec.splat(factor)
        with _registers_of(builder, vec, width) as register:
            minus = builder.fsub(vec.constant(-0.0), vec.load(_cell(builder, vec, shifts, zero, register.index)))
            running = cgutils.alloca_once_value(builder, vec.constant(0.0))
            builder.store(vec.constant(0.0), running)
            with cgutils.for_range(builder, rows) as row:
                cell = _cell(builder, vec, first, row.index, register.index)
                weight = vec.exp2(vec.fma(factors, vec.load(cell), minus))
                vec.store(weight, cell)
                builder.store(builder.fadd(builder.load(running), weight), running)
            here = _cell(builder, vec, sums, zero, register.index)
            vec.store(builder.fadd(vec.load(here), builder.load(running)), here)
        return context.get_dummy_value()

    if not isinstance(tile, types.Array):
        raise TypeError("exp2_columns: tile must be an array")
    return types.void(tile, types.intp, types.intp, tile.dtype, shift, total), generate


@intrinsic
def hide(typing, tile, rows, width, words, at, value):
    """tile[r, n] = value wherever bit n of words[at + r], a uint64 each, is 0."""

    def generate(context, builder, signature, args):
        tile, rows, width, words, at, value = args
        vec = _Vectors(builder, signature.args[0].dtype)
        first = _pointer(context, builder, signature.args[0], tile, ir.Constant(I64, 0))
        masks = _pointer(context, builder, signature.args[3], words, at)
        hidden, bools = vec.splat(value), ir.VectorType(ir.IntType(1), vec.lanes)
        with cgutils.for_range(builder, rows) as row:
            word = builder.load(builder.gep(masks, [row.index]))
            with _registers_of(builder, vec, width) as register:
                passed = builder.mul(register.index, ir.Constant(I64, vec.lanes))
                seen = builder.bitcast(builder.trunc(builder.lshr(word, passed), ir.IntType(vec.lanes)), bools)
                cell = _cell(builder, vec, first, row.index, register.index)
                vec.store(builder.select(seen, vec.load(cell), hidden), cell)
        return context.get_dummy_value()

    if not isinstance(tile, types.Array):
        raise TypeError("hide: tile must be an array")
    return types.void(tile, types.intp, types.intp, words, types.intp, tile.dtype), generate
