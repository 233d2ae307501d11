"""What the problems are made of: random masks, changes of the drawn values, and layouts in memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import masks
from refattn.arrays import Array
from refattn.dense.alibi import alibi_bias, alibi_slopes

Inputs = dict[str, Any]
Rng = np.random.Generator
Change = Callable[[Inputs, Rng], None]


def random(*shape: int, share: float = 0.5) -> Callable[[Rng], NDArray[np.bool_]]:
    """Return a function that draws a bool array, `share` of it True."""
    return lambda rng: rng.random(shape) < share


def some_rows_blind(rng: Rng) -> masks.Mask:
    """A mask of 65 queries and keys in which four queries see nothing."""
    visible = rng.random((65, 65)) < 0.4
    visible[[0, 5, 63, 64]] = False
    return masks.from_array(visible)


def checkers(i: NDArray[Any], j: NDArray[Any]) -> NDArray[np.bool_]:
    """A pattern for `masks.from_function`."""
    return np.asarray((i + j) % 3 == 0)


def times(name: str, factor: float) -> Change:
    """Scale one array."""

    def change(x: Inputs, rng: Rng) -> None:
        x[name] = x[name] * factor

    return change


def large_scores(x: Inputs, rng: Rng) -> None:
    """Make the scores 10,000 times as large: the softmax picks one key."""
    x["q"], x["k"] = 100 * x["q"], 100 * x["k"]


def needles(x: Inputs, rng: Rng) -> None:
    """Each query finds one key: keys are far apart, and queries are copies of them."""
    Tq, Tk = x["q"].shape[-2], x["k"].shape[-2]
    codes = 8 * np.sign(rng.normal(size=(Tk, x["k"].shape[-1])))
    x["k"][...], x["q"][...] = codes, codes[rng.integers(0, Tk, Tq)]


def equal_keys(x: Inputs, rng: Rng) -> None:
    """All weights of a row are equal, and all values have one sign."""
    x["k"][...], x["v"] = 1, np.abs(x["v"])


def rising_maximum(x: Inputs, rng: Rng) -> None:
    """The running maximum moves with every key."""
    x["q"][...], x["k"][...] = 1, np.linspace(-4, 4, x["k"].shape[-2])[:, None]


def falling_maximum(x: Inputs, rng: Rng) -> None:
    """The first key has the running maximum and keeps it."""
    x["q"][...], x["k"][...] = 1, np.linspace(4, -4, x["k"].shape[-2])[:, None]


def put(name: str, value: float, *places: Any) -> Change:
    """Set some places of one array."""

    def change(x: Inputs, rng: Rng) -> None:
        for place in places:
            x[name][place] = value

    return change


def each(*changes: Change) -> Change:
    """One change after the other."""

    def change(x: Inputs, rng: Rng) -> None:
        for one in changes:
            one(x, rng)

    return change


def alibi(x: Inputs, rng: Rng) -> None:
    """The bias of the paper, for 4 heads and 65 tokens."""
    x["bias"] = alibi_bias(alibi_slopes(4), 65, 65)


def bias_minus_inf(x: Inputs, rng: Rng) -> None:
    """Use the bias as a mask, as other libraries do."""
    x["bias"][rng.random(x["bias"].shape) < 0.3] = -np.inf
    x["bias"][..., 7, :] = -np.inf  # a row that sees nothing, by way of the bias


def bias_nan_above(x: Inputs, rng: Rng) -> None:
    """Poison the bias where a causal mask hides it."""
    x["bias"][..., ~np.tri(65, dtype=bool)] = np.nan


def one_sequence(x: Inputs, rng: Rng) -> None:
    """All sequences of the batch are the first."""
    for name in ("q", "k", "v", "do"):
        x[name][1:] = x[name][:1]


def repeated(x: Array) -> Array:
    """Return the first sequence, the batch axis with stride 0."""
    return np.broadcast_to(x[:1], x.shape)


def spread(x: Array) -> Array:
    """Return a view of every second number of every axis of a larger array, the gaps full of NaN."""
    room = np.full([2 * n for n in x.shape], np.nan if x.dtype != np.uint16 else 0x7FC0).astype(x.dtype)
    room[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return room[tuple(slice(None, None, 2) for _ in x.shape)]


def tokens_first(x: Array) -> Array:
    """Lay out as (..., T, H, D), as projections leave it."""
    return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3)


def backwards(x: Array) -> Array:
    """Give the last two axes negative strides."""
    turned = (Ellipsis, slice(None, None, -1), slice(None, None, -1))
    return np.ascontiguousarray(x[turned])[turned]


def unaligned(x: Array) -> Array:
    """Return the values at an address that is a multiple of the itemsize and of nothing more."""
    room = np.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
    room[...] = x
    return room


def guarded(x: Array) -> Array:
    """Return the values in the middle of a buffer of NaN: a kernel that reads past either end shows it."""
    room = np.full(x.size + 512, np.nan if x.dtype != np.uint16 else 0x7FC0).astype(x.dtype)
    inside = room[256 : 256 + x.size].reshape(x.shape)
    inside[...] = x
    return inside


def sizes_of_one(x: Array) -> Array:
    """Give axes of size 1 strides that mean nothing: who multiplies by them must multiply by 0."""
    strides = tuple(12_345 * x.itemsize if n == 1 else stride for n, stride in zip(x.shape, x.strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, x.shape, strides)


def far_apart(x: Array) -> Array:
    """Put the sequences 2³¹ - 1,024 elements apart: offsets do not fit 32 bits. Pages nobody writes cost no memory."""
    import mmap

    stride, inner = 2**31 - 1024, int(np.prod(x.shape[1:]))
    size = ((x.shape[0] - 1) * stride + inner) * x.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    flat = np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=x.dtype)
    inside = np.ascontiguousarray(x[0]).strides
    far = np.lib.stride_tricks.as_strided(flat, x.shape, (stride * x.itemsize, *inside))
    far[...] = x
    return far
