"""A sweep of `refattn cost`: the same model at many lengths or batches."""

from dataclasses import replace
from typing import NamedTuple

from refattn.cli import cost_roofs
from refattn.cli.cost_model import LONGEST, Asked
from refattn.cli.cost_numbers import Number, cache_name, matrix_bytes, moved, step_flops
from refattn.costs.names import unknown

SWEPT = ("seq", "batch")
MOST = 64
"""Points of a sweep."""

AROUND = (128, 4)
"""Without --sweep curves are drawn from 128 tokens to 4 times the call's."""


class Point(NamedTuple):
    """One call of a sweep."""

    batch: int
    seq: int
    numbers: dict[str, Number]
    flops: dict[str, int]
    bound_by: str | None = None
    roofs: dict[str, Number] | None = None
    """Seconds of each."""


def read(text: str) -> tuple[str, list[int]]:
    """Return what is swept, and its values in order.

    Raises
    ------
    ValueError, LookupError
        For a text that is no sweep.

    Examples
    --------
    >>> read("seq=512..4096"), read("batch=1,8")
    (('seq', [512, 1024, 2048, 4096]), ('batch', [1, 8]))
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise ValueError(f"cost: --sweep is {text!r}; wanted such as seq=512..131072 or batch=1,8,64")
    if name not in SWEPT:
        raise unknown("sweep over", name, SWEPT)
    low, dots, high = values.partition("..")
    if dots:
        first, last = _integer(text, low), _integer(text, high)
        if last < first:
            raise ValueError(f"cost: --sweep is {text!r}; wanted the smaller end first")
        found = [*doubled(first, last)]
    else:
        found = sorted({_integer(text, value) for value in values.split(",")})
    if len(found) > MOST:
        raise ValueError(f"cost: --sweep has {len(found)} points; wanted at most {MOST}")
    return name, found


def _integer(text: str, value: str) -> int:
    if not value.strip().isdecimal() or int(value) < 1:
        raise ValueError(f"cost: --sweep is {text!r}; wanted integers of 1 or more, not {value.strip()!r}")
    return int(value)


def doubled(first: int, last: int) -> list[int]:
    """Return first, twice it, and so on, up to last, which is the end whether or not it is met.

    Examples
    --------
    >>> doubled(512, 3000)
    [512, 1024, 2048, 3000]
    """
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return found if found[-1] == last else [*found, last]


def around(asked: Asked) -> list[int]:
    """Return the lengths that are drawn about a call that is not swept."""
    low, times = AROUND
    last = max(low, min(asked.seq * times, LONGEST if asked.free_mask else asked.seq * times))
    return sorted({*doubled(low, last), asked.seq})


def points(asked: Asked, name: str, values: list[int]) -> list[Point]:
    """Return the count of each call."""
    return [_point(replace(asked, seq=n) if name == "seq" else replace(asked, batch=n)) for n in values]


def _point(asked: Asked) -> Point:
    m, call = asked.model, asked.call
    training = asked.phase == "train"
    flops = step_flops(asked)
    mixed = flops["scores"] + flops["values"]
    numbers = {
        "FLOPs": Number(flops["total"], "FLOP"),
        "attention": Number(100 * mixed / flops["total"], "%"),
        "scores, one layer": Number(matrix_bytes(asked), "B"),
    }
    if training:
        for recompute in ("none", "attention", "full"):
            kept = m.activation_bytes(asked.batch, asked.seq, recompute)
            numbers[f"activations, {recompute}"] = Number(kept, "B")
    elif asked.keeps:
        numbers[cache_name(m)] = Number(m.kv_cache_bytes(asked.batch, call.keys, asked.dtype), "B")
    if not asked.past:
        numbers["moved, flash"] = Number(moved(asked, "flash")["total"], "B")
        if not training and any(x.softmax for x in m.mechanism):
            numbers["moved, materialised"] = Number(moved(asked, "materialised")["total"], "B")
    if asked.hw is None:
        return Point(asked.batch, asked.seq, numbers, flops)
    name, least = cost_roofs.bound(asked)
    roofs = {roof: row[2] for roof, row in cost_roofs.times(asked).items()}
    return Point(asked.batch, asked.seq, numbers | {"at least": least}, flops, name, roofs)
