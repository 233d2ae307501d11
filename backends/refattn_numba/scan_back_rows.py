"""Rows of numbers for the scans backwards, as LLVM IR: copied, added, filled, added up. Arguments are as in `simd`."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refattn_numba.scan_back_simd import Walk
from refattn_numba.simd_rows import _folded
from refattn_numba.vectors import I64


def _copy(adding):
    """Return an intrinsic that puts numbers into others, or adds them."""

    @intrinsic
    def copy(typing, out, out_at, x, x_at, size):
        """out[out_at + n] = x[x_at + n], or += that, for n < size."""

        def generate(context, builder, signature, args):
            at = Walk(context, builder, signature, args, args[4], None)
            target, source = at.pointer(0, args[1]), at.pointer(2, args[3])
            whole = builder.sdiv(args[4], ir.Constant(I64, at.vec.lanes))
            with cgutils.for_range(builder, whole) as loop:
                at.here, at.count = builder.mul(loop.index, ir.Constant(I64, at.vec.lanes)), 1
                (value,) = at.loads(source)
                at.stores([builder.fadd(at.loads(target)[0], value) if adding else value], target)
            done = builder.mul(whole, ir.Constant(I64, at.vec.lanes))
            with cgutils.for_range(builder, builder.sub(args[4], done)) as loop:
                here = [builder.add(done, loop.index)]
                value, cell = builder.load(builder.gep(source, here)), builder.gep(target, here)
                builder.store(builder.fadd(builder.load(cell), value) if adding else value, cell)
            return context.get_dummy_value()

        return types.void(out, types.intp, x, types.intp, types.intp), generate

    return copy


put, put_added = _copy(False), _copy(True)


@intrinsic
def fill(typing, out, out_at, value, size):
    """out[out_at + n] = value for n < size, a multiple of a register."""

    def generate(context, builder, signature, args):
        at = Walk(context, builder, signature, args, args[3], None)
        target, value = at.pointer(0, args[1]), at.vec.splat(args[2])
        at.blocks(lambda: at.stores([value] * at.count, target))
        return context.get_dummy_value()

    return types.void(out, types.intp, out.dtype, types.intp), generate


@intrinsic
def total(typing, x, size):
    """Return the sum of x[n] for n < size, a multiple of a register: lane by lane, then the lanes."""

    def generate(context, builder, signature, args):
        at = Walk(context, builder, signature, args, args[1], None)
        first, place = at.pointer(0), cgutils.alloca_once(builder, at.vec.vector)
        builder.store(at.vec.constant(0.0), place)

        def body():
            for value in at.loads(first):
                builder.store(builder.fadd(builder.load(place), value), place)

        at.blocks(body)
        return _folded(builder, at.vec, builder.load(place), builder.fadd)

    return x.dtype(x, types.intp), generate
