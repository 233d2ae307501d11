"""The sparse kernels of the numba backend: what conformance does not ask."""

import numpy as np
import pytest
import refattn_numba
from hypothesis import given, settings
from hypothesis import strategies as st
from refattn_numba import longformer, parts, select, sparse

import refattn
from refattn import masks
from refattn.sparse.select import best


@pytest.fixture
def restore_threads():
    before = refattn_numba.get_num_threads()
    yield
    refattn_numba.set_num_threads(before)


def qkv(Tq=150, Tk=150, H=4, Hk=2, D=24, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((h, t, D)).astype(dtype) for h, t in ((H, Tq), (Hk, Tk), (Hk, Tk)))


FORMS = {
    "strided": (refattn.strided_attention, refattn.strided_attention_vjp, {"local": 9, "stride": 7}),
    "dilated": (refattn.dilated_attention, refattn.dilated_attention_vjp, {"window": 4, "step": 5}),
    "random": (refattn.random_attention, refattn.random_attention_vjp, {"n_keys": 11, "per_head": True}),
    "global": (refattn.global_attention, refattn.global_attention_vjp, {"indices": [3, 77, 149]}),
    "scattered": (refattn.global_attention, refattn.global_attention_vjp, {"indices": range(0, 1300, 130)}),
    "bigbird": (refattn.bigbird_attention, refattn.bigbird_attention_vjp, {"block_size": 16, "n_random": 1}),
}


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("name", FORMS)
def test_results_do_not_depend_on_threads(name, monkeypatch):
    monkeypatch.setattr(refattn_numba.threads, "SMALL", 0)
    form, vjp, arguments = FORMS[name]
    q, k, v = qkv(dtype=np.float32)
    results = []
    for n in (1, 3, 8):
        refattn_numba.set_num_threads(n)
        o, lse = form(q, k, v, **arguments, return_lse=True, backend="numba")
        found = (o, lse, *vjp(q, q, k, v, **arguments, backend="numba")[:3])
        results.append([x.tobytes() for x in found])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", FORMS)
def test_a_sequence_does_not_depend_on_its_batch_mates(name):
    form, _, arguments = FORMS[name]
    q, k, v = (np.stack([x, 3 * x, -x]) for x in qkv(dtype=np.float32))
    whole = form(q, k, v, **arguments, backend="numba")
    np.testing.assert_array_equal(whole[1], form(q[1], k[1], v[1], **arguments, backend="numba"))


MASKS = [
    masks.strided(5, 4),
    masks.fixed(8, 3),
    masks.dilated(3, 6),
    masks.random(7, 3),
    masks.random(7, 3, 4),
    masks.longformer(5, [0, 60]),
    masks.bigbird(8, n_random=2),
]


