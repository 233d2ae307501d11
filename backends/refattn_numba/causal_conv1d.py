"""The short causal convolution on the CPU: all channels of a token, a block at a time, and their taps.

An item of work is a run of tokens. Positions count from the first of the K - 1 inputs before a sequence: token t is
position t + K - 1, and its first tap sees position t.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from refattn.arrays import Array, compute_dtype
from refattn.results import ConvGradients, Recurrent
from refattn_numba.channels import batch, cut, padded, rows, runs, sequences
from refattn_numba.channels_simd import Body
from refattn_numba.simd import fetch_add
from refattn_numba.threads import run

RUN = 64
"""Tokens of an item."""
LONG = 256
"""Tokens of an item whose gradients of the weights are added up."""
PLAIN, SILU, SLOPE = range(3)
"""What is done with the sum of the taps: nothing, silu, or a gradient times the slope of silu."""


def causal_conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
) -> Recurrent:
    """As `refattn.causal_conv1d`."""
    dtype, first = compute_dtype(x.dtype), _first(x, weight, initial_state, cu_seqlens)
    x_ = rows(x, dtype)
    o = _filtered(x_, weight, bias, rows(first, dtype), x.shape, cu_seqlens, SILU if activation == "silu" else PLAIN)
    return Recurrent(cut(o, x.shape).astype(x.dtype, copy=False), _last(x, first, cu_seqlens))


def _first(x: Array, weight: Array, given: Array | None, cu_seqlens: Any) -> Array:
    """Return the K - 1 inputs before each sequence."""
    shape = (*batch(x.shape, cu_seqlens), weight.shape[1] - 1, x.shape[-1])
    return np.zeros(shape, x.dtype) if given is None else given


def _last(x: Array, first: Array, cu_seqlens: Any) -> Array:
    """Return the last K - 1 inputs of each sequence."""
    state = np.empty(first.shape, x.dtype)
    parts = [(..., slice(None))] if cu_seqlens is None else range(len(cu_seqlens) - 1)
    for n in parts:
        own = x if cu_seqlens is None else x[int(cu_seqlens[n]) : int(cu_seqlens[n + 1])]
        count = min(own.shape[-2], first.shape[-2])
        before = first.shape[-2] - count
        state[n][..., :before, :] = first[n][..., count:, :]
        state[n][..., before:, :] = own[..., own.shape[-2] - count :, :]
    return state


def _filtered(
    x: Array,
    weight: Array,
    bias: Array | None,
    first: Array,
    shape: tuple[int, ...],
    cu_seqlens: Any,
    then: int,
    do: Array | None = None,
) -> Array:
    """Return the taps' sum of each token, flat, or what `then` says is made of it."""
    o, w = np.empty(x.size, x.dtype), rows(weight.T, x.dtype)
    b = rows(np.zeros(shape[-1]) if bias is None else bias, x.dtype)
    table, sizes = runs(sequences(shape, cu_seqlens), RUN), (padded(shape[-1], x.dtype), weight.shape[1])
    work = (weight.shape[1] + (then != PLAIN) * 20.0) * x.size
    run(_filter, len(table), work, 0, x.dtype, table, x, first, w, b, bias is not None, x if do is None else do, o,
        then, *sizes)  # fmt: skip
    return o


def causal_conv1d_vjp(
    do: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
) -> ConvGradients:
    """As `refattn.causal_conv1d_vjp`."""
    dtype, (E, K), before = compute_dtype(x.dtype), weight.shape, _first(x, weight, initial_state, cu_seqlens)
    first, x_, dy = (rows(a, dtype) for a in (before, x, do))
    if activation == "silu":
        dy = _filtered(x_, weight, bias, first, x.shape, cu_seqlens, SLOPE, dy)
        dy.flags.writeable = False
    table, wide = sequences(x.shape, cu_seqlens), padded(E, dtype)
    dx, dfirst, w = np.empty(x_.size, dtype), np.empty(first.size, dtype), rows(weight.T, dtype)
    last = rows(np.zeros(before.shape, dtype) if dstate is None else dstate, dtype)
    items = runs(table, RUN, K - 1)
    run(_filter_back, len(items), 1.0 * K * x_.size, 0, dtype, items, dy, w, last, dx, dfirst, wide, K)
    items = runs(table, LONG)
    parts = np.empty(len(items) * (K + 1) * wide, dtype)
    run(_weigh_back, len(items), (K + 1.0) * x_.size, 0, dtype, items, dy, x_, first, parts, wide, K)
    dw = parts.reshape(len(items), K + 1, wide)[..., :E].sum(axis=0)
    return ConvGradients(
        cut(dx, x.shape).astype(x.dtype, copy=False),
        np.ascontiguousarray(dw[:K].T).astype(weight.dtype, copy=False),
        None if bias is None else dw[K].astype(bias.dtype, copy=False),
        None if initial_state is None else cut(dfirst, before.shape).astype(initial_state.dtype, copy=False),
    )


def _input(at, position, e):
    """Return a pointer to channel e of the input at a position: one before the sequence, or a token."""
    E, before = at["E"], at.builder.sub(at["K"], at.whole(1))
    token = at.sum(at["row"], at.builder.sub(position, before))
    early = at.pointer("first", at.product(at.sum(at.product(at["state"], before), position), E), e)
    return at.choose(at.less(position, before), early, at.pointer("x", at.product(token, E), e))


