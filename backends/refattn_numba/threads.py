"""Run a kernel on several threads: each takes the next item of work until none is left.

Kernels release the GIL and share nothing but a counter, and every item writes its own part of the result, so results do
not depend on how many threads there are. Plain Python threads do: no threading layer, safe from any thread of the
caller, and nothing happens before the first call.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SMALL = 4_000_000  # multiply-adds below which waking another thread costs more than it saves

_threads = 0
_here = threading.local()  # .alone: this thread is one of those that `deal` gives whole tasks to
_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def get_num_threads() -> int:
    """Return how many threads kernels use: REFATTN_NUM_THREADS, or one per processor this process may use."""
    global _threads
    if _threads == 0:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        text = os.environ.get("REFATTN_NUM_THREADS") or str(available)
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"REFATTN_NUM_THREADS is {text!r}; wanted a positive integer")
        _threads = int(text)
    return _threads


def set_num_threads(n: int) -> None:
    """Set how many threads kernels use from now on."""
    global _threads
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: {n!r}; wanted a positive integer")
    _threads = n


def run(kernel: Callable[..., None], items: int, work: float, space: int, dtype: Any, *args: Any) -> None:
    """Call ``kernel(counter, items, workspace, *args)`` on as many threads as the work is worth.

    Parameters
    ----------
    kernel : compiled function
        Takes item numbers from ``simd.fetch_add(counter)`` until they reach `items`.
    items : int
        How many there are.
    work : float
        Multiply-adds of all of them.
    space, dtype
        How many numbers of which dtype the workspace of each thread holds; its start is aligned to 64 bytes.
    *args
        Passed on.
    """
    if items == 0:
        return
    counter = np.zeros(1, np.int64)
    alone = work < SMALL or getattr(_here, "alone", False)
    _together(
        lambda: kernel(counter, items, aligned(space, dtype), *args), 1 if alone else min(get_num_threads(), items)
    )


def deal(task: Callable[[int], None], works: list[float]) -> None:
    """Call ``task(n)`` for each n, of `works[n]` multiply-adds: the long ones in turn, the others side by side.

    A task is long if the threads could not share out the rest evenly beside it; what it launches may use all threads.
    What the others launch runs on the thread that got them. Which is which shows in the time alone.
    """
    order = sorted(range(len(works)), key=lambda n: -works[n])
    threads, total = get_num_threads(), sum(works)
    long = sum(2 * threads * work > total for work in works)
    rest = total - sum(works[n] for n in order[:long])
    if threads == 1 or rest < SMALL or getattr(_here, "alone", False):
        long = len(order)
    for n in order[:long]:
        task(n)
    waiting = iter(order[long:])
    lock = threading.Lock()

    def work_off() -> None:
        _here.alone = True
        try:
            while True:
                with lock:
                    n = next(waiting, None)
                if n is None:
                    return
                task(n)
        finally:
            _here.alone = False

    if long < len(order):
        _together(work_off, min(threads, len(order) - long))


def _together(work: Callable[[], None], threads: int) -> None:
    """Call `work` on this thread and on `threads` - 1 others, and wait for all of them."""
    helpers = []
    for _ in range(threads - 1):
        try:
            helpers.append(_executor().submit(work))
        except RuntimeError:  # the interpreter is shutting down and starts no more threads: fewer do the same
            break
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


def aligned(size: int, dtype: Any) -> Any:
    """Return an uninitialised array of `size` numbers that starts at a multiple of 64 bytes."""
    nbytes = size * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype)


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="refattn")
        return _pool


def _forget() -> None:
    """Start anew in a forked child, which has no threads of its parent."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
