"""Rotary position embedding: turn each pair of dimensions by an angle that grows with the position.

Su et al., "RoFormer", 2021, arXiv:2104.09864, eq. 34. A query at position m and a key at n then meet at angle
(m - n) θ: their product knows only how far apart they are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_count, check_floats, check_number, check_shape, compute_dtype
from refattn.dispatch import dispatched

_NOT_GIVEN = object()


def _check(
    x: Any,
    positions: Any,
    *,
    theta: Any = _NOT_GIVEN,
    rotary_dim: Any = None,
    interleaved: Any = False,
    frequencies: Any = None,
    operation: str = "rope",
    name: str = "x",
) -> None:
    check_floats(operation, 2, **{name: x})
    if theta is not _NOT_GIVEN:
        check_number(operation, "theta", theta, above=0)
    rotary_dim = x.shape[-1] if rotary_dim is None else rotary_dim
    check_count(operation, "rotary_dim", rotary_dim, least=0)
    if rotary_dim % 2 or rotary_dim > x.shape[-1]:
        raise ValueError(f"{operation}: rotary_dim is {rotary_dim}; wanted an even number up to D = {x.shape[-1]}")
    if frequencies is not None:
        _check_frequencies(operation, frequencies, rotary_dim, theta)
    if getattr(positions, "dtype", None) is None or positions.dtype.kind not in "iu":
        got = getattr(positions, "dtype", type(positions).__name__)
        raise TypeError(f"{operation}: positions is {got}; wanted integers")
    batch = x.shape[:-3]
    if positions.shape not in ((x.shape[-2],), (*batch, x.shape[-2])):
        raise ValueError(
            f"{operation}: positions has shape {positions.shape}; "
            f"wanted ({x.shape[-2]},) = (T,) or {(*batch, x.shape[-2])}"
        )


def _check_frequencies(operation: str, frequencies: Any, rotary_dim: int, theta: Any) -> None:
    if theta is not _NOT_GIVEN:
        raise ValueError(f"{operation}: both theta and frequencies are given; wanted one of them")
    check_floats(operation, 1, frequencies=frequencies)
    if frequencies.dtype != np.float64:
        raise TypeError(f"{operation}: frequencies has dtype {frequencies.dtype}; wanted float64, that of the angles")
    check_shape(operation, "frequencies", frequencies, (rotary_dim // 2,), "(rotary_dim / 2,), one for each pair")
    if not np.isfinite(frequencies).all():
        raise ValueError(f"{operation}: frequencies holds NaN or inf; wanted finite numbers")


def _check_vjp(dy: Any, positions: Any, **arguments: Any) -> None:
    _check(dy, positions, operation="rope_vjp", name="dy", **arguments)


@dispatched(_check)
def rope(
    x: Array,
    positions: NDArray[np.integer[Any]],
    *,
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    frequencies: Array | None = None,
    backend: str = "numpy",
) -> Array:
    r"""Rotate the pairs of `x` by their position.

    .. math::
        \begin{pmatrix} y_a \\ y_b \end{pmatrix} =
        \begin{pmatrix} \cos \phi & -\sin \phi \\ \sin \phi & \cos \phi \end{pmatrix}
        \begin{pmatrix} x_a \\ x_b \end{pmatrix}, \quad \phi = t f_n, \quad
        f_n = \theta^{-2n/D}

    for pair n = 0 ... D/2 - 1 at position t.

    Parameters
    ----------
    x : array, (..., H, T, D)
        Queries or keys; 2-D is one head.
    positions : int array, (T,) or (..., T)
        Where each token stands.
    theta : float
        The base of the wavelengths; 10000 unless given.
    rotary_dim : int, optional
        Rotate the first so many dimensions only; D unless given.
    interleaved : bool
        Pair n is (2n, 2n + 1) (GPT-J) rather than (n, n + D/2) (GPT-NeoX, Llama).
    frequencies : float64 array, (rotary_dim / 2,), optional
        f_n in radians per position, instead of those of theta: see `yarn_frequencies` and its kin.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    array, (..., H, T, D)
        In the dtype of x.

    Raises
    ------
    TypeError, ValueError
        For an odd or too large rotary_dim, positions that do not fit, or both theta and frequencies.

    Examples
    --------
    >>> rope(np.array([[1.0, 0.0]]), np.array([0]))  # position 0 turns nothing
    array([[1., 0.]])
    """
    compute = compute_dtype(x.dtype)
    n = x.shape[-1] if rotary_dim is None else rotary_dim
    angle = positions[..., None] * frequencies_of(frequencies, theta, n)  # t f_n, in float64     (..., T, n/2)
    if positions.ndim > 1:
        angle = angle[..., None, :, :]  # one set of positions for all heads
    cos, sin = np.cos(angle).astype(compute), np.sin(angle).astype(compute)
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    y = x.astype(compute)
    y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
    return y.astype(x.dtype)


@dispatched(_check_vjp)
def rope_vjp(
    dy: Array,
    positions: NDArray[np.integer[Any]],
    *,
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    frequencies: Array | None = None,
    backend: str = "numpy",
) -> Array:
    """Pull the cotangent of `rope`'s result back to x: the transpose of a rotation turns the other way.

    Parameters
    ----------
    dy : array, (..., H, T, D)
        Cotangent of the result.
    positions, theta, rotary_dim, interleaved, frequencies
        As given to `rope`.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    array, (..., H, T, D)
        The gradient of x.

    Raises
    ------
    TypeError, ValueError
        As `rope`.

    Examples
    --------
    >>> x = np.array([[3.0, 4.0]])
    >>> np.round(rope_vjp(rope(x, np.array([7])), np.array([7])), 12)
    array([[3., 4.]])
    """
    n = dy.shape[-1] if rotary_dim is None else rotary_dim
    f = frequencies_of(frequencies, theta, n)
    return rope(dy, -positions.astype(np.int64), frequencies=f, rotary_dim=n, interleaved=interleaved)


def frequencies_of(frequencies: Array | None, theta: float, n: int) -> Array:
    """Return f_n in radians per position, float64 (n/2,): those that were given, or those of theta."""
    if frequencies is not None:
        return frequencies
    return np.asarray(theta ** (-np.arange(0, n, 2) / n)) if n else np.zeros(0)  # θ^(-2n/D)
