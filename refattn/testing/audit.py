"""Test the tests: a test of attention kernels should notice each of the mutants of the kit.

DeMillo, Lipton and Sayward, "Hints on Test Data Selection", Computer, 1978.
"""

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from refattn.testing.audit_report import AuditReport
from refattn.testing.faults import KernelFault
from refattn.testing.formats import STORED
from refattn.testing.kit import name_of
from refattn.testing.loading import nearest
from refattn.testing.mutants import Mutant, correct, mutants
from refattn.testing.session import Hang, _Worker, captured_output

LONGEST = 600.0  # seconds for the correct kernel
UNNOTICED = ("Skipped", "XFailed")  # what pytest.skip and pytest.xfail raise


def audit(
    test_function: Callable[..., Any] | Sequence[Callable[..., Any]],
    op: str = "attention",
    dtype: str = "float32",
    groups: Sequence[str] | None = None,
    timeout: float | None = None,
    on_mutant: Callable[[Mutant, str | None], object] | None = None,
) -> AuditReport:
    """Run your test on kernels that are wrong in one place each, and say which it does not notice.

    Parameters
    ----------
    test_function : callable, or a list of them
        Takes a kernel, ``kernel(q, k, v, *, causal=False, window=None, ...) -> (o, lse)`` on NumPy arrays; for
        "attention_vjp" ``kernel(do, q, k, v, ...)``. It fails by raising something or by returning False. Of several
        tests, one has to notice.
    op : str
        "attention" or "attention_vjp".
    dtype : str
        In which the test calls the kernel: a mutant that nobody could tell from a correct kernel there does not count.
    groups : sequence of str, optional
        Only these groups of mutants, such as "masks" and "tiles".
    timeout : float, optional
        Seconds after which a test that does not end counts as failed; unless given, ten times what it takes on the
        correct kernel, and at least 5.
    on_mutant : function, optional
        Called with each mutant and what noticed it (None: nothing), for progress.

    Returns
    -------
    AuditReport
        ``killed`` and ``survived``; printed, it shows what was missed.

    Raises
    ------
    ValueError
        If a test fails on the correct kernel, does not take exactly a kernel, or for an unknown op, dtype or group.
    TypeError
        For what cannot be called.

    Examples
    --------
    >>> import numpy as np
    >>> def test(kernel):  # too kind: a single key, which gets all the weight
    ...     v = np.ones((1, 1, 1, 8), np.float32)
    ...     np.testing.assert_allclose(kernel(v, v, v)[0], v)
    >>> report = audit(test, groups=["dropout"])
    >>> report.headline
    'your suite (test) kills 0 of 10 mutants of attention in float32; it misses 10'
    """
    suite: list[Any] = list(test_function) if isinstance(test_function, list | tuple) else [test_function]
    if not suite:
        raise ValueError("audit: there is no test")
    tests = [(name_of(test), one_argument(test)) for test in suite]
    if dtype not in STORED:
        raise ValueError(f"audit: dtype is {dtype!r}; wanted one of {', '.join(STORED)}")
    chosen = mutants(op)
    known = list(dict.fromkeys(mutant.group for mutant in chosen))
    for group in known if groups is None else groups:
        if group not in known:
            raise ValueError(f"audit: {op} has no mutants of the group {group!r}{nearest(group, known)}")
    report = AuditReport(", ".join(name for name, _ in tests), op, dtype)
    start = time.perf_counter()
    bench = _Bench()
    limits = [bench.on_the_correct(name, test, op, timeout) for name, test in tests]
    for mutant in chosen:
        if groups is not None and mutant.group not in groups:
            continue
        if dtype in mutant.equivalent:
            report.equivalent.append(mutant)
            continue
        noticed = None
        for (name, test), limit in zip(tests, limits, strict=True):
            how = bench.notices(test, mutant.kernel(), limit)
            if how is not None:
                noticed = report.noticed[mutant.name] = f"{name}: {how}"
                break
        (report.survived if noticed is None else report.killed).append(mutant)
        if on_mutant is not None:
            on_mutant(mutant, noticed)
    report.seconds = time.perf_counter() - start
    return report


class _Bench:
    """Where tests run: in a thread that can be given up, quietly."""

    def __init__(self) -> None:
        self._worker = _Worker()

    def on_the_correct(self, name: str, test: Callable[[Any], Any], op: str, timeout: float | None) -> float:
        """Return the seconds that the test gets for a mutant; ValueError if it does not pass on the correct kernel."""
        start = time.perf_counter()
        how = self.notices(test, correct(op), LONGEST if timeout is None else timeout, skips=True)
        if how is not None:
            raise ValueError(f"audit: your test fails on the correct kernel: {name}: {how}")
        return max(5.0, 10 * (time.perf_counter() - start)) if timeout is None else timeout

    def notices(
        self, test: Callable[[Any], Any], kernel: Callable[..., Any], limit: float, skips: bool = False
    ) -> str | None:
        """Return how the test fails, or None; with `skips`, also that it does not run at all."""
        try:
            with captured_output(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = self._worker.run(lambda: test(kernel), limit)
        except Hang as hang:
            self._worker = _Worker()
            return str(hang)
        except KernelFault as fault:
            cause = fault if fault.__cause__ is None else fault.__cause__
            kind = type(cause).__name__
            if kind in UNNOTICED and not skips:
                return None
            first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
            return f"{kind}: {first[:160]}" if first else kind
        if result is None or (isinstance(result, bool) and result):
            return None
        if skips and result is not False:
            return f"it returned {type(result).__name__}; wanted an assert, or False for a failure"
        return f"returned {result!r}"[:160]


def one_argument(test: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the test as a function of the kernel alone; ValueError if it is none."""
    if not callable(test):
        raise TypeError(f"audit: the test is {type(test).__name__}; wanted a function that takes a kernel")
    name = name_of(test)
    if inspect.iscoroutinefunction(test) or inspect.isgeneratorfunction(test):
        raise ValueError(
            f"audit: {name} is a coroutine or a generator; wanted a function that asserts when it is called"
        )
    marks = getattr(test, "pytestmark", [])
    over = [arg for mark in marks if mark.name == "parametrize" for arg in _arguments(mark)]
    if any(arg != "kernel" for arg in over):
        raise ValueError(
            f"audit: {name} is parametrised over {', '.join(over)}; wanted a test of a kernel alone, such as "
            f"lambda kernel: {name}(kernel, ...)"
        )
    parameters = list(inspect.signature(test).parameters.values())
    if "." in name and parameters and parameters[0].name == "self":
        raise ValueError(f"audit: {name} is a method of a class; wanted a function that takes a kernel")
    single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in single if p.default is p.empty]
    if len(needed) > 1:
        others = ", ".join(other for other in needed if other != "kernel") if "kernel" in needed else ", ".join(needed)
        raise ValueError(f"audit: {name} takes {others} besides the kernel; wanted a test of a kernel alone")
    named = next((p for p in single if p.name == (needed[0] if needed else "kernel")), None)
    if named is None:
        raise ValueError(f"audit: {name} takes no kernel; wanted a test with one argument, the kernel to judge")
    if named.kind is named.POSITIONAL_ONLY:
        return test
    return lambda kernel: test(**{named.name: kernel})


def _arguments(mark: Any) -> list[str]:
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
