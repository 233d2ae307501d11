"""Send a call to the backend that the caller named. Nothing is guessed and nothing falls back.

A backend is any object (usually a module) with functions of the same names as the reference. Installed ones announce
themselves under the entry-point group ``refattn.backends``; `register` adds one for this process. What a backend may
say about itself, each optional:

- ``LIMITS``: a dict from ``"operation"`` or ``"operation(argument)"`` to the reason why that is not covered;
- ``RANK``: an int, how fast it is beside the others (the reference is 0); ``backend="auto"`` asks the highest first;
- ``unavailable()``: why it cannot run on this machine, or None.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "numpy"
AUTO = "auto"
GROUP = "refattn.backends"

OPERATIONS: dict[str, Callable[..., Any]] = {}  # name -> the plain NumPy function
_registered: dict[str, object] = {}
_default: ContextVar[str] = ContextVar("refattn_backend", default=REFERENCE)
_log = logging.getLogger("refattn")


class Unsupported(NotImplementedError):
    """The backend does not cover this call; the message says what, why, and who does."""


def dispatched(check: Callable[..., None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a reference function its ``backend=`` switch; `check` refuses bad arguments before any backend sees them.

    `check` takes the arguments of the function, all but ``backend``, and raises what the caller shall see.
    """

    def decorate(reference: Callable[P, R]) -> Callable[P, R]:
        name = reference.__name__
        OPERATIONS[name] = reference
        keywords = inspect.signature(reference).parameters.keys()

        @wraps(reference)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given: Any = kwargs.pop("backend", None)
            backend = _default.get() if given is None else given
            if backend != REFERENCE:
                known(backend)
            for argument, value in kwargs.items():
                if isinstance(value, np.integer):  # its arithmetic would wrap, or turn indices into floats
                    kwargs[argument] = int(value)
            if not kwargs.keys() <= keywords:
                _bind(name, args, kwargs)
            try:
                check(*args, **kwargs)
            except TypeError:
                _bind(name, args, kwargs)  # if the arguments do not even fit the signature, say that instead
                raise
            if backend == AUTO:
                explanation = _explain(name, _bind(name, args, kwargs))
                _log.debug("%s", explanation)
                backend = explanation.chosen
            if backend == REFERENCE:
                # What the reference calls inside is the reference too; NaN and infinities are values like any other.
                with use_backend(REFERENCE), np.errstate(all="ignore"):
                    return reference(*args, **kwargs)
            implementation = load(backend)
            if _may_refuse(implementation, name):
                arguments = _bind(name, args, kwargs)
                reason = why_not(backend, name, arguments)
                if reason is not None:
                    raise Unsupported(_refusal(backend, name, arguments, reason))
            with np.errstate(all="ignore"):
                return getattr(implementation, name)(*args, **kwargs)

        return call

    return decorate


def register(name: str, backend: object) -> None:
    """Add a backend for this process (notebooks, tests), or replace one of the same name.

    Parameters
    ----------
    name : str
        What callers will write in ``backend=``; "numpy" and "auto" are taken.
    backend : object
        Anything with functions named as the operations; see the module's docstring.
    """
    if name in (REFERENCE, AUTO):
        raise ValueError(f"register: the name {name!r} is taken")
    if not isinstance(name, str) or not name:
        raise ValueError(f"register: name is {name!r}; wanted a text")
    _registered[name] = backend


def unregister(name: str) -> None:
    """Forget a backend that `register` added."""
    _registered.pop(name, None)


def backends() -> list[str]:
    """Return the names that ``backend=`` accepts besides "auto". Imports no backend, so one may still fail to load."""
    return [REFERENCE, *sorted({*_registered, *_announced()})]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every call in the block that names none (this thread and context only).

    Examples
    --------
    >>> with use_backend("numpy"):
    ...     pass
    """
    known(name)
    token = _default.set(name)
    try:
        yield
    finally:
        _default.reset(token)


def known(name: str) -> None:
    """Raise LookupError unless `name` is a backend's name or "auto"."""
    if not isinstance(name, str) or (
        name not in (REFERENCE, AUTO) and name not in _registered and name not in _announced()
    ):
        raise LookupError(f"no backend {name!r}; there are: {', '.join(backends())}, and {AUTO!r}")


