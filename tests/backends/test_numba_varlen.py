"""Packed sequences on the kernels: each as if it were alone, whoever computes it."""

import numpy as np
import pytest
import refattn_numba
from refattn_numba import threads

import refattn
from refattn import masks

LENGTHS = ((1, 40), (300, 300), (0, 7), (5, 0), (70, 900), (2, 1))


@pytest.fixture
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


def packed(H=4, Hk=2, D=24, Dv=16, seed=0):
    rng = np.random.default_rng(seed)
    borders = [np.concatenate([[0], np.cumsum([pair[n] for pair in LENGTHS])]) for n in (0, 1)]
    shapes = ((borders[0][-1], H, Dv), (borders[0][-1], H, D), (borders[1][-1], Hk, D), (borders[1][-1], Hk, Dv))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes], borders


@pytest.mark.parametrize("mask", [None, masks.causal() & masks.window(50, 0)])
def test_each_sequence_has_the_bits_of_a_call_of_its_own(mask):
    (do, q, k, v), borders = packed()
    o, lse = refattn.attention_varlen(q, k, v, *borders, mask=mask, return_lse=True, backend="numba")
    grads = refattn.attention_varlen_vjp(do, q, k, v, *borders, mask=mask, backend="numba")
    for b in range(len(LENGTHS)):
        i, j = (slice(x[b], x[b + 1]) for x in borders)
        alone = [x.swapaxes(0, 1) for x in (do[i], q[i], k[j], v[j])]
        want, want_lse = refattn.attention(*alone[1:], mask=mask, return_lse=True, backend="numba")
        np.testing.assert_array_equal(o[i], want.swapaxes(0, 1))
        np.testing.assert_array_equal(lse[:, i], want_lse)
        own = refattn.attention_vjp(*alone, mask=mask, backend="numba")
        for got, right in zip((grads.dq[i], grads.dk[j], grads.dv[j]), own[:3], strict=True):
            np.testing.assert_array_equal(got, right.swapaxes(0, 1))


@pytest.mark.usefixtures("restore_threads")
def test_results_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 1000)
    (do, q, k, v), borders = packed()
    sinks = np.linspace(-1, 1, 4, dtype=np.float32)
    results = []
    for n in (1, 2, 5):
        refattn_numba.set_num_threads(n)
        found = refattn.attention_varlen(q, k, v, *borders, sinks=sinks, return_lse=True, backend="numba")
        grads = refattn.attention_varlen_vjp(do, q, k, v, *borders, sinks=sinks, backend="numba")
        results.append([x.tobytes() for x in (*found, *grads[:3], grads.dsinks)])
    assert results[1:] == results[:1] * 2


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(
    "works", [[], [1.0], [1.0] * 9, [1e9, 1.0, 1.0], [5e6, 6e6, 7e6, 5e6], [1e9, 9e6, 8e6, 1e6], [0.0] * 3]
)
def test_every_task_is_done_once(works, n_threads):
    refattn_numba.set_num_threads(n_threads)
    done = []
    threads.deal(done.append, works)
    assert sorted(done) == list(range(len(works)))


@pytest.mark.usefixtures("restore_threads")
def test_an_error_in_a_task_is_raised_and_threads_stay_usable():
    refattn_numba.set_num_threads(3)

    def task(n):
        if n == 2:
            raise ZeroDivisionError("task 2")

    with pytest.raises(ZeroDivisionError, match="task 2"):
        threads.deal(task, [5e6] * 6)
    done = []
    threads.deal(done.append, [5e6] * 6)
    assert sorted(done) == list(range(6))
