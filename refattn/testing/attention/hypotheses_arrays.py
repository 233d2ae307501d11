"""Mistakes in which heads, keys, values and channels are read; see `hypotheses`."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.hypotheses import Given, Results, Twist, arrays, enter
from refattn.testing.attention.hypotheses_lengths import TILES
from refattn.testing.attention.hypotheses_masks import View, looks
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import Contract
from refattn.testing.formats import decode, encode


def heads(name: str, sentence: str, order: Callable[[int, int], Array]) -> None:
    """Enter that query head h reads the key head that `order(H, Hk)` says."""

    def read(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array] | None:
        mapped = order(q.shape[1], k.shape[1])
        return None if (mapped == _heads(q.shape[1], k.shape[1])).all() else (q, k[:, mapped], v[:, mapped])

    twist = arrays(read)

    def added_there(given: Given) -> Results | None:
        """The gradients are added up where the heads were read."""
        results = None if given.p.do is None else twist.everywhere(given)
        if results is None:
            return None
        mapped, found = order(given.p.q.shape[1], given.p.k.shape[1]), dict(results)
        for part in ("dk", "dv"):
            found[part] = np.zeros_like(given.right[part])
            np.add.at(found[part].swapaxes(0, 1), mapped, results[part].swapaxes(0, 1))
        return found

    enter(name, sentence, twist, added_there)


def _heads(H: int, Hk: int) -> Array:
    return np.arange(H) // (H // Hk)


def _power_of_two(H: int, Hk: int) -> Array:
    return np.minimum(np.arange(H) >> ((H // Hk).bit_length() - 1), Hk - 1)


def _arrays() -> None:
    heads(
        "heads round robin",
        "query head h reads key head h % Hk instead of h // (H // Hk)",
        lambda H, Hk: np.arange(H) % Hk,
    )
    heads(
        "every query head reads the first kv head",
        "every query head reads the first key head",
        lambda H, Hk: np.zeros(H, int),
    )
    heads("kv heads reversed", "key heads are in reverse order", lambda H, Hk: Hk - 1 - _heads(H, Hk))
    heads("query heads per key head rounded down", "the group size is rounded down to a power of two", _power_of_two)
    heads(
        "kv head of the same number",
        "query head h reads key head min(h, Hk - 1)",
        lambda H, Hk: np.minimum(np.arange(H), Hk - 1),
    )
    first = arrays(lambda q, k, v: None if k.shape[1] == 1 else (q, k, v[:, [0] * v.shape[1]]))
    enter("values of the first kv head", "every query head reads the values of the first key head", first)
    enter("keys of the first kv head", "every query head reads the keys of the first key head", _keys_of_first())
    for name, by in (("next", -1), ("previous", 1)):
        enter(f"values of the {name} key", f"values are those of the {name} key", *_values_moved(by))
    enter("keys and values exchanged", "keys and values are exchanged", arrays(_exchanged))
    enter(
        "keys as values",
        "the keys are used as values",
        arrays(lambda q, k, v: (q, k, k) if k.shape == v.shape else None),
    )
    for what in ("keys", "values"):
        for order, source in (
            ("first", lambda B: 0 * np.arange(B)),
            ("previous", lambda B: np.maximum(np.arange(B) - 1, 0)),
        ):
            enter(
                f"{what} of the {order} sequence",
                f"every sequence reads the {what} of the {order}",
                _of_sequence(source, what),
            )
    enter(
        "keys and values of the first sequence",
        "every sequence reads the keys and values of the first",
        arrays(lambda q, k, v: None if len(k) < 2 else (q, k[[0] * len(k)], v[[0] * len(v)])),
    )
    _channels()


def _keys_of_first() -> Twist:
    return arrays(lambda q, k, v: None if k.shape[1] == 1 else (q, k[:, [0] * k.shape[1]], v))


def _values_moved(by: int) -> tuple[Twist, Twist]:
    """Take the value of another key; behind the last one, that of the first, or zeros."""

    def moved(v: Array) -> Array:
        rolled = np.roll(v, by, 2)
        rolled[:, :, -1 if by < 0 else 0] = 0
        return rolled

    return arrays(lambda q, k, v: (q, k, np.roll(v, by, 2))), arrays(lambda q, k, v: (q, k, moved(v)))


def _exchanged(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array] | None:
    return (q, v, k) if k.shape == v.shape else None


def _of_sequence(source: Callable[[int], Array], what: str) -> Twist:
    def read(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array] | None:
        if len(k) < 2:
            return None
        order = source(len(k))
        return (q, k[order], v) if what == "keys" else (q, k, v[order])

    return arrays(read)


def _channels() -> None:
    """Products over some of the channels."""

    def first(n: Callable[[int], int]) -> Twist:
        def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
            D = p.q.shape[-1]
            if n(D) == D:
                return None
            k = np.where(np.arange(D) < n(D), decode(p.k, c.dtype), 0)
            return replace(p, k=encode(k, c.dtype, p.k.dtype == np.uint16)), c

        return Twist(twist)

    def up_to_multiple(n: int) -> Twist:
        return first(lambda D: D // n * n)

    def up_to(n: int) -> Twist:
        return first(lambda D: min(D, n))

    for n in (8, 16, 32):
        enter(
            f"channels after a multiple of {n} dropped",
            f"channels of q and k behind the last multiple of {n} are left out of the product",
            up_to_multiple(n),
        )
    for n in (32, 64, 128):
        enter(f"channels beyond {n} dropped", f"channels of q and k beyond {n} are left out of the product", up_to(n))


def _keys() -> None:
    def ends(x: View, p: Problem) -> Array:
        return np.asarray([[[[p.k.shape[2]]]]]) if x.lengths is None else x.lengths

    def kept(seen: Callable[[Array, Array], Array]) -> Twist:
        """Look only at those keys for which seen(j, number of keys) holds."""

        def other(x: View, p: Problem) -> View | None:
            only = seen(x.j, ends(x, p))
            if (only | (x.j >= ends(x, p))).all():
                return None
            return x.but(mask=only if x.mask is None else only & x.mask)

        return looks(other)

    enter("last key dropped", "the last key is dropped", kept(lambda j, n: j < n - 1))
    enter("first key dropped", "the first key is dropped", kept(lambda j, n: (j > 0) & (n > 0)))

    def of_tiles(b: int) -> None:
        enter(
            f"tail after a multiple of {b} dropped",
            f"keys behind the last whole tile of {b} are dropped",
            kept(lambda j, n: j < n // b * b),
        )
        enter(
            f"tail of one key after {b} dropped",
            f"a last tile of {b} that has one key only is dropped",
            kept(lambda j, n: j < n - (n % b == 1)),
        )
        enter(
            f"first key of every tile of {b} hidden",
            f"the first key of every tile of {b} but the first is hidden",
            kept(lambda j, n: ((j % b != 0) | (j == 0)) & (n > 0)),
        )

    def beyond(b: int) -> None:
        enter(f"keys beyond {b} dropped", f"keys beyond {b} are left out", kept(lambda j, n: (j < b) & (n > 0)))

    for b in TILES:
        of_tiles(b)
    for b in (128, 256, 512, 1024):
        beyond(b)
    for b in (8, *TILES):
        enter(
            f"padding to a multiple of {b} counts as keys",
            f"the zeros behind the last key, up to a multiple of {b}, count as keys",
            _with_padding(b),
        )


def _with_padding(b: int) -> Twist:
    """Let keys of zeros behind the last be seen: their scores are 0, and so are their values."""
    visible = ("mask", "bias", "window", "seqlens_k", "alibi_slopes", "causal", "dropout_mask")

    def twist(p: Problem, c: Contract) -> tuple[Problem, Contract] | None:
        missing = -p.k.shape[2] % b
        if not missing or p.do is not None or any(p.options.get(name) is not None for name in visible):
            return None
        sinks, extra = p.options.get("sinks"), np.log(missing)
        return p.with_options(sinks=np.full(p.q.shape[1], extra) if sinks is None else np.logaddexp(sinks, extra)), c

    return Twist(twist)


_arrays()
_keys()
