"""Calls of a kernel under guard: what it raises, returns, writes and prints is looked at, and it must return in time.

A call runs in a thread of its own, so that one that hangs costs its time limit and no more; the thread is asked to stop
and left alone. What crashes the process needs a process of its own: see `refattn.testing.isolated`.
"""

import contextlib
import contextvars
import ctypes
import io
import os
import queue
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from refattn.arrays import Array
from refattn.testing.contract import Contract
from refattn.testing.faults import KernelFault
from refattn.testing.formats import decode

TIMEOUT = 20.0
PATIENCE = 25.0  # after a kernel has hung once: this many times the slowest good call


class Call(Protocol):
    """One call of a kernel: a `Problem` of attention, or of another family."""

    def arguments(self) -> list[Array]:
        """Return fresh arrays, in the order in which the kernel takes them."""

    def fresh_options(self) -> dict[str, Any]:
        """Return the keywords, their arrays fresh."""

    def results(
        self, several: list[Any], contract: Contract
    ) -> dict[str, tuple[tuple[int, ...], tuple[np.dtype[Any], ...]]]:
        """Return name, shape and the dtypes allowed of each result; raise KernelFault if there are too many or few.

        It may take a None out of `several`: a gradient of what was not given.
        """


class Hang(KernelFault):
    """A kernel did not come back in time."""


class Output:
    """The arrays that a call returned, by name."""

    def __init__(self, parts: dict[str, Array], contract: Contract) -> None:
        self.parts, self.contract = parts, contract

    def __getitem__(self, name: str) -> Array:
        """Return one part as numbers in float64 (long double for float64)."""
        x = self.parts[name]
        wide = np.longdouble if self.contract.dtype == "float64" else np.float64
        coded = self.contract.dtype if x.dtype == np.uint16 else x.dtype.name
        return decode(x, coded, wide)

    def bits(self, name: str) -> Array:
        """Return one part as integers, for a comparison that no rounding excuses; every NaN has the same."""
        x = np.ascontiguousarray(self.parts[name])
        if x.dtype != np.uint16:
            x = np.where(x != x, np.array(np.nan, x.dtype), x)
        return x.view(f"u{x.dtype.itemsize}")


class Session:
    """One kernel, the contract it is held to, and the seed of what is drawn."""

    def __init__(self, kernel: Callable[..., Any], contract: Contract, seed: int = 0, timeout: float = TIMEOUT) -> None:
        self.kernel, self.contract, self.seed, self.timeout = kernel, contract, seed, timeout
        self.slowest, self.hung = 0.0, False
        self._last: dict[str, Array] = {}
        self._worker = self._new_worker()

    def _new_worker(self) -> "_Worker":
        worker = _Worker()
        weakref.finalize(self, worker.stop)
        return worker

    def takes(self, option: str) -> bool:
        """Say whether the option reaches the kernel."""
        return option in (self.contract.options or ()) or option in self.contract.always

    def call(self, problem: Call) -> Output:
        """Call the kernel on fresh copies and return what it returned; raise KernelFault if that is no result."""
        arrays, options = problem.arguments(), problem.fresh_options()
        passed = {name: x for name, x in options.items() if name in (self.contract.options or ())}
        given = [*arrays, *(x for x in passed.values() if isinstance(x, np.ndarray))]
        before = [_bytes(x) for x in given]
        limit = self.timeout if not self.hung else min(self.timeout, max(1.0, PATIENCE * self.slowest))
        start = time.perf_counter()
        try:
            result = self._worker.run(lambda: self.kernel(*arrays, **passed), limit)
        except Hang:
            self.hung, self._worker = True, self._new_worker()
            raise
        self.slowest = max(self.slowest, time.perf_counter() - start)
        if before != [_bytes(x) for x in given]:
            raise KernelFault("wrote to an input, or to the memory around it")
        output = self.checked(result, problem, arrays)
        for name, x in output.parts.items():
            if any(np.may_share_memory(x, y) and np.shares_memory(x, y) for y in self._last.values()):
                raise KernelFault(f"{name} lies in the memory of the result of the call before")
        self._last = output.parts
        return output

    def checked(self, result: Any, problem: Call, arrays: list[Array]) -> Output:
        """Return a result by the names of its parts; raise KernelFault unless shapes and dtypes are those wanted."""
        several = list(result) if isinstance(result, tuple | list) else [result]
        parts, wanted = {}, problem.results(several, self.contract)
        for (name, (shape, dtypes)), given in zip(wanted.items(), several, strict=False):
            parts[name] = x = _as_array(name, given)
            if x.shape != shape:
                raise KernelFault(f"{name} has shape {x.shape}; wanted {shape}")
            if x.dtype not in dtypes:
                raise KernelFault(f"{name} has dtype {x.dtype}; wanted {dtypes[0]}")
            if any(np.may_share_memory(x, y) and np.shares_memory(x, y) for y in arrays):
                raise KernelFault(f"{name} is a view of an input")
        return Output(parts, self.contract)


def _as_array(name: str, x: Any) -> Array:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, list | tuple | int | float | complex | str) or x is None:
        raise KernelFault(f"{name} is {type(x).__name__}; wanted an array")
    from refattn.testing.adapters.dlpack import to_numpy

    try:
        converted = to_numpy(x)
    except TypeError as error:
        raise KernelFault(f"{name} is {type(x).__name__}; wanted an array ({error})") from None
    if not isinstance(converted, np.ndarray):
        raise KernelFault(f"{name} is {type(x).__name__}; wanted an array")
    return converted


def _bytes(x: Array) -> bytes:
    whole: Any = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.tobytes() if whole.nbytes < 2**28 else x.tobytes()


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Collect what is written to standard output, by Python or by native code; yields a function that returns it."""
    text, seen = io.StringIO(), ""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1)
        try:
            os.dup2(file.fileno(), 1)
            with contextlib.redirect_stdout(text):
                yield lambda: seen
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            seen = text.getvalue() + file.read().decode(errors="replace")


class _Worker:
    """A thread that calls one function after another, so that a call can be given up."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, job: Callable[[], Any], timeout: float) -> Any:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="refattn-kernel")
            self._thread.start()
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._jobs.put((contextvars.copy_context(), job, done))
        try:
            result, error = done.get(timeout=timeout)
        except queue.Empty:
            number = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))
            self.stop()
            raise Hang(f"did not return within {timeout:g} s") from None
        if isinstance(error, KernelFault):
            raise error
        if isinstance(error, KeyboardInterrupt):
            raise error
        if error is not None:
            text = " ".join(str(error).split())
            raise KernelFault(f"raised {type(error).__name__}: {text[:300]}") from error
        return result

    def stop(self) -> None:
        """Let the thread end after what it is at."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (asked := self._jobs.get()) is not None:
            context, job, done = asked
            try:
                done.put((context.run(_quietly, job), None))
            except BaseException as error:  # whatever it is, it is the kernel's, and the caller hears of it
                done.put((None, error))


def _quietly(job: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):
        return job()
