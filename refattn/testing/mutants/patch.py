"""A mutant: a kernel of this folder with one place in its source patched.

DeMillo, Lipton and Sayward, "Hints on Test Data Selection", Computer, 1978: a test is as good as the small mistakes
that it notices.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

SOURCES: dict[str, tuple[str, str]] = {
    "attention": ("refattn.testing.mutants.kernel", "tiled_attention"),
    "attention_vjp": ("refattn.testing.mutants.backward", "tiled_attention_vjp"),
}
"""For each operation, the module of the correct kernel and the function's name there."""


@dataclass(frozen=True)
class Mutant:
    """One mistake in one place.

    Examples
    --------
    >>> mutant = Mutant("scale is forgotten", "semantics", "s *= seq.scale", "s *= 1.0", diagnosis="scale missing")
    >>> print(mutant.diff)
    -    s *= seq.scale
    +    s *= 1.0
    """

    name: str
    """What is wrong, as a sentence."""
    group: str
    """semantics, masks, layout, tiles, online_softmax, precision, sinks_splits_lse, state, nan, dropout, backward; or a
    group of another operation's catalogue."""
    old: str
    """A text that stands exactly once in the source of the correct kernel."""
    new: str
    """What stands there instead."""
    op: str = "attention"
    """The operation, one of `SOURCES`."""
    diagnosis: str | None = None
    """The short name of the right explanation, where the mistake is one of meaning."""
    equivalent: Mapping[str, str] = field(default_factory=dict, hash=False)
    """For each dtype in which nobody could tell the mutant from a correct kernel, why that is so."""

    @property
    def source(self) -> str:
        """The patched source.

        Raises
        ------
        ValueError
            If `old` does not stand exactly once in the source.
        """
        text = source(self.op)
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"mutant {self.name!r}: its old text stands {found} times in {SOURCES[self.op][0]}; wanted 1"
            )
        return text.replace(self.old, self.new)

    @property
    def diff(self) -> str:
        """The whole lines that go, marked with -, and those that come, marked with +."""
        text = source(self.op)
        start = text.index(self.old)
        head = text[text.rfind("\n", 0, start) + 1 : start]
        tail = text[start + len(self.old) :].split("\n", 1)[0]
        return "\n".join(
            f"{sign}{line}"
            for sign, changed in (("-", self.old), ("+", self.new))
            for line in f"{head}{changed}{tail}".split("\n")
        )

    def kernel(self, **fixed: Any) -> Callable[..., Any]:
        """Return the patched function in a fresh module, so that what it remembers between calls starts empty.

        Parameters
        ----------
        **fixed
            Keywords that hold in every call, such as ``tile_k=16``.
        """
        return function(self.op, _compiled(self.op, self.source, f"<mutant: {self.name}>"), fixed)


@functools.cache
def source(op: str) -> str:
    """Return the source of the operation's correct kernel."""
    if op not in SOURCES:
        raise ValueError(f"there are no mutants of {op!r}; wanted one of {', '.join(SOURCES)}")
    return inspect.getsource(importlib.import_module(SOURCES[op][0]))


def correct(op: str = "attention", **fixed: Any) -> Callable[..., Any]:
    """Return the kernel that the mutants of `op` are patches of, in a fresh module."""
    return function(op, _compiled(op, source(op), f"<the correct kernel of {op}>"), fixed)


def function(op: str, code: CodeType, fixed: Mapping[str, Any]) -> Callable[..., Any]:
    """Run the compiled source in a module of its own and return the kernel, with the keywords `fixed`."""
    name, kernel = SOURCES[op]
    module = ModuleType(name)
    exec(code, vars(module))
    return functools.partial(vars(module)[kernel], **fixed) if fixed else vars(module)[kernel]


@functools.cache
def _compiled(op: str, text: str, filename: str) -> CodeType:
    return compile(text, filename, "exec")
