"""Kernels that are programs, in any language: arrays go in by standard input, results come out by standard output.

The bytes are described in `refattn.testing.adapters.protocol`. A program is started once and asked again and again; if
it dies, hangs or writes nonsense, that is the verdict on this call, and the next call starts it anew.
"""

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.adapters.common import (
    FORWARD,
    MOMENT,
    Kernel,
    input_names,
    manner_of_death,
    present,
    signature,
)
from refattn.testing.adapters.protocol import RESULTS, NotAMessage, encoded, packed, read
from refattn.testing.faults import KernelFault

SHOWN = 60  # bytes of nonsense that a message quotes
LAST_WORDS = 1000  # bytes of standard error


def from_subprocess(
    command: str | Sequence[str],
    *,
    options: Iterable[str] = (),
    timeout: float = 60.0,
    inputs: Sequence[str] | None = None,
) -> Kernel:
    """Return a kernel that asks a program, in any language.

    The program reads requests from its standard input and answers each on its standard output, as
    `refattn.testing.adapters.protocol` describes. It ends when its input does.

    Parameters
    ----------
    command : str or sequence of str
        The program and its arguments; a str is split as a shell would, but no shell runs.
    options : iterable of str
        The options that the program understands, such as ("causal", "window").
    timeout : float
        Seconds that it may take for one answer before it is killed.
    inputs : sequence of str, optional
        The names of the positional arrays; (q, k, v) or (do, q, k, v), according to their number, unless given.

    Returns
    -------
    callable
        The kernel. It raises KernelFault if the program dies, hangs, reports an error, or writes what is no answer. Its
        ``close()`` ends the program, which also happens when the kernel is no longer used.

    Raises
    ------
    FileNotFoundError
        If there is no such program.

    Examples
    --------
    >>> import sys
    >>> program = "from refattn.testing.adapters import serve; serve(lambda q, k, v: v)"
    >>> kernel = from_subprocess([sys.executable, "-c", program])
    >>> kernel(np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1, 2)))
    array([[[[1., 1.]]]])
    >>> kernel.close()
    """
    parts = shlex.split(command) if isinstance(command, str) else [os.fspath(part) for part in command]
    if not parts:
        raise ValueError("from_subprocess: the command is empty")
    if shutil.which(parts[0]) is None:
        raise FileNotFoundError(f"from_subprocess: there is no program {parts[0]!r}, or it may not be executed")
    program = Program(parts, timeout)

    def adapted(*arrays: Array, **given: Any) -> Any:
        names = input_names(arrays) if inputs is None else inputs
        request = packed(dict(zip(names, arrays, strict=True)), given)
        answer = program.ask(encoded(request))
        if "error" in answer:
            raise KernelFault(answer["error"].tobytes().decode("utf-8", "backslashreplace"))
        wanted = "dq" if "do" in names else "o"
        if inputs is None and wanted not in answer:
            raise KernelFault(f"the answer has no entry {wanted}; it has {', '.join(answer) or 'none at all'}")
        known = [name for name in RESULTS if name in answer]
        results = [answer[name] for name in (*known, *(name for name in answer if name not in RESULTS))]
        if arrays[0].dtype == np.uint16:  # bits of bfloat16 are answered as such
            results = [x.view(np.uint16) if x.dtype.name == "bfloat16" else x for x in results]
        return results[0] if len(results) == 1 else tuple(results)

    adapted.close = program.close  # type: ignore[attr-defined]
    return present(adapted, os.path.basename(parts[0]), signature(inputs or FORWARD, options))


