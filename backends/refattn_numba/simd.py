"""The few vector loops that a compiler will not find by itself, written as LLVM IR: everything else is plain Numba.

All of them work on tiles whose rows are LANES = 64 numbers wide, one column per query: a row belongs to one key (or one
dimension), so the softmax runs down the columns and never has to add up the lanes of a register. The product keeps a
block of the result in registers and takes, at each step, one row of B and one scalar of A per row of the result; A may
be transposed by its strides, so keys and values are read where they lie, unpacked and uncopied.

Arguments called ``x, at`` are an array and the index of the first element (counted in the flattened array).
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refattn_numba.vectors import BLOCK_VECTORS, FLOATS, I64, LANES, VECTOR_BYTES, Vectors


def _pointer(context, builder, kind, array, at):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


@intrinsic
def fetch_add(typing, counter):
    """Return counter[0] and add one to it, as one step that no other thread can split."""

    def generate(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(counter), generate


@intrinsic
def fma(typing, a, b, c):
    """Return a · b + c, rounded once, as the products of this file compute it."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(args[0].type, [args[0].type] * 3)
        bits = FLOATS[signature.args[0]][1]
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.f{bits}"), args)

    return a(a, a, a), generate


def _product_block(rows, vectors):
    """Return an intrinsic for C[rows, vectors] (+)= A[rows, K] · B[K, vectors] with C in registers."""

    @intrinsic
    def product(typing, a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, K, add):
        def generate(context, builder, signature, args):
            a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, K, add = args
            vec = Vectors(builder, signature.args[0].dtype)
            a_pointer = _pointer(context, builder, signature.args[0], a, a_at)
            b_pointer = _pointer(context, builder, signature.args[4], b, b_at)
            c_pointer = _pointer(context, builder, signature.args[7], c, c_at)
            a_rows = [builder.gep(a_pointer, [builder.mul(a_row, ir.Constant(I64, r))]) for r in range(rows)]
            c_cells = [
                builder.gep(
                    c_pointer, [builder.add(builder.mul(c_row, ir.Constant(I64, r)), ir.Constant(I64, n * vec.lanes))]
                )
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
        return ir.Constant(I64, VECTOR_BYTES // (FLOATS[signature.args[0].dtype][1] // 8))

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
        vec, zero = Vectors(builder, signature.args[0].dtype), ir.Constant(I64, 0)
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
        vec, zero = Vectors(builder, signature.args[0].dtype), ir.Constant(I64, 0)
        first, shifts, sums = (
            _pointer(context, builder, signature.args[n], array, zero)
            for n, array in ((0, tile), (4, shift), (5, total))
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
        vec = Vectors(builder, signature.args[0].dtype)
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