@pytest.mark.parametrize("own", [False, True])
def test_scattered_global_tokens_are_picked_out(own):
    """More tiles of keys than are read by the way; with projections of their own, and without."""
    rng = np.random.default_rng(3)
    q, k, v = qkv(1290, 1290, D=8)
    indices = list(range(5, 1290, 128))
    arguments = {"window": 6, "global_indices": indices}
    if own:
        arguments |= {"q_global": q[:, indices] + 1, "k_global": rng.standard_normal(k.shape)}
    for sinks in (None, np.linspace(-1, 1, 4)):
        want = refattn.longformer_attention(q, k, v, **arguments, sinks=sinks, return_lse=True)
        found = refattn.longformer_attention(q, k, v, **arguments, sinks=sinks, return_lse=True, backend="numba")
        for x, y in zip(found, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
        want = refattn.longformer_attention_vjp(q, q, k, v, **arguments, sinks=sinks)
        found = refattn.longformer_attention_vjp(q, q, k, v, **arguments, sinks=sinks, backend="numba")
        for x, y in zip(found, want, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mask", MASKS, ids=repr)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(Tq=st.integers(1, 140), Tk=st.integers(1, 140), sinks=st.booleans())
def test_any_mask_by_way_of_its_form_is_the_mask(mask, Tq, Tk, sinks):
    q, k, v = qkv(Tq, Tk)
    options = {"sinks": np.linspace(-1, 1, 4)} if sinks else {}
    want = refattn.attention(q, k, v, mask=mask, return_lse=True, **options)
    found = refattn.sparse_attention(q, k, v, mask, return_lse=True, **options, backend="numba")
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
    want = refattn.attention_vjp(q, q, k, v, mask=mask, **options)
    found = refattn.sparse_attention_vjp(q, q, k, v, mask, **options, backend="numba")
    for x, y in zip(found, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11)


def test_a_bias_goes_with_the_tiles_of_any_mask():
    q, k, v = qkv()
    bias = np.random.default_rng(1).standard_normal((150, 150))
    for mask in (masks.strided(5, 4), masks.random(7)):
        want = refattn.attention(q, k, v, mask=mask, bias=bias)
        found = refattn.sparse_attention(q, k, v, mask, bias=bias, backend="numba")
        np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-12)


def test_the_layouts_are_undone():
    x = np.random.default_rng(0).standard_normal((2, 3, 29, 5))
    for T, step, first, length in ((29, 4, 0, 8), (29, 7, -5, 5), (29, 1, 0, 29)):
        layout = parts.folded(T, step, first, length)
        assert layout.lay(x).shape == (2, step, 3, length, 5)
        np.testing.assert_array_equal(layout.back(layout.lay(x), 0), x)
    some = parts.picked(29, np.array([3, 8]))
    back = some.back(some.lay(x), -np.inf)
    np.testing.assert_array_equal(back[..., [3, 8], :], x[..., [3, 8], :])
    assert np.isneginf(np.delete(back, [3, 8], axis=-2)).all()


def test_strides_become_bands_and_globals_a_thin_part():
    """The work of the parts grows with the pairs: tiles that are computed, not the matrix."""
    q, k, v = (np.zeros((1, 4096, 8), np.float32) for _ in range(3))
    whole = 4096 * 4096
    for found, share in (
        (sparse.parts_of(masks.strided(64, 64), q, k), 0.12),
        (sparse.parts_of(masks.fixed(128, 4), q, k), 0.12),
        (sparse.parts_of(masks.dilated(16, 32), q, k), 0.10),
        (longformer.longformer_parts(q, k, 64, range(0, 4096, 400), own=False), 0.15),
    ):
        computed = 0.0
        for part in found:
            laid = [part.queries.lay(q), part.keys.lay(k), part.keys.lay(v)]
            computed += parts.problem(*laid, mask=part.mask).pairs
        assert computed < share * whole, part


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 5), m=st.integers(0, 40), n=st.integers(1, 45))
def test_the_choice_is_that_of_the_reference(seed, rows, m, n):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (rows, m)).astype(np.float32)  # ties are common
    scores[rng.random((rows, m)) < 0.1] = np.nan
    scores[rng.random((rows, m)) < 0.1] = -np.inf
    allowed, forced = rng.random((rows, m)) < 0.7, rng.random((rows, m)) < 0.1
    want = best(scores, n, allowed, forced)
    np.testing.assert_array_equal(select.best(scores, n, select.as_state(allowed, forced)), want)


def test_lists_of_runs_respect_their_limits():
    """Run 2 of width 4 is keys 8 to 11; query i may not go beyond its limit."""
    from refattn_numba.gather import attend_lists, lists

    q, k, v = qkv(3, 14, H=2, Hk=1)
    index = np.array([[0, 2, -1], [-1, -1, -1], [3, 1, 0]])
    limit = np.array([10, 14, 13])
    visible = np.zeros((3, 14), bool)
    visible[0, [0, 1, 2, 3, 8, 9]] = True
    visible[2, [12, 4, 5, 6, 7, 0, 1, 2, 3]] = True
    want = refattn.attention(q, k, v, mask=visible, return_lse=True)
    for x, y in zip(attend_lists(q, k, v, lists(index, 4, limit, (2,))), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
