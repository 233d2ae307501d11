"""Every backward operation against its forward one: central differences in float64, and the dot-product identity.

Both say the same of a random direction dx of all inputs together: <do, J dx> = <Jᵀ do, dx>. The left side comes from
two calls of the forward operation, the right side from the backward one.
"""

import numpy as np
import pytest

import refattn
from refattn import masks

STEP = 1e-6
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def direction_of(inputs, rng):
    """A random direction in each input, none where an input is -inf."""
    return {name: np.where(np.isfinite(x), rng.normal(size=x.shape), 0) for name, x in inputs.items()}


def check(forward, backward, inputs, cotangents, directions=3):
    """Compare both sides of the identity; `forward` returns a tuple of results, `backward` gradients by input."""
    gradients = backward(*cotangents, **inputs)
    assert set(gradients) == set(inputs)
    for name, x in inputs.items():
        assert gradients[name].shape == x.shape and gradients[name].dtype == x.dtype, name
    for seed in range(directions):
        rng = np.random.default_rng(seed)
        every = direction_of(inputs, rng)
        for only in (None, *inputs):  # all inputs together, then each by itself
            dx = {name: d if only in (None, name) else 0 * d for name, d in every.items()}
            ahead = forward(**{name: x + STEP * dx[name] for name, x in inputs.items()})
            behind = forward(**{name: x - STEP * dx[name] for name, x in inputs.items()})
            with np.errstate(invalid="ignore"):  # -inf - -inf of rows that see nothing
                moved = [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]
            left = sum((do * np.nan_to_num(m)).sum() for do, m in zip(cotangents, moved, strict=True))
            right = sum((gradients[name] * d).sum() for name, d in dx.items())
            size = 1 + sum(abs(gradients[name] * d).sum() for name, d in dx.items())
            assert abs(left - right) < 2e-7 * size, (only, left, right)


def attention_problem(H=4, Hk=2, Tq=5, Tk=7, D=4, Dv=3, batch=(2,)):
    heads, kv_heads = ((H,), (Hk,)) if H else ((), ())
    return {
        "q": normal(*batch, *heads, Tq, D),
        "k": normal(*batch, *kv_heads, Tk, D),
        "v": normal(*batch, *kv_heads, Tk, Dv),
    }


SOME_BLIND = RNG.random((5, 7)) < 0.5
SOME_BLIND[[1, 4]] = False
MINUS_INF = normal(4, 5, 7)
MINUS_INF[RNG.random((4, 5, 7)) < 0.3] = -np.inf
MINUS_INF[:, 2] = -np.inf

