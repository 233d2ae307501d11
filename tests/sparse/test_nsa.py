"""Native sparse attention: its three branches, what it selects, and how close the choices of the cases are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from refattn.sparse.nsa import PINNED, _importance
from refattn.testing import cases
from refattn.testing.calls import as_float64
from tests.mistakes.selected import failures_of_what_is_right

CAUSAL = masks.causal()
SIZES = {"block_size": 4, "stride": 2, "select_block": 4, "n_selected": 5, "window": 5}


def draw(seed, batch=(), H=4, Hk=2, Tq=31, Tk=31, D=4, Dv=3):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=shape) for shape in ((*batch, H, Tq, D), (*batch, Hk, Tk, D), (*batch, Hk, Tk, Dv)))
    return q, k, v, rng.uniform(size=(*batch, H, Tq, 3))


def only(branch, shape):
    """Gates that let one branch through."""
    return np.broadcast_to(np.eye(3)[branch], shape)


def close(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def selection_mask(indices, q, k, size):
    indices = np.repeat(indices, q.shape[-3] // k.shape[-3], axis=-3)
    return refattn.selected_keys(indices, k.shape[-2], size=size) & CAUSAL.dense(q.shape[-2], k.shape[-2])


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([(), (2,)]),
    Hk=st.integers(1, 2),
    Tq=st.integers(0, 14),
    Tk=st.integers(0, 14),
    stride=st.integers(1, 3),
    depth=st.integers(1, 3),
    ratio=st.integers(1, 3),
    n_selected=st.integers(3, 5),
    window=st.integers(1, 20),
)
def test_each_branch_is_attention(seed, batch, Hk, Tq, Tk, stride, depth, ratio, n_selected, window):
    q, k, v, gates = draw(seed, batch, 2 * Hk, Hk, Tq, Tk)
    sizes = {"block_size": depth * stride, "stride": stride, "select_block": ratio * stride}
    o, lse, indices = refattn.nsa_attention(q, k, v, gates, **sizes, n_selected=n_selected, window=window)
    starts = range(0, Tk - depth * stride + 1, stride)
    means = [
        np.stack([x[..., b : b + depth * stride, :].mean(axis=-2) for b in starts], axis=-2)
        if starts
        else x[..., :0, :]
        for x in (k, v)
    ]
    ended = np.array(starts, int) + depth * stride - 1 <= np.arange(Tq)[:, None] + Tk - Tq
    branches = [
        refattn.attention(q, *means, mask=ended, return_lse=True),
        refattn.attention(q, k, v, mask=selection_mask(indices, q, k, ratio * stride), return_lse=True),
        refattn.attention(q, k, v, mask=CAUSAL & masks.window(window - 1, 0), return_lse=True),
    ]
    want = sum(gates[..., c, None] * branch for c, (branch, _) in enumerate(branches))
    close((o, *np.moveaxis(lse, -1, 0)), (want, *(branch_lse for _, branch_lse in branches)))


def test_importance_counts_the_strides_that_blocks_have_in_common():
    got = _importance(np.eye(19), 2, 4, 5)  # 40 keys: blocks of 4 every 2, and blocks of 8
    assert got[5].tolist() == [0, 2, 0, 0, 0]  # keys 10 to 13 lie in block 1
    assert got[7].tolist() == [0, 1, 1, 0, 0]  # keys 14 to 17 lie across
    assert got[18].tolist() == [0, 0, 0, 0, 2]  # the last one


@pytest.mark.parametrize(("depth", "ratio"), [(1, 1), (2, 4), (3, 2), (4, 1), (2, 3)])
def test_importance_is_equation_9_counted_from_one(depth, ratio):
    p = np.random.default_rng(11).uniform(size=5 * ratio - depth + 1)  # those that end within 5 blocks
    got = _importance(p, depth, ratio, 5)
    for j in range(1, 6):
        places = [ratio * j - m - n for m in range(ratio) for n in range(depth)]
        np.testing.assert_allclose(got[j - 1], sum(p[b - 1] for b in places if 1 <= b <= len(p)), rtol=1e-12)


@pytest.mark.parametrize("Tq", [1, 31])
def test_the_first_and_two_local_blocks_are_always_there(Tq):
    q, k, v, gates = draw(1, Tq=Tq)
    indices = refattn.nsa_attention(q, k, v, gates, **SIZES).indices
    for i in range(Tq):
        current = (i + 31 - Tq) // 4
        for block in {0, current, max(0, current - 1)}:
            assert (indices[:, i] == block).any(axis=-1).all()


def test_a_group_selects_together():
    q, k, v, gates = draw(2)
    sizes = SIZES | {"n_selected": 4}
    indices = refattn.nsa_attention(q, k, v, gates, **sizes).indices
    assert indices.shape == (2, 31, 4)
    loud = q.copy()
    loud[1] *= 0  # indifferent: its share is the same everywhere, and head 0 decides
    decided = refattn.nsa_attention(loud, k, v, gates, **sizes).indices
    alone = refattn.nsa_attention(q[:1], k[:1], v[:1], gates[:1], **sizes).indices
    np.testing.assert_array_equal(decided[0, 20:24], alone[0, 20:24])
    np.testing.assert_array_equal(decided[1], indices[1])


def test_by_hand():
    k = np.array([[0.0], [0.0], [0.0], [0.0]])
    v = np.array([[1.0], [3.0], [5.0], [7.0]])
    sizes = {"block_size": 2, "stride": 2, "select_block": 2, "n_selected": 3, "window": 2}
    wanted = ([0, 2, 2, 4], [1, 2, 3, 4], [1, 2, 4, 6])  # blocks that have ended; all so far; the last two
    for branch, want in enumerate(wanted):
        o = refattn.nsa_attention(k, k, v, only(branch, (4, 3)), **sizes).o
        np.testing.assert_allclose(o[:, 0], want)


def test_weights_take_the_place_of_the_mean():
    q, k, v, _ = draw(3)
    gates = only(0, (4, 31, 3))
    mean = refattn.nsa_attention(q, k, v, gates, **SIZES)
    same = refattn.nsa_attention(q, k, v, gates, **SIZES, w_k=np.full((2, 4), 0.25), w_v=np.full((2, 4), 0.25))
    close(same, mean)
    last = np.array([[0.0, 0, 0, 1], [0, 0, 0, 2]])  # of each block the last key, twice as long in the second head
    o = refattn.nsa_attention(q, k, v, gates, **SIZES, w_k=last, w_v=last).o
    factor = np.array([1.0, 2.0])[:, None, None]
    ended = np.arange(3, 31, 2) <= np.arange(31)[:, None]
    close([o], [refattn.attention(q, factor * k[:, 3::2], factor * v[:, 3::2], mask=ended)])


def test_a_branch_may_have_its_own_keys_and_values():
    q, k, v, gates = draw(4)
    _, k_other, v_other, _ = draw(5)
    plain = refattn.nsa_attention(q, k, v, gates, **SIZES)
    selected = refattn.nsa_attention(q, k, v, gates, **SIZES, k_selected=k_other, v_selected=v_other)
    window = refattn.nsa_attention(q, k, v, gates, **SIZES, k_window=k_other, v_window=v_other)
    np.testing.assert_array_equal(selected.indices, plain.indices)  # what chooses is the compression
    for changed, branch in ((selected, 1), (window, 2)):
        others = [c for c in range(3) if c != branch]
        np.testing.assert_array_equal(changed.lse[..., others], plain.lse[..., others])
        assert (changed.lse[..., branch] != plain.lse[..., branch]).mean() > 0.9
    want = refattn.attention(q, k_other, v_other, mask=CAUSAL & masks.window(4, 0), return_lse=True)[1]
    close([window.lse[..., 2]], [want])


def test_token_by_token_is_one_pass():
    q, k, v, gates = draw(6, Tq=15, Tk=15)
    want = refattn.nsa_attention(q, k, v, gates, **SIZES)
    for t in range(15):
        one = slice(t, t + 1)
        got = refattn.nsa_attention(q[:, one], k[:, : t + 1], v[:, : t + 1], gates[:, one], **SIZES)
        close(got, (x[:, one] for x in want))


@pytest.mark.parametrize("poison", [1e4, np.nan])
def test_the_future_changes_no_bit(poison):
    q, k, v, gates = draw(7)
    want = refattn.nsa_attention(q, k, v, gates, **SIZES)
    k[:, 18], v[:, 18] = poison, poison
    got = refattn.nsa_attention(q, k, v, gates, **SIZES)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x[:, :18], y[:, :18])
    assert (got.o[:, 18:23] != want.o[:, 18:23]).all()


def test_indices_are_used_again_and_nothing_is_pinned_then():
    q, k, v, gates = draw(8)
    first = refattn.nsa_attention(q, k, v, gates, **SIZES)
    again = refattn.nsa_attention(q, k, v, gates, **SIZES, indices=first.indices)
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    given = np.broadcast_to([5, -1, 2, 1, -1], (2, 31, 5))
    o, lse, used = refattn.nsa_attention(q, k, v, only(1, (4, 31, 3)), **SIZES, indices=given)
    assert [used[0, i].tolist() for i in (0, 8, 30)] == [[-1] * 5, [1, 2, -1, -1, -1], [1, 2, 5, -1, -1]]
    want = refattn.attention(q, k, v, mask=selection_mask(used, q, k, 4), return_lse=True)
    close((o, lse[..., 1]), want)


def test_gradients_of_the_selection_are_those_of_attention_under_the_mask():
    q, k, v, gates = draw(9)
    rng = np.random.default_rng(10)
    do, gates = rng.normal(size=(4, 31, 3)), only(1, (4, 31, 3))
    indices = refattn.nsa_attention(q, k, v, gates, **SIZES).indices
    gradients = refattn.attention_vjp(do, q, k, v, mask=selection_mask(indices, q, k, 4))
    for n, dx in enumerate(gradients[:3]):
        step = 1e-6 * rng.normal(size=dx.shape)
        ahead, behind = (
            refattn.nsa_attention(*(x + d if m == n else x for m, x in enumerate((q, k, v))), gates, **SIZES)
            for d in (step, -step)
        )
        np.testing.assert_array_equal(ahead.indices, behind.indices)
        np.testing.assert_allclose((do * (ahead.o - behind.o)).sum(), 2 * (dx * step).sum(), rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in cases("nsa_attention") if "equal" not in c.problem], ids=lambda c: c.id)
def test_no_choice_of_a_case_is_close(case):
    """Rounding moves an importance by some 1e-6 of itself; the first one left out lies farther below the last taken."""
    (q, k, v, gates), options = case.call()
    if "indices" in options or np.isnan(k).any() or 0 in (*q.shape, *k.shape):
        assert case.problem in ("indices", "nan_last", "no_keys", "no_queries")
        return
    wide = {name: as_float64(x) for name, x in options.items()}
    inputs = [as_float64(x) for x in (q, k, v, gates)]
    importance = _importance_of(*inputs[:2], **wide)
    current = (np.arange(q.shape[-2]) + k.shape[-2] - q.shape[-2])[:, None] // options["select_block"]
    blocks = np.arange(importance.shape[-1])
    free = (blocks > 0) & (blocks < current - 1)
    room = options["n_selected"] - PINNED
    ranked = np.sort(np.where(free, importance, -1), axis=-1)[..., ::-1]
    if ranked.shape[-1] > room > 0:
        last, left = ranked[..., room - 1], ranked[..., room]
        assert ((left < 0) | (last - left > 1e-5 * last)).all()


def _importance_of(q, k, *, block_size, stride, select_block, w_k=None, scale=None, **_rest):
    """Return the sum over the group of p times the strides in common, with overlaps counted key by key."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    w = np.full((1, block_size), 1 / block_size) if w_k is None else w_k
    w = w[0] if k.ndim == 2 else np.broadcast_to(w, (k.shape[-3], block_size))
    starts = np.arange(0, max(0, Tk - block_size + 1), stride)
    if not starts.size:
        return np.zeros((*k.shape[:-2], Tq, -(-Tk // select_block)))
    small = np.stack([(k[..., b : b + block_size, :] * w[..., None]).sum(axis=-2) for b in starts], axis=-2)
    ended = starts + block_size - 1 <= np.arange(Tq)[:, None] + Tk - Tq
    eye = np.broadcast_to(np.eye(len(starts)), (*k.shape[:-2], len(starts), len(starts)))
    p = refattn.attention(q, small, eye, mask=ended, scale=scale)
    inside = [
        [len({*range(b, b + block_size)} & {*range(c, c + select_block)}) for c in range(0, Tk, select_block)]
        for b in starts
    ]
    shares = p @ (np.array(inside) / stride)
    return shares if q.ndim == 2 else shares.reshape(*k.shape[:-2], -1, *shares.shape[-2:]).sum(axis=-3)


def test_the_mistakes_are_made_from_what_is_right():
    assert failures_of_what_is_right("nsa_attention") == []