@intrinsic
def _filter_token(typing, x, row, first, state, t, w, b, biased, do, o, then, E, K):
    """o[row + t] = Σ_i w_i input[t + i] + b, or its silu, or do times the slope of silu there."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "x row first state t w b biased do o then E K", signature, args)
        E, mine = at["E"], at.product(at.sum(at["row"], at["t"]), at["E"])
        with at.loop(builder.sdiv(E, at.whole(at.width))) as block:
            e = at.product(block.index, at.width)
            y = at.place(at.number(0.0))
            with at.loop(at["K"]) as tap:
                weight = at.load(at.pointer("w", at.product(tap.index, E), e))
                y.set(at.fma(weight, at.load(_input(at, at.sum(at["t"], tap.index), e)), y.get()))
            with at.if_("biased"):
                y.set(y.get() + at.load(at.pointer("b", e)))
            with builder.if_then(builder.icmp_signed("==", at["then"], at.whole(SILU))):
                y.set(y.get() * at.sigmoid(y.get()))
            with builder.if_then(builder.icmp_signed("==", at["then"], at.whole(SLOPE))):
                value = y.get()
                slope = at.sigmoid(value) * (value * at.sigmoid(-value) + 1.0)
                y.set(at.load(at.pointer("do", mine, e)) * slope)
            at.store(y.get(), at.pointer("o", mine, e))
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, first, i, i, w, b, types.boolean, do, o, i, i, i), generate


@njit(nogil=True, cache=True)
def _filter(counter, items, space, table, x, first, w, b, biased, do, o, then, E, K):
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        for t in range(table[item, 3], table[item, 4]):
            _filter_token(x, table[item, 0], first, table[item, 2], t, w, b, biased, do, o, then, E, K)


@intrinsic
def _back_to(typing, dy, row, T, w, last, state, position, dx, dfirst, E, K):
    """Put Σ_i w_i dy[row + position - i], and the gradient of the last inputs, where that input lies."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "dy row T w last state position dx dfirst E K", signature, args)
        E, T, position, one = at["E"], at["T"], at["position"], at.whole(1)
        before = builder.sub(at["K"], one)
        early = builder.sub(at.sum(position, one), T)
        low = at.choose(at.less(early, 0), 0, early)
        high = at.choose(at.less(position, before), at.sum(position, one), at["K"])
        mine = at.product(at["state"], before)
        token = at.product(at.sum(at["row"], builder.sub(position, before)), E)
        with at.loop(builder.sdiv(E, at.whole(at.width))) as block:
            e = at.product(block.index, at.width)
            total = at.place(at.number(0.0))
            with builder.if_then(builder.not_(at.less(position, T))):
                there = at.sum(mine, builder.sub(position, T))
                total.set(at.load(at.pointer("last", at.product(there, E), e)))
            with at.loop(high, low) as tap:
                weight = at.load(at.pointer("w", at.product(tap.index, E), e))
                after = at.sum(at["row"], builder.sub(position, tap.index))
                total.set(at.fma(weight, at.load(at.pointer("dy", at.product(after, E), e)), total.get()))
            inside = at.pointer("dfirst", at.product(at.sum(mine, position), E), e)
            at.store(total.get(), at.choose(at.less(position, before), inside, at.pointer("dx", token, e)))
        return context.get_dummy_value()

    i = types.intp
    return types.void(dy, i, i, w, last, i, i, dx, dfirst, i, i), generate


@njit(nogil=True, cache=True)
def _filter_back(counter, items, space, table, dy, w, last, dx, dfirst, E, K):
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        row, T, state = table[item, 0], table[item, 1], table[item, 2]
        for position in range(table[item, 3], table[item, 4]):
            _back_to(dy, row, T, w, last, state, position, dx, dfirst, E, K)


@intrinsic
def _weigh_run(typing, dy, row, x, first, state, start, stop, item, parts, E, K):
    """parts[item, i] = Σ_t dy_t input[t + i] of a run of tokens, and parts[item, K] = Σ_t dy_t."""

    def generate(context, builder, signature, args):
        at = Body(context, builder, "dy row x first state start stop item parts E K", signature, args)
        E, K = at["E"], at["K"]
        with at.loop(builder.sdiv(E, at.whole(at.width))) as block:
            e = at.product(block.index, at.width)
            with at.loop(at.sum(K, 1)) as tap:
                total = at.place(at.number(0.0))
                with at.loop(at["stop"], at["start"]) as token:
                    t = token.index
                    gradient = at.load(at.pointer("dy", at.product(at.sum(at["row"], t), E), e))
                    with builder.if_else(at.less(tap.index, K)) as (weight, bias):
                        with weight:
                            total.set(at.fma(gradient, at.load(_input(at, at.sum(t, tap.index), e)), total.get()))
                        with bias:
                            total.set(total.get() + gradient)
                line = at.sum(at.product(at["item"], at.sum(K, 1)), tap.index)
                at.store(total.get(), at.pointer("parts", at.product(line, E), e))
        return context.get_dummy_value()

    i = types.intp
    return types.void(dy, i, x, first, i, i, i, i, parts, i, i), generate


@njit(nogil=True, cache=True)
def _weigh_back(counter, items, space, table, dy, x, first, parts, E, K):
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        row, state, start, stop = table[item, 0], table[item, 2], table[item, 3], table[item, 4]
        _weigh_run(dy, row, x, first, state, start, stop, item, parts, E, K)