# name -> (shapes, float inputs besides q, k, v, other options)
ATTENTIONS = {
    "plain": ({}, {}, {}),
    "2-D": ({"H": 0, "batch": ()}, {}, {"mask": masks.causal()}),
    "3-D": ({"batch": ()}, {"sinks": normal(4)}, {}),
    "5-D": ({"batch": (2, 2)}, {"bias": normal(2, 4, 1, 7)}, {}),
    "every head its own": ({"Hk": 4}, {}, {"mask": masks.causal()}),
    "one key head": ({"Hk": 1}, {}, {}),
    "six over two": ({"H": 6, "Hk": 2}, {}, {"mask": masks.causal()}),
    "more queries": ({"Tq": 9}, {}, {"mask": masks.causal()}),
    "one query": ({"Tq": 1}, {}, {"mask": masks.causal()}),
    "no keys": ({"Tk": 0}, {"sinks": normal(4)}, {}),
    "no queries": ({"Tq": 0}, {}, {}),
    "wide values": ({"Dv": 9}, {}, {}),
    "mask of an array": ({}, {}, {"mask": RNG.random((2, 4, 5, 7)) < 0.5}),
    "padding": ({}, {}, {"mask": masks.padding([0, 4])}),
    "blind rows": ({}, {}, {"mask": SOME_BLIND}),
    "blind rows with sinks": ({}, {"sinks": normal(4)}, {"mask": SOME_BLIND}),
    "nothing visible": ({}, {"sinks": normal(4)}, {"mask": np.zeros((5, 7), bool)}),
    "scale": ({}, {}, {"scale": 1.7}),
    "scale 0": ({}, {}, {"scale": 0.0}),
    "scale negative": ({}, {}, {"scale": -0.6}),
    "softcap": ({}, {}, {"softcap": 0.8}),
    "softcap and bias": ({}, {"bias": normal(5, 7)}, {"softcap": 0.8}),
    "sinks": ({}, {"sinks": normal(4)}, {}),
    "sinks of -inf": ({}, {"sinks": np.array([-np.inf, 0.0, 1.0, -np.inf])}, {"mask": SOME_BLIND}),
    "bias of everything": ({}, {"bias": normal(2, 4, 5, 7)}, {}),
    "bias of heads": ({}, {"bias": normal(4, 1, 1)}, {"mask": masks.causal()}),
    "bias of heads and pairs": ({}, {"bias": normal(4, 5, 7)}, {}),
    "bias of sequences": ({}, {"bias": normal(2, 1, 1, 7)}, {}),
    "bias of queries": ({}, {"bias": normal(5, 1)}, {}),
    "bias of keys": ({}, {"bias": normal(7)}, {}),
    "bias of one": ({}, {"bias": normal(1, 1, 1, 1)}, {}),
    "bias a number": ({}, {"bias": np.array(0.3)}, {}),
    "bias of -inf": ({}, {"bias": MINUS_INF}, {}),
    "dropout": ({}, {}, {"dropout_mask": RNG.random((2, 4, 5, 7)) < 0.6, "dropout_p": 0.4}),
    "dropout of keys": ({}, {}, {"dropout_mask": RNG.random((1, 7)) < 0.6, "dropout_p": 0.4}),
    "everything": (
        {"H": 6},
        {"bias": normal(6, 1, 7), "sinks": normal(6)},
        {
            "mask": masks.causal() & masks.padding([3, 7]),
            "scale": 0.9,
            "softcap": 1.5,
            "dropout_mask": RNG.random((5, 7)) < 0.6,
            "dropout_p": 0.3,
        },
    ),
}


def gradients_by_input(g, inputs):
    return {name: getattr(g, f"d{name}") for name in inputs}


