"""Mechanisms by name, and what to say of a name that is none: the nearest ones."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.receptance import Rwkv4, Rwkv6, Rwkv7
from refattn.costs.recurrent import WORK, DeltaNet, Gla, Recurrent
from refattn.costs.spaces import S4D, Convolution, Mamba, Mamba2
from refattn.masks import Mask, parse

MECHANISMS: dict[str, Callable[[], Mechanism]] = {
    "softmax": Softmax,
    "full": Softmax,
    "attention": Softmax,
    "latent": Latent,
    "mla": Latent,
    "gla": Gla,
    "gated_deltanet": DeltaNet,
    "kimi_delta": lambda: DeltaNet(channelwise=True),
    "mamba": Mamba,
    "mamba2": Mamba2,
    "s4d": S4D,
    "causal_conv1d": Convolution,
    "rwkv4": Rwkv4,
    "rwkv6": Rwkv6,
    "rwkv7": Rwkv7,
}


PHASES = ("prefill", "decode", "train")
"""What a pass may be: all tokens at once; one behind the others; forwards and backwards."""


def check_phase(operation: str, name: str, phase: str) -> None:
    """Raise ValueError unless `phase` is one of `PHASES`."""
    if phase not in PHASES:
        raise ValueError(f"{operation}: {name} is {phase!r}; wanted one of {', '.join(PHASES)}")


def mechanism_named(given: Any) -> Mechanism:
    """Return a `Mechanism` from one, a name of one, a mask or the text of one, or None for full attention.

    Raises
    ------
    LookupError
        For a text that is neither a mechanism nor a mask; the nearest names are offered.
    TypeError
        For anything else.

    Examples
    --------
    >>> mechanism_named("retention"), mechanism_named("window(255, 0)")
    (Recurrent(operation='retention', features=None, chunk=None), Softmax(window=None, mask=window(255, 0)))
    """
    if given is None:
        return Softmax()
    if isinstance(given, Mechanism):
        return given
    if isinstance(given, Mask):
        return Softmax(mask=given)
    if not isinstance(given, str):
        raise TypeError(f"Transformer: a mechanism is {type(given).__name__}; wanted a Mechanism, a name, or a mask")
    if given in MECHANISMS:
        return MECHANISMS[given]()
    if given in WORK:
        return Recurrent(given)
    if "(" in given:
        return Softmax(mask=parse(given))
    raise unknown("mechanism", given, [*MECHANISMS, *WORK])


def unknown(kind: str, name: str, known: Iterable[str]) -> LookupError:
    """Return the error for a name that is none of those known, with the nearest of them.

    Examples
    --------
    >>> unknown("model", "lama-3-8b", ["bert-base", "llama-3-8b"])
    LookupError("no model 'lama-3-8b'; did you mean llama-3-8b?")
    """
    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return LookupError(f"no {kind} {name!r}; {hint}")
