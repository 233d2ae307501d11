"""Vector loops for few queries, as LLVM IR: queries in rows, so that keys fill the registers instead of queries.

Scores are sums along D, a register at a time; the registers of a block of pairs are then added up together, by halving
them all at once (`_totals`), always in the same order, so a score has the same bits in whichever block it falls.
Rows of scores are a multiple of a register long. Arguments called ``x, at`` are as in `simd`.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from refattn_numba.simd import _pointer, lanes_of
from refattn_numba.vectors import CONVERTS_HALVES, I64, REGISTERS, Vectors

PAIRS = 16 if REGISTERS == 32 else 8
"""Pairs of a query and a key whose sums are kept in registers."""


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _totals(builder, vec, sums):
    """Return one register whose lane n is the sum of the lanes of sums[n], for as many sums as there are lanes."""
    evens, odds = list(range(0, 2 * vec.lanes, 2)), list(range(1, 2 * vec.lanes, 2))
    while len(sums) > 1:
        sums = [
            builder.fadd(_shuffle(builder, a, b, evens), _shuffle(builder, a, b, odds))
            for a, b in zip(sums[::2], sums[1::2], strict=True)
        ]
    return sums[0]


def _prefetch(builder, pointer):
    """Begin to load the line at `pointer` into the second cache."""
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, second, data = (ir.Constant(i32, n) for n in (0, 2, 1))
    builder.call(prefetch, [builder.bitcast(pointer, byte), to_read, second, data])


def _block_of_scores(rows, keys, fetching):
    """Return an intrinsic for out[r, n] = q_r · k_n over `vectors` registers, r < rows, n < keys.

    If `fetching`, it meanwhile begins to load as much of the rows of v and, with several rows of q, of those `ahead`;
    nothing waits for that.
    """

    @intrinsic
    def scores(
        typing, q, q_at, q_row, k, k_at, k_row, vectors, out, out_at, out_row, v, v_at, v_row, ahead, ahead_at,
        ahead_row,
    ):  # fmt: skip
        def generate(context, builder, signature, args):
            q, q_at, q_row, k, k_at, k_row, vectors, out, out_at, out_row, v, v_at, v_row = args[:13]
            ahead, ahead_at, ahead_row = args[13:]
            kinds = signature.args
            vec = Vectors(builder, kinds[7].dtype)
            step = ir.Constant(I64, vec.lanes)

            def begins(array, kind, at, row, count):
                first = _pointer(context, builder, kind, array, at)
                return [builder.gep(first, [builder.mul(row, ir.Constant(I64, n))]) for n in range(count)]

            q_rows, k_rows = begins(q, kinds[0], q_at, q_row, rows), begins(k, kinds[3], k_at, k_row, keys)
            coming = begins(v, kinds[10], v_at, v_row, keys if fetching else 0)
            coming += begins(ahead, kinds[13], ahead_at, ahead_row, keys if fetching and rows > 1 else 0)
            sums = [cgutils.alloca_once_value(builder, vec.constant(0.0)) for _ in range(rows * keys)]
            for total in sums:
                builder.store(vec.constant(0.0), total)
            with cgutils.for_range(builder, vectors) as loop:
                here = builder.mul(loop.index, step)
                for row in coming:
                    _prefetch(builder, builder.gep(row, [here]))
                queries = [vec.load(builder.gep(row, [here])) for row in q_rows]
                for n in range(keys):
                    key = vec.load(builder.gep(k_rows[n], [here]))
                    for r in range(rows):
                        total = sums[r * keys + n]
                        builder.store(vec.fma(queries[r], key, builder.load(total)), total)
            found = [builder.load(total) for total in sums]
            found += [vec.constant(0.0)] * (-len(found) % vec.lanes)
            run = min(keys, vec.lanes)
            for first in range(0, rows * keys, run):  # a run of pairs lies in one register and in one row of `out`
                if first % vec.lanes == 0:
                    totals = _totals(builder, vec, found[first : first + vec.lanes])
                lanes = [first % vec.lanes + n for n in range(run)]
                at = builder.add(
                    builder.add(out_at, builder.mul(out_row, ir.Constant(I64, first // keys))),
                    ir.Constant(I64, first % keys),
                )
                cell = _pointer(context, builder, kinds[7], out, at)
                cell = builder.bitcast(cell, ir.VectorType(vec.scalar, run).as_pointer())
                builder.store(_shuffle(builder, totals, totals, lanes), cell, align=vec.bits // 8)
            return context.get_dummy_value()

        i = types.intp
        return types.void(q, i, i, k, i, i, i, out, i, i, v, i, i, ahead, i, i), generate

    return scores


_four, _two, _one = (_block_of_scores(rows, PAIRS // rows, fetching=True) for rows in (4, 2, 1))
_four_last, _two_last, _one_last = (_block_of_scores(rows, 1, fetching=False) for rows in (4, 2, 1))


@njit(nogil=True)
def scores(
    q, q_at, rows, k, k_at, k_row, n_keys, D, out, out_at, out_row, v, v_at, v_row, ahead, ahead_at, ahead_row
):  # fmt: skip
    """out[r, n] = q_r · k_n for r < rows, n < n_keys; rows are D (q), k_row and out_row apart.

    Meanwhile the values of these keys and the keys that come next are fetched: a processor sees too late by itself that
    they are needed.
    """
    lanes = lanes_of(out)
    vectors = D // lanes
    r = 0
    while r < rows:
        height = 4 if rows - r >= 4 else 2 if rows - r >= 2 else 1
        Q, O, n = q_at + r * D, out_at + r * out_row, 0
        while n < n_keys:
            K, V, A = k_at + n * k_row, v_at + n * v_row, ahead_at + n * ahead_row
            if n + PAIRS // height <= n_keys:
                if height == 4:
                    _four(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                elif height == 2:
                    _two(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                else:
                    _one(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                n += PAIRS // height
            else:
                if height == 4:
                    _four_last(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                elif height == 2:
                    _two_last(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                else:
                    _one_last(q, Q, D, k, K, k_row, vectors, out, O + n, out_row, v, V, v_row, ahead, A, ahead_row)
                n += 1
        r += height
    for d in range(vectors * lanes, D):
        for r in range(rows):
            for n in range(n_keys):
                out[out_at + r * out_row + n] += q[q_at + r * D + d] * k[k_at + n * k_row + d]


def _registers(builder, vec, size):
    return cgutils.for_range(builder, builder.sdiv(size, ir.Constant(I64, vec.lanes)))


def _folded(builder, vec, value, join):
    """Return the lanes of `value` joined into one number, halves first."""
    width = vec.lanes
    while width > 1:
        width //= 2
        other = _shuffle(builder, value, value, [(n + width) % vec.lanes for n in range(vec.lanes)])
        value = join(value, other)
    return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


@intrinsic
def row_maximum(typing, x, at, size):
    """Return the largest of x[at : at + size], passing over NaN; -inf if there is nothing else."""

    def generate(context, builder, signature, args):
        vec = Vectors(builder, signature.args[0].dtype)
        first = _pointer(context, builder, signature.args[0], args[0], args[1])
        least = vec.constant(float("-inf"))
        largest = cgutils.alloca_once_value(builder, least)
        builder.store(least, largest)
        with _registers(builder, vec, args[2]) as register:
            value = vec.load(builder.gep(first, [builder.mul(register.index, ir.Constant(I64, vec.lanes))]))
            builder.store(vec.maximum(value, builder.load(largest)), largest)
        return _folded(builder, vec, builder.load(largest), vec.maximum)

    if not isinstance(x, types.Array):
        raise TypeError("row_maximum: x must be an array")
    return x.dtype(x, types.intp, types.intp), generate


@intrinsic
def exp2_row(typing, x, at, size, factor, shift):
    """x[n] = 2^(factor * x[n] - shift) for at <= n < at + size; return their sum."""

    def generate(context, builder, signature, args):
        x, at, size, factor, shift = args
        vec = Vectors(builder, signature.args[0].dtype)
        first = _pointer(context, builder, signature.args[0], x, at)
        factors, minus = vec.splat(factor), builder.fsub(vec.constant(-0.0), vec.splat(shift))
        running = cgutils.alloca_once_value(builder, vec.constant(0.0))
        builder.store(vec.constant(0.0), running)
        with _registers(builder, vec, size) as register:
            cell = builder.gep(first, [builder.mul(register.index, ir.Constant(I64, vec.lanes))])
            weight = vec.exp2(vec.fma(factors, vec.load(cell), minus))
            vec.store(weight, cell)
            builder.store(builder.fadd(builder.load(running), weight), running)
        return _folded(builder, vec, builder.load(running), builder.fadd)

    if not isinstance(x, types.Array):
        raise TypeError("exp2_row: x must be an array")
    return x.dtype(x, types.intp, types.intp, x.dtype, x.dtype), generate


def _float_of(builder, bits, lanes, is_half):
    """Return the floats that 16-bit integers hold as float16 (`is_half`) or bfloat16: exact, NaN and inf included."""
    words = ir.VectorType(ir.IntType(32), lanes)
    floats = ir.VectorType(ir.FloatType(), lanes)

    def whole(n):
        return ir.Constant(words, [n] * lanes)

    if not is_half:
        return builder.bitcast(builder.shl(builder.zext(bits, words), whole(16)), floats)
    if CONVERTS_HALVES:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), floats)
    word = builder.zext(bits, words)
    size = builder.shl(builder.and_(word, whole(0x7FFF)), whole(13))  # the fraction and the exponent, in their places
    finite = builder.bitcast(
        builder.fmul(builder.bitcast(size, floats), ir.Constant(floats, [2.0**112] * lanes)), words
    )
    wild = builder.icmp_unsigned("==", builder.and_(word, whole(0x7C00)), whole(0x7C00))
    found = builder.select(wild, builder.or_(size, whole(0x7F800000)), finite)
    return builder.bitcast(builder.or_(found, builder.shl(builder.and_(word, whole(0x8000)), whole(16))), floats)


@intrinsic
def widen(typing, x, at, size, halves, out, out_at):
    """out[out_at + n] = the float16 (if `halves`) or bfloat16 whose 16 bits are x[at + n], for n < size."""

    def generate(context, builder, signature, args):
        x, at, size, halves, out, out_at = args
        source = _pointer(context, builder, signature.args[0], x, at)
        target = _pointer(context, builder, signature.args[4], out, out_at)
        lanes = Vectors(builder, signature.args[4].dtype).lanes
        step = ir.Constant(I64, 4 * lanes)

        def convert(index, lanes, is_half):
            bits = ir.VectorType(ir.IntType(16), lanes).as_pointer()
            floats = ir.VectorType(ir.FloatType(), lanes).as_pointer()
            found = builder.load(builder.bitcast(builder.gep(source, [index]), bits), align=2)
            found = _float_of(builder, found, lanes, is_half)
            builder.store(found, builder.bitcast(builder.gep(target, [index]), floats), align=4)

        whole = builder.sdiv(size, step)
        done = builder.mul(whole, step)
        with builder.if_else(builder.icmp_signed("!=", halves, ir.Constant(halves.type, 0))) as branches:
            for branch, is_half in zip(branches, (True, False), strict=True):
                with branch:
                    with cgutils.for_range(builder, whole) as loop:
                        for n in range(4):
                            at = builder.add(builder.mul(loop.index, step), ir.Constant(I64, n * lanes))
                            convert(at, lanes, is_half)
                    with cgutils.for_range(builder, builder.sub(size, done)) as loop:
                        convert(builder.add(done, loop.index), 1, is_half)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, types.boolean, out, i), generate


def as_floats(x, at, row, rows, width, halves, buffer):
    """Return (array, at, row): where rows of floats can be read; in `x` itself, or in `buffer` if x has 16 bits."""
    raise NotImplementedError  # compiled code has one of the two below


@overload(as_floats)
def _as_floats(x, at, row, rows, width, halves, buffer):
    if x.dtype == buffer.dtype:
        return lambda x, at, row, rows, width, halves, buffer: (x, at, row)

    def convert(x, at, row, rows, width, halves, buffer):
        if row == width:
            widen(x, at, rows * width, halves, buffer, 0)
        else:
            for r in range(rows):
                widen(x, at + r * row, width, halves, buffer, r * width)
        return buffer, 0, width

    return convert
