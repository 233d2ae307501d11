"""The sparse forms: which keys each query sees, written out by hand, and that they are attention under a mask."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from refattn.sparse import common

RNG = np.random.default_rng(0)


def draw(batch=(2,), H=4, Hk=2, Tq=13, Tk=17, D=5, Dv=3, rng=RNG):
    heads, kv_heads = ((H,), (Hk,)) if H else ((), ())
    return (
        rng.normal(size=(*batch, *heads, Tq, D)),
        rng.normal(size=(*batch, *kv_heads, Tk, D)),
        rng.normal(size=(*batch, *kv_heads, Tk, Dv)),
    )


LAYOUT = np.array([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])

# form -> (its arguments, the keys that the query at position t sees, of n queries and keys)
BY_HAND = {
    "local_attention": ({"left": 3, "right": 1}, lambda t, n: {t - 3, t - 2, t - 1, t, t + 1}),
    "dilated_attention": ({"window": 2, "step": 3}, lambda t, n: {t - 6, t - 3, t, t + 3, t + 6}),
    "strided_attention": ({"local": 2, "stride": 5}, lambda t, n: {t, t - 1, t - 5, t - 10, t - 15}),
    "fixed_attention": (
        {"block": 4, "summary": 1},
        lambda t, n: {j for j in range(t + 1) if j // 4 == t // 4 or j in (3, 7, 11, 15)},
    ),
    "global_attention": ({"indices": (2, 9)}, lambda t, n: set(range(n)) if t in (2, 9) else {2, 9}),
    "longformer_attention": (
        {"window": 1, "global_indices": (0, 8)},
        lambda t, n: set(range(n)) if t in (0, 8) else {0, t - 1, t, t + 1, 8},
    ),
    "bigbird_attention": (
        {"block_size": 3, "n_window": 3, "global_blocks": (0, -1), "n_random": 0},
        lambda t, n: {j for j in range(n) if t // 3 in (0, 5) or j // 3 in (0, 5) or abs(t // 3 - j // 3) <= 1},
    ),
}
OPTIONS = {"scale": 0.7, "softcap": 2.0, "sinks": RNG.normal(size=4)}
DENSE = {  # form -> the mask under which dense attention is the same
    "local_attention": masks.window,
    "dilated_attention": masks.dilated,
    "strided_attention": masks.strided,
    "fixed_attention": masks.fixed,
    "random_attention": lambda per_head=False, heads=4, **o: masks.random(**o, heads=heads if per_head else None),
    "global_attention": masks.global_tokens,
    "bigbird_attention": lambda per_head=False, heads=4, **o: masks.bigbird(**o, heads=heads if per_head else None),
    "longformer_attention": masks.longformer,
    "block_sparse_attention": masks.block,
    "sparse_attention": lambda mask: mask,
}


def by_hand(q, k, v, keys_of, scale, softcap, sinks):
    """Attend with one query at a time: the sum in the docstrings, over a set of keys."""
    (B, H, Tq, _), (_, Hk, Tk, _) = q.shape, k.shape
    o, lse = np.zeros((B, H, Tq, v.shape[-1])), np.zeros((B, H, Tq))
    for b, h, i in np.ndindex(B, H, Tq):
        total = math.exp(sinks[h])
        for j in sorted(keys_of(i + Tk - Tq, Tk)):
            if 0 <= j < Tk and i + Tk - Tq >= 0:
                e = math.exp(softcap * math.tanh(scale * float(q[b, h, i] @ k[b, h // (H // Hk), j]) / softcap))
                total += e
                o[b, h, i] += e * v[b, h // (H // Hk), j]
        o[b, h, i] /= total
        lse[b, h, i] = math.log(total)
    return o, lse


def same(got, wanted, size=1e-12):
    for x, y in zip(got, wanted, strict=True):
        if y is None:
            assert x is None
            continue
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=size)


def like_dense(form, q, k, v, own, options, mask):
    """Assert that a form and its derivative are those of dense attention under a mask."""
    forward, backward = getattr(refattn, form), getattr(refattn, f"{form}_vjp")
    o, lse = refattn.attention(q, k, v, mask=mask, **options, return_lse=True)
    same(forward(q, k, v, **own, **options, return_lse=True), (o, lse))
    np.testing.assert_array_equal(forward(q, k, v, **own, **options), forward(q, k, v, **own, **options))
    rng = np.random.default_rng(1)
    do, dlse = rng.normal(size=o.shape), rng.normal(size=lse.shape)
    for more in ({}, {"dlse": dlse}):
        got = backward(do, q, k, v, **own, **options, **more)._asdict()
        wanted = refattn.attention_vjp(do, q, k, v, mask=mask, **options, **more)._asdict()
        assert all(x is None for name, x in got.items() if name not in wanted)
        same([got[name] for name in wanted if name in got], [x for name, x in wanted.items() if name in got])


@pytest.mark.parametrize("Tq", [17, 6])
@pytest.mark.parametrize("form", BY_HAND)
def test_a_query_sees_the_keys_that_the_definition_names(form, Tq):
    own, keys_of = BY_HAND[form]
    q, k, v = draw(Tq=Tq)
    same(getattr(refattn, form)(q, k, v, **own, **OPTIONS, return_lse=True), by_hand(q, k, v, keys_of, **OPTIONS))


def test_blocks_of_queries_see_the_blocks_of_their_row():
    q, k, v = draw(Tq=14, Tk=10)
    keys = [{j for j in range(10) if LAYOUT[i // 4, j // 4]} for i in range(14)]
    wanted = by_hand(q, k, v, lambda t, n: keys[t + 4], **OPTIONS)
    o, lse = refattn.block_sparse_attention(q, k, v, layout=LAYOUT, block_size=4, **OPTIONS, return_lse=True)
    for i in range(14):  # by_hand takes queries before the first key for blind, here rows are not positions
        alone = refattn.attention(q[:, :, [i]], k, v, mask=np.isin(np.arange(10), list(keys[i]))[None], **OPTIONS)
        np.testing.assert_allclose(o[:, :, [i]], alone, atol=1e-13)
    same((o[:, :, 4:], lse[:, :, 4:]), (wanted[0][:, :, 4:], wanted[1][:, :, 4:]))


def test_random_keys_are_those_of_the_table():
    q, k, v = draw()
    table = masks.random(4, 7, heads=4).keys(13, 17)
    visible = np.zeros((4, 13, 17), bool)
    np.put_along_axis(visible, table, True, axis=-1)
    same(
        refattn.random_attention(q, k, v, n_keys=4, seed=7, per_head=True, **OPTIONS, return_lse=True),
        refattn.attention(q, k, v, mask=visible, **OPTIONS, return_lse=True),
    )
    for_all = refattn.random_attention(q, k, v, n_keys=4, seed=7)
    np.testing.assert_allclose(for_all, refattn.attention(q, k, v, mask=visible[0]), atol=1e-13)


def test_bigbird_sees_the_blocks_that_it_drew():
    """The draws of a table of blocks, put beside window and global blocks by hand."""
    q, k, v = draw(Tq=18, Tk=18)
    drawn = masks.random(2, 5, heads=4).keys(6, 6)  # (H, blocks, 2)
    for head in range(4):
        seen = np.zeros((6, 6), bool)
        for a in range(6):
            seen[a, [x for x in (a - 1, a, a + 1) if 0 <= x < 6]] = True
            seen[a, drawn[head, a]] = True
        seen[[0, 5]], seen[:, [0, 5]] = True, True
        visible = np.kron(seen, np.ones((3, 3), bool))
        o = refattn.bigbird_attention(q, k, v, block_size=3, n_random=2, seed=5, per_head=True)
        wanted = refattn.attention(q, k, v, mask=visible)
        np.testing.assert_allclose(o[:, head], wanted[:, head], atol=1e-13)


SHAPES = st.fixed_dictionaries(
    {
        "batch": st.sampled_from([(), (2,), (1, 2)]),
        "Hk": st.integers(1, 2),
        "group": st.integers(1, 3),
        "Tq": st.integers(0, 20),
        "Tk": st.integers(0, 20),
        "D": st.integers(1, 4),
        "Dv": st.integers(1, 4),
    }
)
SIZE = st.integers(1, 25)
BLOCKS = st.lists(st.integers(-8, 8), max_size=3)
OWN = {
    "local_attention": st.fixed_dictionaries({x: st.none() | st.integers(0, 25) for x in ("left", "right")}),
    "dilated_attention": st.fixed_dictionaries({"window": st.integers(0, 25), "step": SIZE}),
    "strided_attention": st.fixed_dictionaries({"local": SIZE, "stride": SIZE}),
    "fixed_attention": st.tuples(SIZE, SIZE).map(lambda x: {"block": max(x), "summary": min(x)}),
    "random_attention": st.fixed_dictionaries({"n_keys": SIZE, "seed": st.integers(0, 9), "per_head": st.booleans()}),
    "global_attention": st.fixed_dictionaries({"indices": st.lists(st.integers(0, 25), max_size=4)}),
    "bigbird_attention": st.fixed_dictionaries(
        {
            "block_size": st.integers(1, 7),
            "n_window": st.sampled_from([1, 3, 5]),
            "global_blocks": BLOCKS,
            "n_random": st.integers(0, 3),
            "seed": st.integers(0, 9),
            "per_head": st.booleans(),
        }
    ),
    "longformer_attention": st.fixed_dictionaries(
        {"window": st.integers(0, 25), "global_indices": st.lists(st.integers(0, 25), max_size=4)}
    ),
}


@pytest.mark.parametrize("form", OWN)
def test_every_form_is_attention_under_its_mask(form):
    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(SHAPES, OWN[form], st.integers(0, 2**32 - 1), st.booleans())
    def holds(shape, own, seed, more):
        rng, H = np.random.default_rng(seed), shape["Hk"] * shape["group"]
        q, k, v = draw(**{x: n for x, n in shape.items() if x != "group"}, H=H, rng=rng)
        options = {"sinks": rng.normal(size=H), "softcap": 1.5, "scale": -0.4} if more else {}
        heads = {"heads": H} if "per_head" in own else {}
        like_dense(form, q, k, v, own, options, DENSE[form](**own, **heads))

    holds()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(SHAPES, st.integers(1, 9), st.floats(0, 1), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_block_sparse_attention_is_attention_under_its_mask(shape, size, share, axes, seed):
    rng, H = np.random.default_rng(seed), shape["Hk"] * shape["group"]
    q, k, v = draw(**{x: n for x, n in shape.items() if x != "group"}, H=H, rng=rng)
    lead = [n if rng.random() < 0.6 else 1 for n in q.shape[:-2]][-axes:] if axes else []
    layout = rng.random((*lead, -(-shape["Tq"] // size), -(-shape["Tk"] // size))) < share
    own = {"layout": layout, "block_size": size}
    like_dense("block_sparse_attention", q, k, v, own, {"sinks": rng.normal(size=H)}, masks.block(layout, size))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(SHAPES, st.floats(0, 1), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_sparse_attention_is_attention_under_any_mask(shape, share, axes, seed):
    rng, H = np.random.default_rng(seed), shape["Hk"] * shape["group"]
    q, k, v = draw(**{x: n for x, n in shape.items() if x != "group"}, H=H, rng=rng)
    scores = (*q.shape[:-1], k.shape[-2])

    def some(axes):
        return tuple(n if rng.random() < 0.6 else 1 for n in scores[len(scores) - axes :])

    mask = rng.random(some(min(axes + 2, len(scores)))) < share
    options = {"sinks": rng.normal(size=H), "bias": rng.normal(size=some(int(rng.integers(0, len(scores) + 1))))}
    if rng.random() < 0.5:
        options |= {"dropout_mask": rng.random(some(2)) < 0.6, "dropout_p": 0.4}
    like_dense("sparse_attention", q, k, v, {"mask": mask}, options, mask)


MASKS = [
    masks.causal(),
    ~masks.causal(),
    masks.causal() & masks.window(3, None) | masks.global_tokens([1]),
    masks.padding([0, 9]) & masks.causal(),
    masks.document(np.arange(17) // 5),
    masks.random(3, heads=4),
    masks.from_function(lambda i, j: (i * j) % 3 == 0),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_sparse_attention_takes_every_kind_of_mask(mask):
    like_dense("sparse_attention", *draw(), {"mask": mask}, OPTIONS, mask)


@pytest.mark.parametrize("form", OWN)
def test_two_dimensional_inputs_are_one_head(form):
    own = BY_HAND[form][0] if form in BY_HAND else {"n_keys": 3, "per_head": True}
    q, k, v = draw(batch=(), H=0)
    got = getattr(refattn, form)(q, k, v, **own, sinks=np.ones(1), return_lse=True)
    wanted = getattr(refattn, form)(q[None], k[None], v[None], **own, sinks=np.ones(1), return_lse=True)
    same(got, [x[0] for x in wanted])


ALL = {
    **{name: own for name, (own, _) in BY_HAND.items()},
    "random_attention": {"n_keys": 4, "per_head": True},
    "block_sparse_attention": {"layout": np.tile(LAYOUT, (2, 1, 1, 1))[:, :, :, [0, 1, 2, 0]], "block_size": 5},
    "sparse_attention": {"mask": masks.causal() & masks.window(4, 0) | masks.global_tokens([1])},
}


def visible_under(form, own, Tq, Tk):
    return masks.as_mask(DENSE[form](**own)).dense(Tq, Tk)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("form", ALL)
def test_a_poisoned_key_reaches_the_rows_that_see_it_alone(form, poison):
    q, k, v = draw(Hk=1, Tq=17)
    bad = 6
    visible = np.broadcast_to(visible_under(form, ALL[form], 17, 17), (2, 4, 17, 17))
    clean = getattr(refattn, form)(q, k, v, **ALL[form])
    k, v = k.copy(), v.copy()
    k[..., bad, :], v[..., bad, :] = poison, poison
    o = getattr(refattn, form)(q, k, v, **ALL[form])
    seen = visible[..., bad]
    assert seen.any() and not seen.all()
    np.testing.assert_array_equal(o[~seen], clean[~seen])
    assert not np.isfinite(o[seen]).all(axis=-1).any()
    g = getattr(refattn, f"{form}_vjp")(np.ones_like(o), q, k, v, **ALL[form])
    assert np.isfinite(g.dq[~seen]).all()


@pytest.mark.parametrize("form", ALL)
def test_the_size_of_a_strip_changes_nothing(form, monkeypatch):
    q, k, v = draw(Tq=17)
    o, do = getattr(refattn, form)(q, k, v, **ALL[form], **OPTIONS, return_lse=True), draw(Tq=17, D=3)[0]
    g = getattr(refattn, f"{form}_vjp")(do, q, k, v, **ALL[form], **OPTIONS)
    monkeypatch.setattr(common, "PAIRS", 13)
    same(getattr(refattn, form)(q, k, v, **ALL[form], **OPTIONS, return_lse=True), o)
    same(getattr(refattn, f"{form}_vjp")(do, q, k, v, **ALL[form], **OPTIONS), g)


@pytest.mark.parametrize("form", ALL)
def test_low_precision_is_rounded_once(form):
    q, k, v = (x.astype(np.float16) for x in draw(Tq=17))
    o, lse = getattr(refattn, form)(q, k, v, **ALL[form], return_lse=True)
    wide = getattr(refattn, form)(*(x.astype(np.float32) for x in (q, k, v)), **ALL[form])
    assert o.dtype == np.float16 and lse.dtype == np.float32
    np.testing.assert_array_equal(o, wide.astype(np.float16))
    do = o + np.float16(1)
    narrow = getattr(refattn, f"{form}_vjp")(do, q, k, v, **ALL[form])
    wide = getattr(refattn, f"{form}_vjp")(*(x.astype(np.float32) for x in (do, q, k, v)), **ALL[form])
    for x, y in zip(narrow[:3], wide[:3], strict=True):
        np.testing.assert_array_equal(x, y.astype(np.float16))


LONG = 4096
FEW = {
    "local_attention": {"left": 8, "right": 8},
    "dilated_attention": {"window": 8, "step": 9},
    "strided_attention": {"local": 4, "stride": 512},
    "fixed_attention": {"block": 16, "summary": 1},
    "random_attention": {"n_keys": 16},
    "global_attention": {"indices": (0, 7, 4000)},
    "bigbird_attention": {"block_size": 32, "n_random": 1},
    "longformer_attention": {"window": 8, "global_indices": (0, 4000)},
    "block_sparse_attention": {"layout": np.eye(64, dtype=bool), "block_size": 64},
    "sparse_attention": {"mask": masks.window(8, 8) | masks.global_tokens([0])},
}


@pytest.mark.parametrize("form", FEW)
def test_a_form_touches_few_pairs_more_than_it_has(form, monkeypatch):
    """What is gathered is counted; at most twice the visible pairs, and never memory of Tq x Tk."""
    q, k, v = (RNG.normal(size=(LONG, 2)).astype(np.float32) for _ in range(3))
    gathered = []

    def counted(q, k, v, **options):
        gathered.append(q.shape[-2] * k.shape[-2] * math.prod(q.shape[:-2]))
        return refattn.attention(q, k, v, **options)

    monkeypatch.setattr(common, "attention", counted)
    tracemalloc.start()
    try:
        getattr(refattn, form)(q, k, v, **FEW[form])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pairs = int(masks.as_mask(DENSE[form](**FEW[form])).pairs(LONG, LONG))
    assert pairs < LONG**2 // 8
    assert 0 < sum(gathered) <= 2 * pairs
    assert peak < LONG**2 // 2  # bytes: half of what a bool for each pair would take
