"""The inner loops of the selective scan: the tokens that pass through the states of a block of channels, as LLVM IR.

A state is N rows of a block. A is read times log2(e), so that its decays are powers of two; a decay of exactly 0 is
written down as -1, since what it forgets is left out, not multiplied by it.
"""

import math

from numba import types
from numba.extending import intrinsic

from refattn_numba.channels_simd import Body
from refattn_numba.simd_rows import _folded

GIVEN = "u delta z B C A skip bias skips gated biased soft"
"""The arguments of a call: arrays, and which of skip, z, bias and softplus there is."""


def _kinds(u, delta, z, B, C, A, skip, bias):
    return u, delta, z, B, C, A, skip, bias, *(types.boolean,) * 4


def _step(at, mine, e):
    """Return delta with its bias, and Δ."""
    raw = at.place(at.load(at.pointer("delta", mine)))
    with at.if_("biased"):
        raw.set(raw.get() + at.load(at.pointer("bias", e)))
    step = at.place(raw.get())
    with at.if_("soft"):
        step.set(at.softplus(raw.get()))
    return raw.get(), step.get()


@intrinsic
def advance(
    typing, u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, row, tokens, e, E, N, h, h_at, h_row, kept,
    kept_at, keeps, o, o_at, o_row,
):  # fmt: skip
    """Take some tokens, from a row on, through a state: h = e^{Δ A} h + Δ u Bᵀ and o = (h C + D u) silu(z).

    Each state is written h_row after the one before it: over it, if that is 0. If `keeps`, so are the decays.
    """
    names = f"{GIVEN} row tokens e E N h h_at h_row kept kept_at keeps o o_at o_row"

    def generate(context, builder, signature, args):
        at = Body(context, builder, names, signature, args)
        E, N, e = at["E"], at["N"], at["e"]
        with at.loop(at["tokens"]) as token:
            t = token.index
            row = at.sum(at["row"], t)
            mine, group = at.sum(at.product(row, E), e), at.product(row, N)
            _, step = _step(at, mine, e)
            u, y = at.load(at.pointer("u", mine)), at.place(at.number(0.0))
            v = step * u
            before = at.pointer("h", at["h_at"], at.product(t, at["h_row"]))
            after = at.moved(before, at["h_row"])
            with at.loop(N) as loop:
                n = loop.index
                there = at.product(n, at.width)
                g = step * at.load(at.pointer("A", at.product(n, E), e))
                gone, decay = g.compared("==", -math.inf), at.exp2(g)
                new = v * at.spread(at.pointer("B", group, n))
                h = at.fma(decay, at.load(at.moved(before, there)), new)
                h = gone.where(new, h)
                at.store(h, at.moved(after, there))
                with at.if_("keeps"):
                    line = at.product(at.sum(at.product(t, N), n), at.width)
                    at.store(gone.where(-1.0, decay), at.pointer("kept", at["kept_at"], line))
                y.set(at.fma(h, at.spread(at.pointer("C", group, n)), y.get()))
            with at.if_("skips"):
                y.set(at.fma(at.load(at.pointer("skip", e)), u, y.get()))
            with at.if_("gated"):
                gate = at.load(at.pointer("z", mine))
                y.set(y.get() * (gate * at.sigmoid(gate)))
            at.store(y.get(), at.pointer("o", at["o_at"], at.product(t, at["o_row"])))
        return context.get_dummy_value()

    i = types.intp

    kinds = (*_kinds(u, delta, z, B, C, A, skip, bias), *(i,) * 5, h, i, i, kept, i, types.boolean, o, i, i)
    return types.void(*kinds), generate


def _sum(at, block):
    """Return the sum over the channels of a block."""
    first, *more = block.registers
    for register in more:
        first = at.builder.fadd(first, register)
    return _folded(at.builder, at.vec, first, at.builder.fadd)


