"""Sizes and errors of the sums that state spaces are made of, in units of eps; see `refattn.testing.bounds`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.ssm.common import sigmoid, silu, silu_slope, softplus
from refattn.testing.bounds.weights import UNDERFLOW, finite, size_of


@dataclass(frozen=True)
class Near:
    """Sizes of numbers, cancellation left out of account, and by how many eps each may be wrong."""

    x: Array
    e: Array

    @classmethod
    def exact(cls, x: Array) -> "Near":
        """Return inputs."""
        return cls(size_of(x), np.zeros(x.shape))

    def __add__(self, other: "Near") -> "Near":
        x = self.x + other.x
        return Near(x, self.e + other.e + x)

    def __mul__(self, other: "Near") -> "Near":
        x = self.x * other.x
        return Near(x, self.x * other.e + self.e * other.x + x)

    def sum(self, axis: int | tuple[int, ...]) -> "Near":
        """Return the sum along axes."""
        x = self.x.sum(axis=axis)
        return Near(x, self.e.sum(axis=axis) + x)

    def __getitem__(self, at: Any) -> "Near":
        return Near(self.x[at], self.e[at])

    def map(self, f: Callable[[Array], Array]) -> "Near":
        """Return f, which moves or picks numbers, of both."""
        return Near(f(self.x), f(self.e))


def stacked(parts: list[Near], like: Array) -> Near:
    """Put tokens side by side along axis -2; where there are none, nothing in the shape of `like`."""
    if not parts:
        return Near(np.zeros(like.shape), np.zeros(like.shape))
    return Near(np.stack([p.x for p in parts], -2), np.stack([p.e for p in parts], -2))


def step_of(raw: Array, size: Array, soft: bool, limit: tuple[float, float]) -> tuple[Array, Near]:
    """Return Δ, and Δ with its error, for dt with its bias and the size of the two."""
    raw, e = finite(raw), size
    value, e = (softplus(raw), sigmoid(raw) * e + 2 * softplus(raw)) if soft else (raw, e)
    value = np.clip(value, *limit)
    return value, Near(abs(value), e)


def gate_of(z: Array) -> Near:
    """Return silu(z)."""
    z = finite(z)
    return Near(abs(silu(z)), 2 * abs(silu(z)) + UNDERFLOW)


def gate_slope(z: Array) -> Near:
    """Return the derivative of silu at z."""
    z = finite(z)
    size = sigmoid(z) * (1 + abs(z) * sigmoid(-z))
    return Near(abs(silu_slope(z)), 3 * size + UNDERFLOW)


class Scan:
    """One scan, h = e^{Δ A} h + (Δ x) Bᵀ: x (..., T, E), B and C (..., T, N); Δ and A broadcast to (..., T, E, N)."""

    def __init__(self, x: Array, value: Array, step: Near, A: Array, B: Array, C: Array, state: Any) -> None:
        self.x, self.step, self.k, self.q = Near.exact(x), step, Near.exact(B), Near.exact(C)
        g = value[..., None] * A
        self.keeps = ~np.isneginf(g)
        self.A = Near.exact(A)
        g = finite(g)
        e = self.A.x * step.e[..., None] + abs(g)
        self.a = Near(self.keeps * np.exp(g), self.keeps * (np.exp(g) * (1 + e) + UNDERFLOW))
        self.v = step * self.x
        shape = (*x.shape[:-2], x.shape[-1], B.shape[-1])
        self.states, y = [Near.exact(np.zeros(shape) if state is None else state)], []
        for t in range(x.shape[-2]):
            new = self.v[..., t, :, None] * self.k[..., t, None, :]
            self.states.append(self.a[..., t, :, :] * self.states[t] + new)
            y.append((self.states[-1] * self.q[..., t, None, :]).sum(-1))
        self.y = stacked(y, x)

    def output(self, D: Array | None, z: Array | None) -> Array:
        """Return the bound of (y + D x) silu(z)."""
        y = self.y if D is None else self.y + Near.exact(D) * self.x
        return (y if z is None else y * gate_of(z)).e

    def backward(self, do: Array, D: Array | None, z: Array | None, dstate: Array | None) -> "dict[str, Near]":
        """Return the gradients of x, step, g / Δ (for A), B, C, D x, z and the state."""
        T, dy, found = do.shape[-2], Near.exact(do), {}
        if z is not None:
            found["z"] = dy * (self.y if D is None else self.y + Near.exact(D) * self.x) * gate_slope(z)
            dy = dy * gate_of(z)
        dh = Near.exact(np.zeros(self.states[0].x.shape) if dstate is None else dstate)
        tokens: dict[str, list[Near]] = {name: [] for name in ("v", "step", "B", "C")}
        dA = Near.exact(np.zeros(1))
        for t in reversed(range(T)):
            a, keeps = self.a[..., t, :, :], self.keeps[..., t, :, :]
            tokens["C"].append((self.states[t + 1] * dy[..., t, :, None]).sum(-2))
            dh = dh + dy[..., t, :, None] * self.q[..., t, None, :]
            tokens["v"].append((dh * self.k[..., t, None, :]).sum(-1))
            tokens["B"].append((dh * self.v[..., t, :, None]).sum(-2))
            dg = dh * (a * self.states[t])
            dg = dg.map(lambda y, keeps=keeps: y * keeps)  # type: ignore[misc]
            A = self.A[..., 0, :, :] if self.A.x.ndim > 2 else self.A
            tokens["step"].append((dg * A).sum(-1))
            dA = dA + dg * self.step[..., t, :, None]
            dh = a * dh
        like = {"v": do, "step": do, "B": self.k.x, "C": self.q.x}
        found |= {name: stacked(parts[::-1], like[name]) for name, parts in tokens.items()}
        found["x"] = found["v"] * self.step
        if D is not None:
            found["x"] = found["x"] + Near.exact(D) * dy
        return found | {"A": dA, "D": dy * self.x, "state": dh, "v_x": found["v"] * self.x}


def total(d: Near, shape: tuple[int, ...]) -> Near:
    """Return a gradient summed up over the axes before those of `shape`."""
    d = d.map(lambda y: np.broadcast_to(y, np.broadcast_shapes(y.shape, shape)))
    return d.map(lambda y: y.reshape(-1, *shape)).sum(0)
