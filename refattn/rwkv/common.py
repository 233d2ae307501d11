"""What RWKV-5, -6 and -7 share: every array has H heads of its own, and what is read before the update."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_number, check_shape
from refattn.linear.common import (
    Bools,
    arguments,
    check_cotangent,
    check_gate,
    check_recurrence,
    check_state_cotangent,
    check_wide,
    heads_of,
    sums_through,
)
from refattn.linear.triangular import decayed_products


def products_before(x: Array, y: Array, g: Array) -> tuple[Array, Bools]:
    r"""Return what token i reads of the tokens before it, before its own gate acts, and which some entry reaches.

    .. math::
        P_{ij} = \sum_d x_{id}\, e^{G_{i-1,j,d}}\, y_{jd} \quad (j < i), \qquad G_{ijd} = \sum_{j < s \le i} g_{sd}

    Parameters
    ----------
    x, y, g : array, (..., T, D)

    Returns
    -------
    P : array, (..., T, T)
    reached : bool array, (..., T, T)

    Examples
    --------
    >>> products_before(np.ones((3, 1)), np.array([[2.0], [4.0], [8.0]]), np.log([[0.5], [0.5], [0.5]]))[0]
    array([[0., 0., 0.],
           [2., 0., 0.],
           [1., 4., 0.]])
    """
    T = x.shape[-2]
    P, reached = np.zeros((*x.shape[:-1], T), x.dtype), np.zeros((*x.shape[:-1], T), bool)
    within = decayed_products(x[..., 1:, :], y[..., :-1, :], g[..., :-1, :])
    P[..., 1:, :-1], reached[..., 1:, :-1] = within
    return P, reached


def of_heads(u: Array, r: Array) -> Array:
    """Give (H, D) an axis for the tokens of r (..., H, T, D); a matrix r is one head."""
    return u[:, None, :] if r.ndim > 2 else u


def sums_before(g: Array) -> Array:
    """Return the log-decay of the first state until token t reads it, (..., T, D): Σ_{s < t} g_s."""
    through = sums_through(g, axis=-2)
    return np.concatenate([np.zeros_like(g[..., :1, :]), through[..., :-1, :]], axis=-2)


def check_rwkv(operation: str, **gates: str) -> Callable[..., None]:
    """Return the check of an operation on r, k and v, and on `gates`: the axes of each, "HD" or "HTD".

    For a derivative (``..._vjp``) the check takes `do` first.
    """

    def check(*arrays: Any, **given: Any) -> None:
        found = arguments(operation, ("r", "k", "v", *gates), arrays, given)
        r, k, v = (found.pop(name) for name in "rkv")
        do, dstate = found.pop("do", None), found.pop("dstate", None)
        own = {name: found.pop(name) for name in gates}
        check_recurrence(operation, r, k, v, {}, queries="r", **found)
        check_number(operation, "scale", found.get("scale", 1.0))
        if not heads_of(r) == heads_of(k) == heads_of(v):
            raise ValueError(
                f"{operation}: r, k, v have {heads_of(r)}, {heads_of(k)}, {heads_of(v)} heads; wanted one H"
            )
        for name, axes in gates.items():
            if axes == "HD":
                check_wide(operation, name, own[name], r)
                check_shape(operation, name, own[name], (heads_of(r), r.shape[-1]), "(H, D)")
            else:
                check_gate(operation, name, own[name], r, v, axes)
        g = own["log_decay"]
        if (g > 0).any():
            raise ValueError(f"{operation}: log_decay holds {g.max()}; wanted logs of decays, at most 0")
        if operation.endswith("_vjp"):
            check_cotangent(operation, do, r, v, "H")
            check_state_cotangent(operation, dstate, r, v, found.get("cu_seqlens"))

    return check