@intrinsic
def retreat(
    typing, u, delta, z, B, C, A, skip, bias, skips, gated, biased, soft, row, tokens, e, E, N, h, h_at, kept,
    kept_at, y, y_at, do, dh, dh_at, dA_at, ends_at, du, ddelta, dz, dB, dC, d_at,
):  # fmt: skip
    """Take the gradient dh of the state back through some tokens, the last first.

    `h` has the states before and after each token, `kept` the decays, `y` what was gated. `dh` has also the sums for
    A and, at ends_at, for the skip and the bias. Sums over the channels of this block go to row d_at of dB and dC on.
    """
    names = f"{GIVEN} row tokens e E N h h_at kept kept_at y y_at do dh dh_at dA_at ends_at du ddelta dz dB dC d_at"

    def generate(context, builder, signature, args):
        at = Body(context, builder, names, signature, args)
        E, N, e = at["E"], at["N"], at["e"]
        for_skip, for_bias = at.pointer("dh", at["ends_at"]), at.pointer("dh", at["ends_at"], at.width)
        with at.loop(at["tokens"]) as loop:
            t = at.backwards(at["tokens"])(loop)
            row = at.sum(at["row"], t)
            mine, group = at.sum(at.product(row, E), e), at.product(row, N)
            raw, step = _step(at, mine, e)
            u, do = at.load(at.pointer("u", mine)), at.load(at.pointer("do", mine))
            dy = at.place(do)
            with at.if_("gated"):  # was: o = y silu(z)
                gate = at.load(at.pointer("z", mine))
                share = at.sigmoid(gate)
                value = at.load(at.pointer("y", at["y_at"], at.product(t, at.width)))
                slope = share * (gate * at.sigmoid(-gate) + 1.0)
                at.store(do * value * slope, at.pointer("dz", mine))
                dy.set(do * (gate * share))
            dy, v = dy.get(), step * u
            dv, dstep = at.place(at.number(0.0)), at.place(at.number(0.0))
            with at.loop(N) as state:
                n = state.index
                line, there = at.product(at.sum(at.product(t, N), n), at.width), at.product(n, at.width)
                before = at.pointer("h", at["h_at"], line)
                after = at.load(at.moved(before, at.product(N, at.width)))
                place = at.pointer("dh", at["dh_at"], there)
                dh = at.fma(dy, at.spread(at.pointer("C", group, n)), at.load(place))  # was: y = h C
                dv.set(at.fma(dh, at.spread(at.pointer("B", group, n)), dv.get()))  # was: h = e^g h + v Bᵀ
                out = at.sum(at.product(at.sum(at["d_at"], t), N), n)
                builder.store(_sum(at, dy * after), at.pointer("dC", out))
                builder.store(_sum(at, v * dh), at.pointer("dB", out))
                decay = at.load(at.pointer("kept", at["kept_at"], line))
                gone = decay.compared("<", 0.0)
                passed = decay * dh
                dg = passed * at.load(before)
                at.store(gone.where(0.0, passed), place)
                rate, for_A = at.load(at.pointer("A", at.product(n, E), e)), at.pointer("dh", at["dA_at"], there)
                dstep.set(dstep.get() + gone.where(0.0, dg * rate))  # was: g = Δ A
                at.store(at.load(for_A) + gone.where(0.0, dg * step), for_A)
            du = at.place(dv.get() * step)
            with at.if_("skips"):
                du.set(at.fma(at.load(at.pointer("skip", e)), dy, du.get()))
                at.store(at.fma(dy, u, at.load(for_skip)), for_skip)
            at.store(du.get(), at.pointer("du", mine))
            dstep.set(at.fma(dstep.get(), at.number(math.log(2)), dv.get() * u))  # was: v = Δ u
            with at.if_("soft"):
                dstep.set(dstep.get() * at.sigmoid(raw))
            at.store(dstep.get(), at.pointer("ddelta", mine))
            at.store(at.load(for_bias) + dstep.get(), for_bias)
        return context.get_dummy_value()

    i = types.intp
    kinds = (*_kinds(u, delta, z, B, C, A, skip, bias), i, i, i, i, i, h, i, kept, i, y, i, do, dh, i, i, i)
    return types.void(*kinds, du, ddelta, dz, dB, dC, i), generate
