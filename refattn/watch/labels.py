"""What the labels of metrics may say: fixed sets, so that no input of a service makes a new series."""

from collections.abc import Sequence
from typing import Any

from refattn.costs.landmarks import Linformer, Nystrom
from refattn.costs.names import MECHANISMS, mechanism_named, unknown
from refattn.costs.names import PHASES as PHASES  # what the label phase may say
from refattn.costs.recurrent import WORK
from refattn.dispatch import backends

COMPONENTS = ("attention", "projection", "ffn", "norm", "embedding", "head", "other")
MIXED = "mixed"
"""The mechanism of a model whose layers do not share one."""


def mechanisms() -> list[str]:
    """Return what the label ``mechanism`` may say.

    Examples
    --------
    >>> [name for name in mechanisms() if "mamba" in name]
    ['mamba', 'mamba2']
    """
    named = {make().name for make in MECHANISMS.values()}
    return sorted({*named, *WORK, Linformer.name, Nystrom.name, MIXED})


def one_of(kind: str, name: Any, known: Sequence[str]) -> str:
    """Return `name`, or raise LookupError with the nearest of those known.

    Examples
    --------
    >>> one_of("phase", "prefil", PHASES)
    Traceback (most recent call last):
    LookupError: no phase 'prefil'; did you mean prefill?
    """
    if not isinstance(name, str) or name not in known:
        raise unknown(kind, name, known)
    return name


def backend_label(name: Any) -> str:
    """Return a backend's name, or raise LookupError; "auto" says not who computes."""
    return one_of("backend", name, backends())


def mechanism_label(given: Any, model: Any = None) -> str:
    """Return a mechanism's own name; of a model, unless one is given, that of all its layers, or "mixed".

    Examples
    --------
    >>> mechanism_label("mla"), mechanism_label(None)
    ('latent', 'softmax')
    """
    if given is None and model is not None:
        found = {layer.name for layer in model.mechanism}
        return one_of("mechanism", found.pop() if len(found) == 1 else MIXED, mechanisms())
    return one_of("mechanism", MIXED if given == MIXED else mechanism_named(given).name, mechanisms())
