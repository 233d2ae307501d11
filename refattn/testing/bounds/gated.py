"""How far linear attention with decays may lie from the reference: the recurrences, in absolute values.

A term that has passed n decays, of logs that add up to -G, has had n multiplications and n additions and an exponent of
size G: a relative error of some 1 + n/4 + G eps, times `SLACK`. Kernels that work in chunks may take G as a difference
of sums from the beginning of a chunk, which costs as many eps as those sums are large; the chunks counted have 64
tokens. What a gate of -inf forgets has the bound 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import per_head
from refattn.linear.common import by_sequence, first_state, heads_of, scale_of, share_heads, sum_heads
from refattn.results import Hgrn2Gradients, Recurrent, RecurrentGradients
from refattn.testing.bounds.weights import UNDERFLOW, finite, size_of

CHUNK = 64


def carried(g: Array, new: Array, first: Array) -> tuple[Array, Array]:
    """Return the sizes and the errors of S_t = e^{g_t} S_{t-1} + new_t, (..., T, D, Dv), new and first not negative."""
    S, E, U = first, first, first
    whole = np.zeros_like(first)
    sizes, errors = np.empty_like(new), np.empty_like(new)
    for t in range(new.shape[-3]):
        if t % CHUNK == 0:
            E, whole = E + whole * S, np.zeros_like(first)
        gate = g[..., t, :, None]
        forgets = np.isneginf(gate)
        length = np.where(forgets, 0, -gate)
        fresh = new[..., t, :, :]
        E = np.exp(gate) * (E + (0.25 + length) * S) + fresh
        S, U = np.exp(gate) * S + fresh, np.where(forgets, 0, U) + fresh
        whole = whole + length
        sizes[..., t, :, :], errors[..., t, :, :] = S, E + whole * S + UNDERFLOW * U
    return sizes, errors


class _Gradients(NamedTuple):
    """Bounds of gradients, those of the gates for each dimension of the keys; and the size of dk."""

    dq: Array
    dk: Array
    dv: Array
    gates: Array
    dinitial_state: Array
    size: Array


class _Passes:
    """One sequence: the states forwards, and backwards their gradients."""

    def __init__(self, q: Array, k: Array, v: Array, g: Array, scale: float | None, initial_state: Any) -> None:
        self.H, self.Hk, self.Hv = heads_of(q), heads_of(k), heads_of(v)
        self.Ho, self.scale = max(self.H, self.Hv), abs(scale_of(q, scale))
        self.g = np.where(np.isneginf(g), g, finite(g))
        self.q, self.v = self.scale * share_heads(size_of(q), self.Ho), size_of(v)
        self.k = share_heads(size_of(k), self.Hv)
        state = first_state(initial_state, (*v.shape[:-2], q.shape[-1], v.shape[-1]), np.float64)
        self.first = size_of(state)
        self.S, self.E = carried(self.g, self.k[..., :, None] * self.v[..., None, :], self.first)

    def forward(self) -> Recurrent:
        """Return the bounds of o and the last state."""
        o = np.einsum("...td,...tde->...te", self.q, share_heads(self.E, self.Ho, -4))
        return Recurrent(o, self.E[..., -1, :, :] if self.E.shape[-3] else self.first)

    def backward(self, do: Array, dstate: Any) -> _Gradients:
        """Return the bounds of all gradients."""
        do, last = size_of(do), first_state(dstate, self.first.shape, np.float64)
        new = sum_heads(self.q[..., :, None] * do[..., None, :], self.Hv, -4)
        nothing = np.zeros_like(self.first[..., None, :, :])
        new = np.concatenate([np.flip(new, axis=-3), nothing], axis=-3)
        g = np.concatenate([np.zeros_like(self.g[..., :1, :]), np.flip(self.g, axis=-2)], axis=-2)
        g = g if self.g.shape[-2] else np.zeros((*self.first.shape[:-2], 1, 1))
        dS, dE = (np.flip(x, axis=-3) for x in carried(g, new, size_of(last)))  # of the first state, then of each token
        dinitial, dS, dE = dE[..., 0, :, :], dS[..., 1:, :, :], dE[..., 1:, :, :]
        first, T = self.first[..., None, :, :], do.shape[-2]
        old, old_E = (np.concatenate([first, x], axis=-3)[..., :T, :, :] for x in (self.S, self.E))
        old_E = old_E + (1 + abs(finite(self.g))[..., None]) * old
        dg = np.exp(self.g) * (dS * old_E + dE * old).sum(axis=-1)
        dq = self.scale * np.einsum("...tde,...te->...td", share_heads(self.E, self.Ho, -4), do)
        dk, size = (np.einsum("...tde,...te->...td", x, self.v) for x in (dE, dS))
        dv = np.einsum("...tde,...td->...te", dE, self.k)
        return _Gradients(sum_heads(dq, self.H), sum_heads(dk, self.Hk), dv, dg, dinitial, size)


def per_dimension(log_decay: Array, v: Array, axes: str) -> Array:
    """Return gates (..., Hv, T, D), or with a last axis of 1 if all dimensions have the same."""
    if axes == "HTD":
        return log_decay
    return log_decay[..., None] if axes == "HT" else np.broadcast_to(per_head(log_decay, v.ndim), (*v.shape[:-1], 1))


def forward(
    axes: str, eps: float, q: Array, k: Array, v: Array, log_decay: Array, *, cu_seqlens: Any = None, **options: Any
) -> Recurrent:
    """Bound the operations whose gates have `axes`."""
    g = per_dimension(log_decay, v, axes)
    return _forward(q, k, v, g, cu_seqlens, **options)


def _forward(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    cu_seqlens: Any,
    *,
    scale: float | None = None,
    initial_state: Any = None,
    chunk: int = CHUNK,
) -> Recurrent:
    if cu_seqlens is not None:
        call = partial(_forward, cu_seqlens=None, scale=scale)
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (q, k, v, g)], {"initial_state": initial_state})
    return _Passes(q, k, v, g, scale, initial_state).forward()


def backward(
    axes: str,
    eps: float,
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    initial_state: Any = None,
    **options: Any,
) -> RecurrentGradients:
    """Bound the derivatives of the operations whose gates have `axes`."""
    b = _backward(do, q, k, v, per_dimension(log_decay, v, axes), initial_state=initial_state, **options)
    gates = b.gates if axes == "HTD" else b.gates.sum(axis=-1)
    gates = gates.sum(axis=-1).reshape(-1, heads_of(v)).sum(axis=0) if axes == "H" else gates
    return RecurrentGradients(b.dq, b.dk, b.dv, gates, None, None if initial_state is None else b.dinitial_state)


def _backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    *,
    scale: float | None = None,
    initial_state: Any = None,
    dstate: Any = None,
    cu_seqlens: Any = None,
) -> _Gradients:
    if cu_seqlens is not None:
        call = partial(_backward, scale=scale)
        states = {"initial_state": initial_state, "dstate": dstate}
        return by_sequence(call, cu_seqlens, [(x, -2) for x in (do, q, k, v, g)], states, gates=-2, size=-2)
    return _Passes(q, k, v, g, scale, initial_state).backward(do, dstate)


def hgrn2(eps: float, q: Array, log_decay: Array, v: Array, *, scale: float = 1.0, **options: Any) -> Recurrent:
    """Bound `hgrn2`, whose keys 1 - e^g have the size of both terms: near g = 0 a kernel may subtract."""
    return forward("HTD", eps, q, 1 + np.exp(log_decay), v, log_decay, scale=scale, **options)


def hgrn2_vjp(
    eps: float, do: Array, q: Array, log_decay: Array, v: Array, *, scale: float = 1.0, **options: Any
) -> Hgrn2Gradients:
    """Bound `hgrn2_vjp`."""
    b = _backward(do, q, 1 + np.exp(log_decay), v, log_decay, scale=scale, **options)
    of_keys = np.exp(log_decay) * (b.dk + (1 + abs(finite(log_decay))) * b.size)
    dinitial = None if options.get("initial_state") is None else b.dinitial_state
    return Hgrn2Gradients(b.dq, b.gates + of_keys, b.dv, dinitial)


AXES = {"simple_gla": "HT", "gated_linear_attention": "HTD", "retention": "H", "lightning_attention": "H"}
BOUNDS: dict[str, Callable[..., Any]] = {
    **{name + form: partial(forward, axes) for name, axes in AXES.items() for form in ("", "_recurrent", "_chunked")},
    **{f"{name}_vjp": partial(backward, axes) for name, axes in AXES.items()},
    **dict.fromkeys(("hgrn2", "hgrn2_recurrent", "hgrn2_chunked"), hgrn2),
    "hgrn2_vjp": hgrn2_vjp,
}