class Program:
    """A program that is running, or will be when it is asked."""

    def __init__(self, command: Sequence[str], timeout: float):
        self._command, self._timeout = list(command), timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._stop: weakref.finalize[Any, Any] | None = None

    def ask(self, request: bytes) -> dict[str, Array]:
        """Send a request and return the entries of the answer."""
        with self._lock:
            process = self._running()
            try:
                return self._exchange(process, request)
            except BaseException:  # whatever it still writes must not be taken for the next answer
                self._end()
                raise

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> dict[str, Array]:
        talk = _Talk(process, request, time.monotonic() + self._timeout)
        try:
            answer = read(talk)
            talk.finish()
        except TimeoutError:
            raise KernelFault(f"no answer within {self._timeout:g} s") from None
        except NotAMessage as error:
            raise KernelFault(self._what_is_wrong(process, talk, error)) from None
        if answer is None:
            raise KernelFault(self._died(process))
        return answer

    def close(self) -> None:
        """End the program."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the program runs
            pipe = subprocess.PIPE
            try:  # in a session of its own, so that its children can be killed with it
                process = subprocess.Popen(
                    self._command, stdin=pipe, stdout=pipe, stderr=errors, bufsize=0, start_new_session=True
                )
            except OSError as error:
                errors.close()
                raise OSError(f"from_subprocess: cannot run {self._command[0]!r}: {error}") from error
            self._process, self._errors = process, errors
            self._stop = weakref.finalize(self, _stop, process, errors, os.getpid())
        return self._process

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._process = self._errors = self._stop = None

    def _what_is_wrong(self, process: subprocess.Popen[bytes], talk: "_Talk", error: NotAMessage) -> str:
        """Say what came instead of an answer."""
        if error.start:
            start = (error.start + talk.rest())[:SHOWN]
            end = f"; {self._died(process)}" if talk.ended else ""
            return f"wrote to standard output what is no answer: {start!r}{end}"
        return f"{self._died(process)}, in the middle of its answer" if error.cut else f"wrote a broken answer: {error}"

    def _died(self, process: subprocess.Popen[bytes]) -> str:
        """Say how a program ended whose output did, with the last that it said."""
        try:
            status = manner_of_death(process.wait(timeout=1))
        except subprocess.TimeoutExpired:
            status = "it closed its standard output and ran on"
        words = b""
        if self._errors is not None:
            size = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, size - LAST_WORDS))
            words = self._errors.read()
        lines = words.decode("utf-8", "backslashreplace").strip().splitlines()[-5:]
        return f"the program died: {status}" + (f"; its last words: {' | '.join(lines)}" if lines else "")


def _stop(process: subprocess.Popen[bytes], errors: IO[bytes], owner: int) -> None:
    """End a program: by the end of its input, or else by force. A forked child leaves it to its parent."""
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    errors.close()


class _Talk:
    """One request and its answer, sent and received side by side, so that neither side waits for the other forever."""

    def __init__(self, process: subprocess.Popen[bytes], request: bytes, deadline: float):
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._pending, self._deadline = memoryview(request), deadline
        self._buffer = bytearray()
        self.ended = False

    def read(self, n: int, /) -> bytes:
        """Return up to n bytes of the answer, none at its end."""
        while not self._buffer and not self.ended:
            self._step(self._deadline)
        piece = bytes(self._buffer[:n])
        del self._buffer[:n]
        return piece

    def finish(self) -> None:
        """Send what is left of the request, and see that nothing came after the answer."""
        while self._pending and not self.ended:
            self._step(self._deadline)
        if self._buffer:
            raise NotAMessage("there are bytes after the answer", self.read(SHOWN))

    def rest(self) -> bytes:
        """Return what else comes within a moment."""
        until = time.monotonic() + MOMENT
        while len(self._buffer) < SHOWN and not self.ended and time.monotonic() < until:
            self._step(until + MOMENT)
        return bytes(self._buffer)

    def _step(self, deadline: float) -> None:
        """Wait until bytes can be sent or have come, and move them."""
        left = deadline - time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if self._pending:
                selector.register(self._in, selectors.EVENT_WRITE)
            ready = [key.fd for key, _ in selector.select(min(MOMENT, max(0.0, left)))]
        if not ready and left <= 0:
            raise TimeoutError
        if self._in in ready:
            try:
                self._pending = self._pending[os.write(self._in, self._pending[:65536]) :]
            except BrokenPipeError:  # it reads no more; what it still writes, or its death, says why
                self._pending = memoryview(b"")
        if self._out in ready:
            piece = os.read(self._out, 1 << 20)
            self._buffer += piece
            self.ended = not piece
