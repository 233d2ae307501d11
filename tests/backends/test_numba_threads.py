import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import refattn_numba
from refattn_numba import threads

import refattn
from refattn import masks


@pytest.fixture
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


def qkv(T=700, H=4, Hk=2, D=40, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((h, T, D)).astype(np.float32) for h in (H, Hk, Hk))


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("mask", [None, masks.causal(), masks.causal() & masks.window(100, 0)])
def test_results_do_not_depend_on_threads(mask):
    q, k, v = qkv()
    do, bias = q[..., ::-1].copy(), np.linspace(-1, 1, 700, dtype=np.float32)
    results = []
    for n in (1, 2, 3, 7):
        refattn_numba.set_num_threads(n)
        o, lse = refattn.attention(q, k, v, mask=mask, bias=bias, return_lse=True, backend="numba")
        grads = refattn.attention_vjp(do, q, k, v, mask=mask, bias=bias, backend="numba")
        results.append([x.tobytes() for x in (o, lse, *grads[:4])])
    assert all(result == results[0] for result in results)


def test_a_row_does_not_depend_on_its_batch_mates():
    q, k, v = (np.stack([x, 3 * x, -x]) for x in qkv(T=1300))
    whole = refattn.attention(q, k, v, mask=masks.causal(), backend="numba")
    alone = refattn.attention(q[1], k[1], v[1], mask=masks.causal(), backend="numba")
    np.testing.assert_array_equal(whole[1], alone)
    together = refattn.attention_vjp(q, q, k, v, mask=masks.causal(), backend="numba").dq
    by_itself = refattn.attention_vjp(q[1], q[1], k[1], v[1], mask=masks.causal(), backend="numba").dq
    np.testing.assert_array_equal(together[1], by_itself)


def test_calls_from_many_threads():
    q, k, v = qkv(T=400)
    want = refattn.attention(q, k, v, backend="numba")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: refattn.attention(q, k, v, backend="numba"), range(40)))
    assert all(np.array_equal(got, want) for got in results)


def test_a_forked_child_can_compute():
    program = """
import os, numpy as np, refattn
q = np.random.default_rng(0).standard_normal((4, 600, 32)).astype("f")
want = refattn.attention(q, q, q, backend="numba")
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(refattn.attention(q, q, q, backend="numba"), want) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_memory_grows_with_the_length_alone():
    def peak(T):
        q, k, v = qkv(T=T, H=1, Hk=1, D=64)
        refattn.attention(q, k, v, mask=masks.causal(), backend="numba")  # the mask's tiles are kept
        tracemalloc.start()
        refattn.attention(q, k, v, mask=masks.causal(), backend="numba")
        extra = tracemalloc.get_traced_memory()[1] - q.nbytes
        tracemalloc.stop()
        return extra

    T = 4096
    assert peak(T) < 0.5 * 4 * (4 * T * 64)  # half of q, k, v, o


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_number_of_threads_is_checked(n):
    with pytest.raises(ValueError, match="wanted a positive integer"):
        refattn_numba.set_num_threads(n)


def test_environment_is_checked(monkeypatch):
    monkeypatch.setattr(threads, "_threads", 0)
    monkeypatch.setenv("REFATTN_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="REFATTN_NUM_THREADS is 'many'"):
        threads.get_num_threads()
    monkeypatch.setenv("REFATTN_NUM_THREADS", "3")
    assert threads.get_num_threads() == 3


def test_hidden_tiles_cost_nothing():
    """A kernel that touched a hidden tile would meet the poison in it: whole tiles of NaN that nobody may see."""
    q, k, v = qkv(T=1024)
    o = refattn.attention(q, k, v, mask=masks.padding(200), backend="numba")
    k[:, 200:], v[:, 200:] = np.nan, np.inf
    np.testing.assert_array_equal(refattn.attention(q, k, v, mask=masks.padding(200), backend="numba"), o)


def test_a_thread_that_outlives_the_main_one_can_compute():
    program = """
import threading, time, numpy as np, refattn
q = np.random.default_rng(0).standard_normal((8, 1024, 64)).astype("f")
want = refattn.attention(q, q, q, backend="numba")
def late():
    time.sleep(0.5)
    print("equal" if np.array_equal(refattn.attention(q, q, q, backend="numba"), want) else "differs")
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=300, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr


def test_many_terms_of_one_bias_are_summed_exactly():
    q, k, v = (x.astype(np.float32) for x in qkv(T=1024, H=2, D=16))
    do, bias = q[:, ::-1].copy(), np.zeros((2, 1, 1), np.float32)
    got = refattn.attention_vjp(do, q, k, v, bias=bias, mask=masks.causal(), backend="numba").dbias
    want = refattn.attention_vjp(
        *(x.astype(float) for x in (do, q, k, v)), bias=bias.astype(float), mask=masks.causal()
    )
    assert np.abs(got - want.dbias).max() < 3e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_most_negative_bias_is_a_number_and_not_minus_infinity(dtype):
    q, k, v = (x.astype(dtype) for x in qkv(T=70))
    bias = np.zeros((70, 70), dtype)
    bias[3], bias[5, :40] = np.finfo(dtype).min, np.finfo(dtype).min
    o = refattn.attention(q, k, v, bias=bias, backend="numba")
    np.testing.assert_allclose(o, refattn.attention(q, k, v, bias=bias), rtol=1e-4, atol=1e-5)
    do = np.ones_like(o)
    do[:, 3] = 0  # the row in which lse has lost what tells its weights apart: it has no gradient
    want = refattn.attention_vjp(do, q, k, v, bias=bias)
    do[:, 3] = 1
    for x, y in zip(refattn.attention_vjp(do, q, k, v, bias=bias, backend="numba")[:4], want[:4], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)


def test_a_soft_cap_too_small_for_the_dtype_is_still_a_cap():
    q, k, v = qkv(T=70)
    for call in (
        lambda **o: refattn.attention(100 * q, k, v, softcap=1e-300, **o),
        lambda **o: refattn.attention(100 * q[:, :1], k, v, softcap=1e-300, **o),
        lambda **o: refattn.random_attention(100 * q, k, v, n_keys=9, softcap=1e-300, **o),
    ):
        np.testing.assert_allclose(call(backend="numba"), call(), rtol=1e-5, atol=1e-6)
