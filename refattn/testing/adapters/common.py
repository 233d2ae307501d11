"""What the adapters share: how a kernel says which options it takes, how a process died, who wrote to an argument."""

import inspect
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from refattn.testing.contract import ATTENTION_OPTIONS
from refattn.testing.faults import KernelFault

Kernel: TypeAlias = Callable[..., Any]

FORWARD = ("q", "k", "v")
BACKWARD = ("do", "q", "k", "v")
KNOWN = (*ATTENTION_OPTIONS, "dlse")
"""The options that an adapter looks for in a signature; dlse is one of backward kernels."""
MOMENT = 0.2
"""Seconds after which a wait looks up, so that the thread in which it happens can be stopped."""


def input_names(arrays: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of a kernel's positional arguments: three are of a forward kernel, four of a backward one."""
    if len(arrays) not in (len(FORWARD), len(BACKWARD)):
        raise TypeError(f"a kernel is called with q, k, v or with do, q, k, v; got {len(arrays)} arrays")
    return FORWARD if len(arrays) == len(FORWARD) else BACKWARD


def name_of(kernel: Any) -> str:
    """Return what a callable is called."""
    return str(getattr(kernel, "__name__", type(kernel).__name__))


def parameters_of(kernel: Kernel) -> tuple[bool, tuple[str, ...]]:
    """Return whether a kernel is a backward one, and the options of its signature, in the order of `KNOWN`."""
    try:
        parameters = list(inspect.signature(kernel).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return False, ()
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    backward = bool(parameters) and parameters[0].name == "do"
    return backward, tuple(name for name in KNOWN if takes_all or name in names)


def signature(inputs: Iterable[str], options: Iterable[str]) -> inspect.Signature:
    """Return the signature (inputs, *, options), each option None by default."""
    arrays = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in inputs]
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in options]
    return inspect.Signature([*arrays, *keywords])


def present(call: Any, name: str, shown: inspect.Signature | None) -> Kernel:
    """Give a callable the name and the signature under which it appears before the kit."""
    call.__name__ = call.__qualname__ = name
    if shown is not None:
        call.__signature__ = shown
    return call


def manner_of_death(status: int) -> str:
    """Return the signal that ended a process by name, or its exit status."""
    if status >= 0:
        return f"exit status {status}"
    names = {int(one): one.name for one in signal.Signals}
    return names.get(-status, f"signal {-status}")


class Witness:
    """Remembers the bits of arrays that a kernel may only read."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._before = {name: (x, x.tobytes()) for name, x in arrays.items() if isinstance(x, np.ndarray)}

    def check(self) -> None:
        """Raise if an array has changed since."""
        for name, (x, before) in self._before.items():
            if x.tobytes() != before:
                raise KernelFault(f"wrote to its argument {name}")