@pytest.mark.parametrize("with_dlse", [False, True], ids=["", "dlse"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_vjp(name, with_dlse):
    shapes, extra, options = ATTENTIONS[name]
    inputs = attention_problem(**shapes) | extra
    o, lse = refattn.attention(**inputs, **options, return_lse=True)
    cotangents = (normal(*o.shape), normal(*lse.shape)) if with_dlse else (normal(*o.shape),)

    def forward(**inputs):
        return refattn.attention(**inputs, **options, return_lse=True)[: len(cotangents)]

    def backward(do, dlse=None, **inputs):
        return gradients_by_input(refattn.attention_vjp(do, **inputs, **options, dlse=dlse), inputs)

    check(forward, backward, inputs, cotangents)


@pytest.mark.parametrize("with_dlse", [False, True], ids=["", "dlse"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_flash_attention_vjp(name, with_dlse):
    shapes, extra, options = ATTENTIONS[name]
    inputs = attention_problem(**shapes) | extra
    tiles = {"tile_q": 2, "tile_k": 3}
    o, lse = refattn.flash_attention(**inputs, **options, **tiles)
    cotangents = (normal(*o.shape), normal(*lse.shape)) if with_dlse else (normal(*o.shape),)

    def forward(**inputs):
        return refattn.flash_attention(**inputs, **options, **tiles)[: len(cotangents)]

    def backward(do, dlse=None, **inputs):
        g = refattn.flash_attention_vjp(do, **inputs, o=o, lse=lse, **options, dlse=dlse, **tiles)
        return gradients_by_input(g, inputs)

    check(forward, backward, inputs, cotangents)


def test_blind_rows_have_no_gradient():
    inputs = attention_problem()
    do, dlse = normal(2, 4, 5, 3), normal(2, 4, 5)
    with_them = refattn.attention_vjp(do, **inputs, mask=SOME_BLIND, dlse=dlse)
    do[:, :, [1, 4]], dlse[:, :, [1, 4]] = 1e6, -1e6
    for x, y in zip(with_them, refattn.attention_vjp(do, **inputs, mask=SOME_BLIND, dlse=dlse), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (with_them.dq[:, :, [1, 4]] == 0).all()


def test_unseen_keys_have_no_gradient():
    inputs = attention_problem()
    g = refattn.attention_vjp(normal(2, 4, 5, 3), **inputs, mask=masks.padding([0, 4]))
    for x in (g.dk, g.dv):
        assert (x[0] == 0).all() and (x[1, :, 4:] == 0).all() and (x[1, :, :4] != 0).all()


def test_gradients_that_were_not_asked_for_are_none():
    g = refattn.attention_vjp(normal(2, 4, 5, 3), **attention_problem())
    assert g.dbias is None and g.dsinks is None


HEADS = {
    "plain": ({}, {}),
    "grouped": ({"kv_heads": 2}, {}),
    "biases": ({}, {"b": "qkvo"}),
    "some biases": ({}, {"b": "vo"}),
    "context": ({"mask": masks.causal()}, {"context": 9, "b": "k"}),
    "scores": (
        {"mask": masks.causal(), "softcap": 2.0, "scale": 0.8},
        {"bias": normal(4, 6, 1), "sinks": normal(4)},
    ),
    "dropout": ({"dropout_mask": RNG.random((6, 6)) < 0.6, "dropout_p": 0.4}, {}),
    "blind rows": ({"mask": masks.causal(-2)}, {}),
}


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
@pytest.mark.parametrize("name", HEADS)
def test_multi_head_attention_vjp(name, batch):
    options, extra = HEADS[name]
    extra, kv_heads = dict(extra), options.get("kv_heads", 4)
    inputs = {
        "x": normal(*batch, 6, 5),
        "w_q": normal(5, 4 * 3),
        "w_k": normal(5, kv_heads * 3),
        "w_v": normal(5, kv_heads * 2),
        "w_o": normal(4 * 2, 7),
    }
    inputs |= {f"b_{n}": normal(inputs[f"w_{n}"].shape[1]) for n in extra.pop("b", "")}
    if "context" in extra:
        inputs["context"] = normal(*batch, extra.pop("context"), 5)
    inputs |= extra

    def forward(**inputs):
        return (refattn.multi_head_attention(**inputs, heads=4, **options),)

    def backward(do, **inputs):
        g = refattn.multi_head_attention_vjp(do, **inputs, heads=4, **options)
        given = gradients_by_input(g, inputs)
        rest = set(g._fields) - {f"d{name}" for name in inputs}
        assert all(getattr(g, name) is None for name in rest)
        return given

    check(forward, backward, inputs, (normal(*batch, 6, 7),), directions=2)


@pytest.mark.parametrize("options", [{}, {"interleaved": True}, {"rotary_dim": 4}, {"theta": 7.0}])
@pytest.mark.parametrize("positions", [np.arange(5), np.array([[0, 3, 9, 2, 2], [-7, 4, 1, 1, 90]])], ids=["T", "B, T"])
def test_rope_vjp(options, positions):
    def forward(x):
        return (refattn.rope(x, positions, **options),)

    def backward(dy, x):
        return {"x": refattn.rope_vjp(dy, positions, **options)}

    check(forward, backward, {"x": normal(2, 3, 5, 8)}, (normal(2, 3, 5, 8),))


def test_the_check_can_fail():
    inputs = attention_problem()

    def forward(**inputs):
        return (refattn.attention(**inputs),)

    def wrong(do, **inputs):
        g = refattn.attention_vjp(do, **inputs)
        return {"q": 1.00001 * g.dq, "k": g.dk, "v": g.dv}

    with pytest.raises(AssertionError, match=r"'q'|None"):
        check(forward, wrong, inputs, (normal(2, 4, 5, 3),))
