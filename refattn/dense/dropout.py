r"""The keep-mask of attention dropout, drawn by counting: each element is a function of the seed and its place alone.

Srivastava et al., "Dropout", 2014, Journal of Machine Learning Research 15, for what it is good for. The bits are those
of Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
doi:10.1145/2063384.2063405.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count, check_number

Words = NDArray[np.uint64]  # 32 bits each; the other half has room for a product

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def dropout_mask(shape: Sequence[int], p: float, seed: int, *, start: Sequence[int] | None = None) -> NDArray[np.bool_]:
    r"""Return which weights to keep, for the ``dropout_mask=`` of `attention`: True with probability 1 - p.

    .. math::
        \text{keep}_{bhij} = \left[ u_{bhij} \ge 2^{32} p \right], \quad
        u_{bhij} = \text{word } j \bmod 4 \text{ of Philox4x32-10}(\text{counter} = (\lfloor j / 4 \rfloor, i, h, b), \,
        \text{key} = (\text{seed} \bmod 2^{32}, \lfloor \text{seed} / 2^{32} \rfloor))

    An element depends on p, on the seed and on its own indices, and not on the shape: every part of a mask is what
    `start` yields for it, and a longer or wider mask begins with the shorter one. Counter words and key words are
    written lowest first, as in the paper. There is no float but the comparison, which is exact: every machine draws
    the same mask.

    Parameters
    ----------
    shape : sequence of 0 to 4 ints
        (B, H, Tq, Tk), or the last few of these axes: (Tq, Tk) is what sequence 0 and head 0 get. An axis is at most
        2^32 long. More axes of a batch: make them one, and reshape.
    p : float
        The probability with which an element is dropped, 0 <= p < 1; the ``dropout_p=`` of `attention`. Of 0 nothing is
        dropped.
    seed : int
        0 ... 2^64 - 1. A layer and a training step need a seed each.
    start : sequence of ints, optional
        The indices of the first element, one for each axis of `shape`; 0 unless given.

    Returns
    -------
    bool array of `shape`
        True = keep.

    Raises
    ------
    TypeError, ValueError
        For p outside 0 <= p < 1, or indices and seeds outside their range.

    Examples
    --------
    >>> mask = dropout_mask((2, 6), 0.5, seed=1)
    >>> mask.dtype, bool((dropout_mask((1, 3), 0.5, seed=1, start=(1, 2)) == mask[1:, 2:5]).all())
    (dtype('bool'), True)
    """
    shape, start = _check(shape, p, seed, start)
    seed = int(seed)
    b, h, i, j = (
        np.arange(first, first + size, dtype=np.uint64).reshape(-1, *[1] * (3 - axis))
        for axis, (first, size) in enumerate(zip(_four(start, 0), _four(shape, 1), strict=True))
    )
    quads, which = np.unique(j // 4, return_inverse=True)  # four neighbours share one counter
    words = philox4x32((quads, i, h, b), (seed % 2**32, seed // 2**32))  # 4 arrays (B, H, Tq, quads)
    u = np.stack(words)[(j % 4).astype(np.int64), ..., which]  # (Tk, B, H, Tq)
    return np.moveaxis(u >= float(p) * 2.0**32, 0, -1).reshape(shape)


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    r"""Return the four words of Philox4x32-10 for each counter.

    .. math::
        (c_0, c_1, c_2, c_3) \leftarrow
        (\text{hi}(M_1 c_2) \oplus c_1 \oplus k_0, \, \text{lo}(M_1 c_2), \,
        \text{hi}(M_0 c_0) \oplus c_3 \oplus k_1, \, \text{lo}(M_0 c_0))

    ten times, with (k_0, k_1) moved on by two constants after each, all modulo 2^32.

    Parameters
    ----------
    counter : four uint64 arrays that broadcast
        Words of 32 bits.
    key : two ints
        Words of 32 bits.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    for r in range(_ROUNDS):
        k0, k1 = (np.uint64((k + r * w) % 2**32) for k, w in zip(key, _WEYL, strict=True))
        low, high = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> _HALF) ^ c1 ^ k0, high & _LOW, (low >> _HALF) ^ c3 ^ k1, low & _LOW
    return c0, c1, c2, c3


def _four(sizes: Sequence[int], fill: int) -> list[int]:
    """Return `sizes` with axes put before the first, up to (B, H, Tq, Tk)."""
    return [fill] * (4 - len(sizes)) + [int(size) for size in sizes]


def _check(shape: Any, p: Any, seed: Any, start: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for name, sizes in (("shape", shape), ("start", () if start is None else start)):
        if not isinstance(sizes, Sequence) or isinstance(sizes, str):
            raise TypeError(f"dropout_mask: {name} is {sizes!r}; wanted a sequence of ints")
    shape = tuple(shape)
    start = (0,) * len(shape) if start is None else tuple(start)
    if len(shape) > 4:
        raise ValueError(f"dropout_mask: shape is {shape}; wanted at most the 4 axes (B, H, Tq, Tk)")
    if len(start) != len(shape):
        raise ValueError(f"dropout_mask: start is {start}; wanted an index for each axis of {shape}")
    for name, sizes in (("shape", shape), ("start", start)):
        for size in sizes:
            check_count("dropout_mask", f"an entry of {name}", size, least=0)
    if any(first + size > 2**32 for first, size in zip(start, shape, strict=True)):
        raise ValueError(f"dropout_mask: shape {shape} from {start} on reaches beyond 2^32; wanted indices below it")
    check_number("dropout_mask", "p", p)
    if not 0 <= p < 1:
        raise ValueError(f"dropout_mask: p is {p}; wanted 0 <= p < 1")
    check_count("dropout_mask", "seed", seed, least=0)
    if seed >= 2**64:
        raise ValueError(f"dropout_mask: seed is {seed}; wanted one below 2^64")
    return shape, start
