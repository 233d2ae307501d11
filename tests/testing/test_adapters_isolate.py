"""A kernel in a process of its own: the same answers, and a crash or a hang is one verdict."""

import ctypes
import gc
import inspect
import multiprocessing
import os
import sys
import time
import weakref

import ml_dtypes
import numpy as np
import pytest

from refattn.testing.adapters import KernelFault, isolated

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork"
)


@pytest.fixture
def alone():
    """Make isolated kernels that end with the test."""
    made = []

    def build(kernel, **options):
        made.append(isolated(kernel, **options))
        return made[-1]

    yield build
    for kernel in made:
        kernel.close()


def arrays(dtype=np.float32):
    return [np.arange(n, n + 6).reshape(1, 1, 2, 3).astype(dtype) for n in range(3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.uint16])
def test_it_answers_as_the_kernel_does(alone, dtype):
    def kernel(q, k, v, *, causal=False, bias=None):
        return (v + bias, k) if causal else v

    there = alone(kernel)
    q, k, v = arrays(dtype)
    assert there(q, k, v).dtype == dtype and (there(q, k, v) == v).all()
    o, lse = there(q, k, v, causal=True, bias=v)
    assert (o == v + v).all() and (lse == k).all()
    assert inspect.signature(there) == inspect.signature(kernel) and there.__name__ == "kernel"


def test_the_process_is_another_and_lives_on(alone):
    kernel = alone(lambda q, k, v: np.array(os.getpid()))
    first = kernel(*arrays())
    assert first != os.getpid() and first == kernel(*arrays())
    kernel.close()
    assert kernel(*arrays()) != first


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda: ctypes.string_at(0), "SIGSEGV"),
        (os.abort, "SIGABRT"),
        (lambda: os._exit(3), "exit status 3"),
    ],
)
def test_a_crash_is_one_verdict(alone, end, says):
    def kernel(q, k, v, *, causal=False):
        return end() if causal else v

    there = alone(kernel)
    for _ in range(2):
        with pytest.raises(KernelFault, match=f"^the kernel died: {says}$"):
            there(*arrays(), causal=True)
        assert (there(*arrays()) == arrays()[2]).all()


def test_a_hang_is_one_verdict(alone):
    def kernel(q, k, v, *, causal=False):
        while causal:
            time.sleep(1)
        return v

    there = alone(kernel, timeout=0.5)
    with pytest.raises(KernelFault, match=r"^no answer within 0.5 s$"):
        there(*arrays(), causal=True)
    assert (there(*arrays()) == arrays()[2]).all()


def test_exceptions_come_back(alone):
    class Stubborn(Exception):
        def __reduce__(self):
            raise TypeError("not with me")

    def kernel(q, k, v, *, causal=False):
        raise Stubborn("no") if causal else KeyError("softcap")

    there = alone(kernel)
    with pytest.raises(KeyError, match="softcap"):
        there(*arrays())
    with pytest.raises(RuntimeError, match=r"^Stubborn: no$"):
        there(*arrays(), causal=True)


def test_an_end_of_python_is_a_death(alone):
    with pytest.raises(KernelFault, match="the kernel died: exit status 7"):
        alone(lambda q, k, v: sys.exit(7))(*arrays())


def test_writes_to_arguments_are_found(alone):
    def kernel(q, k, v):
        k[...] = 0
        return v

    with pytest.raises(KernelFault, match="wrote to its argument k"):
        alone(kernel)(*arrays())
    fixed = arrays()
    fixed[1].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        alone(kernel)(*fixed)


def strange():
    x = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    raw[...] = x
    return {
        "sliced": x[:, :, ::2, 1:4],
        "backwards": x[::-1, :, ::-1],
        "fortran": np.asfortranarray(x),
        "repeated": np.broadcast_to(x[:, :1], x.shape),
        "not aligned": raw,
        "empty": x[:, :, :0],
        "far apart": np.lib.stride_tricks.as_strided(np.zeros(2**25, np.float32), (2, 2), (2**26, 4)),
    }


@pytest.mark.parametrize("name", strange())
def test_arrays_keep_their_strides(alone, name):
    x = strange()[name]

    def kernel(q, k, v):
        assert q.strides == x.strides and q.flags.aligned == x.flags.aligned
        assert q.flags.writeable == x.flags.writeable
        return q.copy()

    assert (alone(kernel)(x, x, x) == x).all()


def test_the_gaps_are_nan(alone):
    x = np.zeros((4, 8), np.float32)[:, :5]

    def kernel(q, k, v):
        whole = np.lib.stride_tricks.as_strided(q, (3, 8), q.strides)
        return np.isnan(whole)

    assert (alone(kernel)(x, x, x) == [[False] * 5 + [True] * 3] * 3).all()


def test_the_process_ends_with_the_kernel():
    kernel = isolated(lambda q, k, v: v)
    kernel(*arrays())
    children = multiprocessing.active_children()
    gone = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert gone() is None and children
    assert not set(children) & set(multiprocessing.active_children())


def test_where_there_is_no_fork(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(RuntimeError, match="no fork; make the kernel a program with serve"):
        isolated(lambda q, k, v: v)
