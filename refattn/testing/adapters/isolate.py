"""A Python kernel in a process of its own: a crash of its compiled code is one verdict and not the end of the run.

The process is a fork, so that the kernel need not be importable or picklable; arrays are sent with their strides.
"""

import faulthandler
import inspect
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.adapters.common import MOMENT, Kernel, Witness, input_names, manner_of_death, name_of, present
from refattn.testing.adapters.dlpack import to_numpy
from refattn.testing.faults import KernelFault

POISONED = 1 << 26  # bytes up to which the gaps of a strided array are filled, and not left to lazy memory


def isolated(kernel: Kernel, timeout: float = 60.0) -> Kernel:
    """Return a kernel that runs in a process of its own, where it may crash or hang.

    The process lives for many calls and is started anew after a crash. What the kernel changes in Python, such as a
    counter, changes there. Kernels that use a GPU must not have been called before: CUDA does not survive a fork.

    Parameters
    ----------
    kernel : callable
        On NumPy arrays; what it returns goes through `to_numpy`.
    timeout : float
        Seconds that a call may take before the process is killed.

    Returns
    -------
    callable
        The same kernel. It raises KernelFault if the process dies or gives no answer, or the kernel writes to its
        arguments, and otherwise what the kernel raises. Its ``close()`` ends the process, which also happens when the
        kernel is no longer used.

    Raises
    ------
    RuntimeError
        On platforms without fork.

    Examples
    --------
    >>> import os
    >>> kernel = isolated(lambda q, k, v: os.abort())
    >>> kernel(np.ones(1), np.ones(1), np.ones(1))
    Traceback (most recent call last):
    refattn.testing.faults.KernelFault: the kernel died: SIGABRT
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError(
            "isolated: this platform has no fork; make the kernel a program with serve, and use from_subprocess"
        )
    worker = Worker(kernel, timeout)

    def adapted(*arrays: Array, **options: Any) -> Any:
        return worker.ask(arrays, options)

    adapted.close = worker.close  # type: ignore[attr-defined]
    try:
        shown = inspect.signature(kernel)
    except (TypeError, ValueError):  # some builtins have no signature
        shown = None
    return present(adapted, name_of(kernel), shown)


class Worker:
    """A process that calls one kernel whenever it is asked."""

    def __init__(self, kernel: Kernel, timeout: float):
        self._kernel, self._timeout = kernel, timeout
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._line: Connection | None = None
        self._stop: weakref.finalize[Any, Any] | None = None

    def ask(self, arrays: Sequence[Array], options: dict[str, Any]) -> Any:
        """Call the kernel there, and return or raise what it does."""
        with self._lock:
            process, line = self._running()
            request = [_flat(x) for x in arrays], {name: _flat(x) for name, x in options.items()}
            try:
                line.send(request)
                deadline = time.monotonic() + self._timeout
                while not line.poll(min(MOMENT, max(0.0, deadline - time.monotonic()))):
                    if time.monotonic() > deadline:
                        raise KernelFault(f"no answer within {self._timeout:g} s")
                raised, result = line.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                process.join(1)
                status = manner_of_death(process.exitcode or 0)
                self._end()
                raise KernelFault(f"the kernel died: {status}") from None
            except BaseException:  # nobody waits any more for the answer, which must not be taken for the next one
                self._end()
                raise
        if raised:
            raise pickle.loads(result)
        return result

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> tuple[BaseProcess, Connection]:
        if self._process is None or self._line is None:
            context = multiprocessing.get_context("fork")
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(self._kernel, here, there), daemon=True)
            with warnings.catch_warnings():  # of threads that do not come along: the child calls nothing but the kernel
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            there.close()  # only the child may hold this end, so that its death ends the line
            self._process, self._line = process, here
            self._stop = weakref.finalize(self, _stop, process, here, os.getpid())
        return self._process, self._line

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._process = self._line = self._stop = None


def _stop(process: BaseProcess, line: Connection, owner: int) -> None:
    """End a process by force; a forked child leaves it to its parent."""
    if os.getpid() != owner:
        return
    line.close()
    process.kill()
    process.join()
    process.close()


def _work(kernel: Kernel, parents: Connection, line: Connection) -> None:
    """Answer requests until the other side is gone."""
    parents.close()
    faulthandler.disable()  # the parent reports a crash
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and decides when to stop
    while True:
        try:
            flat_arrays, flat_options = line.recv()
        except EOFError:
            return
        try:
            arrays = [_rebuilt(x) for x in flat_arrays]
            options = {name: _rebuilt(x) for name, x in flat_options.items()}
            names = input_names(arrays) if len(arrays) in (3, 4) else tuple(map(str, range(len(arrays))))
            witness = Witness(dict(zip(names, arrays, strict=True)) | options)
            result = to_numpy(kernel(*arrays, **options))
            witness.check()
            line.send((False, result))
        except Exception as error:  # raised again on the other side
            line.send((True, _pickled(error)))


def _pickled(error: Exception) -> bytes:
    """Return the exception as bytes from which it can be made again, or one that has its message."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # any class may define its own way to be pickled
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data


class _Flat:
    """An array as its numbers and its strides."""

    def __init__(self, x: Array):
        self.values = np.array(x, order="C")
        self.shape, self.strides, self.writeable = x.shape, x.strides, x.flags.writeable
        reach = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True) if n]
        self.before = -sum(step for step in reach if step < 0)
        self.extent = self.before + sum(step for step in reach if step > 0) + x.itemsize
        self.shift = x.ctypes.data % x.itemsize  # of an array that is not aligned


def _flat(x: Any) -> Any:
    return _Flat(x) if isinstance(x, np.ndarray) else x


def _rebuilt(flat: Any) -> Any:
    """Return the array with the strides that it had, NaN in its gaps."""
    if not isinstance(flat, _Flat):
        return flat
    size = flat.extent + flat.shift
    memory = np.full(size, 0xFF, np.uint8) if size < POISONED else np.zeros(size, np.uint8)
    start = flat.shift + flat.before
    x: Array = np.ndarray(flat.shape, flat.values.dtype, memory.data, start, flat.strides)
    np.copyto(x, flat.values)
    x.flags.writeable = flat.writeable
    return x
