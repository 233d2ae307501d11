"""`longformer_attention` with projections of their own for the global tokens."""

import numpy as np
import pytest

import refattn
from refattn import masks

RNG = np.random.default_rng(0)
GLOBAL = (9, 0, 5)  # not ascending: the rows of q_global are in this order
WINDOW = 2


def draw(batch=(2,), H=4, Hk=2, Tq=12, Tk=12, D=5, Dv=3, G=3):
    heads, kv_heads = ((H,), (Hk,)) if H else ((), ())
    shapes = {
        "q": (*batch, *heads, Tq, D),
        "k": (*batch, *kv_heads, Tk, D),
        "v": (*batch, *kv_heads, Tk, Dv),
        "q_global": (*batch, *heads, G, D),
        "k_global": (*batch, *kv_heads, Tk, D),
        "v_global": (*batch, *kv_heads, Tk, Dv),
    }
    return {name: RNG.normal(size=shape) for name, shape in shapes.items()}


def attend(x, **options):
    return refattn.longformer_attention(**x, window=WINDOW, global_indices=GLOBAL, **options, return_lse=True)


def only(x, *names):
    return {name: x[name] for name in ("q", "k", "v", *names)}


OPTIONS = {"scale": 0.6, "softcap": 2.0, "sinks": RNG.normal(size=4)}


def test_the_global_tokens_attend_in_their_own_projections():
    x = draw()
    o, lse = attend(x, **OPTIONS)
    wanted, wanted_lse = refattn.attention(x["q_global"], x["k_global"], x["v_global"], **OPTIONS, return_lse=True)
    np.testing.assert_allclose(o[..., list(GLOBAL), :], wanted, atol=1e-13)
    np.testing.assert_allclose(lse[..., list(GLOBAL)], wanted_lse, atol=1e-13)


def test_the_other_tokens_look_at_the_global_ones_in_the_ordinary_projections():
    x = draw()
    o, lse = attend(x, **OPTIONS)
    mask = masks.longformer(WINDOW, GLOBAL)
    wanted, wanted_lse = refattn.attention(x["q"], x["k"], x["v"], mask=mask, **OPTIONS, return_lse=True)
    others = [i for i in range(12) if i not in GLOBAL]
    np.testing.assert_allclose(o[..., others, :], wanted[..., others, :], atol=1e-13)
    np.testing.assert_allclose(lse[..., others], wanted_lse[..., others], atol=1e-13)


def test_projections_that_are_the_ordinary_ones_change_nothing():
    x = draw()
    x |= {"q_global": x["q"][..., list(GLOBAL), :], "k_global": x["k"], "v_global": x["v"]}
    for got, wanted in zip(attend(x, **OPTIONS), attend(only(x), **OPTIONS), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["q_global", "k_global", "v_global"])
def test_each_may_be_given_alone(name):
    x = draw()
    rest = {"q_global": x["q"][..., list(GLOBAL), :], "k_global": x["k"], "v_global": x["v"]} | {name: x[name]}
    for got, wanted in zip(attend(only(x, name)), attend(only(x) | rest), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(attend(only(x, name))[0], attend(only(x))[0])


def test_a_token_that_is_no_query_is_not_read():
    """The last 4 of 12 tokens are queries: of the global ones, 9 alone is among them."""
    x = draw(Tq=4)
    o, lse = attend(x)
    x["q_global"][..., 1:, :] = np.nan
    x["q"][..., 1, :] = np.nan  # token 9, whose query is q_global's
    for got, wanted in zip(attend(x), (o, lse), strict=True):
        np.testing.assert_array_equal(got, wanted)
    do = RNG.normal(size=o.shape)
    g = refattn.longformer_attention_vjp(do, **x, window=WINDOW, global_indices=GLOBAL)
    assert (g.dq_global[..., 1:, :] == 0).all() and (g.dq_global[..., 0, :] != 0).all()
    assert (g.dq[..., 1, :] == 0).all()
    assert all(np.isfinite(dx).all() for dx in g if dx is not None)


def test_nan_in_the_global_values_stays_with_the_global_tokens():
    x = draw()
    clean, _ = attend(x)
    x["v_global"][..., 4, :] = np.nan
    o, _ = attend(x)
    others = [i for i in range(12) if i not in GLOBAL]
    np.testing.assert_array_equal(o[..., others, :], clean[..., others, :])
    assert np.isnan(o[..., list(GLOBAL), :]).all()


def test_without_global_tokens_it_is_a_window():
    x = draw(G=0)
    got = refattn.longformer_attention(**x, window=3, **OPTIONS)
    wanted = refattn.local_attention(x["q"], x["k"], x["v"], left=3, right=3, **OPTIONS)
    np.testing.assert_allclose(got, wanted, atol=1e-14)


def test_the_gradients_of_what_was_not_given_are_none():
    x = draw()
    do = RNG.normal(size=(2, 4, 12, 3))
    g = refattn.longformer_attention_vjp(do, **only(x, "k_global"), window=WINDOW, global_indices=GLOBAL)
    assert g.dq_global is None and g.dv_global is None and g.dsinks is None
    assert g.dk_global.shape == x["k_global"].shape


def test_sixteen_bit_gradients_are_rounded_once():
    x = {name: value.astype(np.float16) for name, value in draw().items()}
    do, sinks = RNG.normal(size=(2, 4, 12, 3)).astype(np.float16), RNG.normal(size=4).astype(np.float16)
    narrow = refattn.longformer_attention_vjp(do, **x, window=WINDOW, global_indices=GLOBAL, sinks=sinks)
    x = {name: value.astype(np.float32) for name, value in x.items()}
    wide = refattn.longformer_attention_vjp(
        do.astype(np.float32), **x, window=WINDOW, global_indices=GLOBAL, sinks=sinks.astype(np.float32)
    )
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(a, b.astype(np.float16))