def load(name: str) -> object:
    """Return the backend's module, imported on first use; ImportError says what to install."""
    known(name)
    if name not in _registered:
        entry = _announced()[name]
        try:
            _registered[name] = entry.load()
        except ImportError as error:
            raise ImportError(f"backend {name!r} cannot be loaded: {error}. {_install_hint(entry)}") from error
        except Exception as error:  # whatever a foreign module does when it is imported
            raise ImportError(f"backend {name!r} fails to load: {type(error).__name__}: {error}") from error
    return _registered[name]


def why_not(backend: str, operation: str, arguments: dict[str, Any]) -> str | None:
    """Return why `backend` does not cover a call of `operation` with these arguments, or None if it does."""
    if backend == REFERENCE:
        return None
    module = load(backend)
    limits: dict[str, str] = getattr(module, "LIMITS", {})
    if not hasattr(module, operation):
        return limits.get(operation, f"it has no {operation}")
    for argument, value in arguments.items():
        reason = limits.get(f"{operation}({argument})")
        if reason is not None and value is not None and value is not False:
            return f"{argument}=: {reason}"
    unavailable = getattr(module, "unavailable", None)
    return None if unavailable is None else unavailable()


@dataclass(frozen=True)
class Explanation:
    """What ``backend="auto"`` would choose for one call, and why not the others."""

    operation: str
    chosen: str
    reasons: dict[str, str | None]
    """backend -> why not, or None where it covers the call; fastest first."""

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.chosen} is the fastest backend here that covers this call"]
        lines += [f"  {name:<12} {reason or 'covers it'}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def explain(operation: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend ``backend="auto"`` takes for this call, without running it.

    The rule: of the backends that can be loaded and run here and cover the call, the one with the highest ``RANK``
    (numpy has 0, and covers everything).

    Parameters
    ----------
    operation : str or function
        An operation, or its name.
    *args, **kwargs
        The arguments of the call, as one would write them.

    Returns
    -------
    Explanation
        Prints as a list of the backends with the reason against each.

    Raises
    ------
    LookupError
        For an unknown operation, naming those there are.
    TypeError
        For arguments that do not fit the operation.
    """
    name = operation if isinstance(operation, str) else getattr(operation, "__name__", repr(operation))
    if name not in OPERATIONS:
        raise LookupError(f"no operation {name!r}; there are: {', '.join(sorted(OPERATIONS))}")
    return _explain(name, _bind(name, args, kwargs))


def _explain(operation: str, arguments: dict[str, Any]) -> Explanation:
    ranks: dict[str, int] = {}
    reasons: dict[str, str | None] = {}
    for backend in backends():
        try:
            ranks[backend] = 0 if backend == REFERENCE else getattr(load(backend), "RANK", 0)
            reasons[backend] = why_not(backend, operation, arguments)
        except ImportError as error:
            ranks[backend], reasons[backend] = -1, str(error)
    order = sorted(reasons, key=lambda backend: -ranks[backend])
    chosen = next(backend for backend in order if reasons[backend] is None)
    return Explanation(operation, chosen, {backend: reasons[backend] for backend in order})


def _bind(operation: str, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; TypeError in the name of the operation if they do not fit."""
    try:
        return inspect.signature(OPERATIONS[operation]).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{operation}: {error}") from None


def _may_refuse(module: object, operation: str) -> bool:
    """Return whether `why_not` could have anything to say: it is not asked on every call."""
    limits: dict[str, str] = getattr(module, "LIMITS", {})
    some = any(entry.startswith(f"{operation}(") for entry in limits)
    return some or not hasattr(module, operation) or hasattr(module, "unavailable")


def _refusal(backend: str, operation: str, arguments: dict[str, Any], reason: str) -> str:
    covering = []
    for other in backends():
        try:
            if other != backend and why_not(other, operation, arguments) is None:
                covering.append(other)
        except ImportError:
            continue  # not installed: no help to the caller now
    return f"backend {backend!r} does not cover this call of {operation}: {reason}. Covered by: {', '.join(covering)}"


@cache
def _announced() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # a third of this package's import time

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if found.setdefault(entry.name, entry).value != entry.value:
            raise LookupError(
                f"two packages announce a backend {entry.name!r}: {found[entry.name].value}, {entry.value}"
            )
    return found


def _install_hint(entry: "EntryPoint") -> str:
    if entry.dist is None:
        return "Install the package it needs."
    extras = [extra.replace("_", "-") for extra in entry.dist.metadata.get_all("Provides-Extra") or []]
    extra = entry.name.replace("_", "-")
    target = f"{entry.dist.name}[{extra}]" if extra in extras else entry.dist.name
    return f'Install what it needs: python -m pip install "{target}"'
