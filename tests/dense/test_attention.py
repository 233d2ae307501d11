"""`attention` against the formula written out number by number, and against the relations that it must keep."""

import math

import numpy as np
import pytest

import refattn
from refattn import masks

RNG = np.random.default_rng(0)


def draw(batch=(2,), H=4, Hk=2, Tq=5, Tk=7, D=6, Dv=3):
    return (
        RNG.normal(size=(*batch, H, Tq, D)),
        RNG.normal(size=(*batch, Hk, Tk, D)),
        RNG.normal(size=(*batch, Hk, Tk, Dv)),
    )


def one_row(q, keys, values, visible, bias, scale, softcap, sink, keep, dropout_p):
    """Attend with one query, in plain Python: what the docstring says, term by term."""
    seen = [j for j in range(len(keys)) if visible[j]]
    s = {}
    for j in seen:
        s[j] = scale * sum(float(a) * float(b) for a, b in zip(q, keys[j], strict=True))
        if softcap is not None:
            s[j] = softcap * math.tanh(s[j] / softcap)
        s[j] += bias[j]
    total = sum(math.exp(x) for x in s.values()) + (0 if sink is None else math.exp(sink))
    o = [0.0] * len(values[0])
    for j in seen:
        p = math.exp(s[j]) / total
        for c in range(len(o)):
            o[c] += p * keep[j] / (1 - dropout_p) * float(values[j][c])
    return o, math.log(total) if total else -math.inf


OPTIONS = {
    "nothing": {},
    "causal": {"mask": masks.causal()},
    "array mask": {"mask": RNG.random((2, 4, 5, 7)) < 0.4},
    "bias": {"bias": RNG.normal(size=(4, 5, 7))},
    "scale": {"scale": -0.3},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": RNG.normal(size=4)},
    "dropout": {"dropout_mask": RNG.random((5, 7)) < 0.5, "dropout_p": 0.4},
    "everything": {
        "mask": masks.causal() & masks.padding([2, 7]),
        "bias": RNG.normal(size=(2, 1, 1, 7)),
        "scale": 0.9,
        "softcap": 1.1,
        "sinks": RNG.normal(size=4),
        "dropout_mask": RNG.random((2, 4, 5, 7)) < 0.5,
        "dropout_p": 0.25,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_term_by_term(name):
    options = OPTIONS[name]
    q, k, v = draw()
    o, lse = refattn.attention(q, k, v, **options, return_lse=True)
    mask = masks.as_mask(options.get("mask"))
    visible = np.broadcast_to(True if mask is None else mask.dense(5, 7), (2, 4, 5, 7))
    bias = np.broadcast_to(options.get("bias", 0.0), (2, 4, 5, 7))
    keep = np.broadcast_to(options.get("dropout_mask", True), (2, 4, 5, 7))
    for b, h, i in np.ndindex(2, 4, 5):
        want, want_lse = one_row(
            q[b, h, i],
            k[b, h // 2],
            v[b, h // 2],
            visible[b, h, i],
            bias[b, h, i],
            options.get("scale", 1 / math.sqrt(6)),
            options.get("softcap"),
            options["sinks"][h] if "sinks" in options else None,
            keep[b, h, i],
            options.get("dropout_p", 0.0),
        )
        np.testing.assert_allclose(o[b, h, i], want, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[b, h, i], want_lse, rtol=1e-12, atol=1e-14)


def test_weights_come_back_from_lse():
    q, k, v = draw()
    o, lse = refattn.attention(q, k, np.broadcast_to(np.eye(7), (2, 2, 7, 7)), return_lse=True)  # o is p
    s = np.einsum("bhid,bhjd->bhij", q, np.repeat(k, 2, axis=1)) / math.sqrt(6)
    np.testing.assert_allclose(o, np.exp(s - lse[..., None]), rtol=1e-12)
    np.testing.assert_allclose(o.sum(axis=-1), 1, rtol=1e-12)
    assert refattn.attention(q, k, v).shape == (2, 4, 5, 3)


def test_a_row_that_sees_nothing():
    q, k, v = draw()
    visible = np.ones((5, 7), bool)
    visible[2] = False
    o, lse = refattn.attention(q, k, v, mask=visible, return_lse=True)
    assert (o[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == -np.inf).all()
    assert np.isfinite(np.delete(lse, 2, axis=-1)).all()
    g = refattn.attention_vjp(np.ones_like(o), q, k, v, mask=visible, dlse=np.ones_like(lse))
    assert (g.dq[:, :, 2] == 0).all()
    assert all(np.isfinite(x).all() for x in (g.dq, g.dk, g.dv))


def test_a_row_that_sees_only_its_sink():
    q, k, v = draw()
    sinks = np.array([0.5, -1.0, 3.0, 0.0])
    o, lse = refattn.attention(q, k, v, mask=np.zeros((5, 7), bool), sinks=sinks, return_lse=True)
    assert (o == 0).all()
    np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], (2, 4, 5)))


@pytest.mark.parametrize("operation", ["attention", "flash_attention", "attention_split_kv"])
def test_no_keys(operation):
    q, k, v = draw(Tk=0)
    extra = {} if operation == "flash_attention" else {"return_lse": True}
    o, lse = getattr(refattn, operation)(q, k, v, **extra)
    assert o.shape == (2, 4, 5, 3) and (o == 0).all()
    assert lse.shape == (2, 4, 5) and (lse == -np.inf).all()


def test_no_queries_and_no_batch():
    q, k, v = draw(Tq=0)
    o, lse = refattn.attention(q, k, v, mask=masks.causal(), return_lse=True)
    assert (o.shape, lse.shape) == ((2, 4, 0, 3), (2, 4, 0))
    q, k, v = draw(batch=(0,))
    assert refattn.attention(q, k, v).shape == (0, 4, 5, 3)


def test_adding_to_every_score_changes_only_lse():
    q, k, v = draw()
    o, lse = refattn.attention(q, k, v, return_lse=True)
    shifted, shifted_lse = refattn.attention(q, k, v, bias=np.full((1, 1), 3.0), return_lse=True)
    np.testing.assert_allclose(shifted, o, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(shifted_lse, lse + 3, rtol=1e-12)


def test_a_sink_is_one_more_key_without_a_value():
    q, k, v = draw(Hk=4)
    sinks = RNG.normal(size=4)
    with_key = np.concatenate([k, np.zeros((2, 4, 1, 6))], axis=2)
    with_value = np.concatenate([v, np.zeros((2, 4, 1, 3))], axis=2)
    bias = np.zeros((4, 1, 8))
    bias[:, 0, 7] = sinks
    got = refattn.attention(q, k, v, sinks=sinks, return_lse=True)
    want = refattn.attention(q, with_key, with_value, bias=bias, return_lse=True)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def test_grouped_heads_equal_repeated_heads():
    q, k, v = draw(H=6, Hk=2)
    want = refattn.attention(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1))
    np.testing.assert_array_equal(refattn.attention(q, k, v), want)


def test_dropout_leaves_lse_alone():
    q, k, v = draw()
    _, want = refattn.attention(q, k, v, return_lse=True)
    o, lse = refattn.attention(q, k, v, dropout_mask=np.zeros((5, 7), bool), dropout_p=0.5, return_lse=True)
    assert (o == 0).all()
    np.testing.assert_array_equal(lse, want)


def test_a_whole_sequence_at_once_or_token_by_token():
    """Decoding with a cache: the last query of a causal problem needs no other query."""
    q, k, v = draw(Tq=7)
    want = refattn.attention(q, k, v, mask=masks.causal())
    cache = refattn.KVCache((2,), kv_heads=2, capacity=7, head_dim=6, v_head_dim=3, dtype=np.float64)
    for t in range(7):
        keys, values = cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        o = refattn.attention(q[:, :, t : t + 1], keys, values, mask=masks.causal())
        np.testing.assert_allclose(o, want[:, :, t : t + 1], rtol=1e-12, atol=1e-14)


def test_large_scores_do_not_overflow():
    q, k, v = draw()
    o, lse = refattn.attention(1e3 * q, 1e3 * k, v, return_lse=True)
    s = 1e6 * np.einsum("bhid,bhjd->bhij", q, np.repeat(k, 2, axis=1)) / math.sqrt(6)
    best = s.argmax(axis=-1)
    want = np.take_along_axis(np.repeat(v, 2, axis=1), best[..., None], axis=2)
    np.testing.assert_allclose(o, want, rtol=1e-9)
    np.testing.assert_allclose(lse, s.max(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("operation", [refattn.attention, refattn.attention_split_kv])
def test_a_numpy_number_does_not_set_the_dtype(operation, anywhere):
    q = np.ones((1, 5, 8), np.float32)
    options = {"scale": 1 / np.sqrt(8), "softcap": np.float64(3), "return_lse": True, "backend": anywhere}
    o, lse = operation(q, q, q, **options)
    assert o.dtype == lse.dtype == np.float32


def test_an_infinite_sink_is_refused(anywhere):
    q = np.ones((1, 5, 8), np.float32)
    with pytest.raises(ValueError, match="attention: sinks holds inf"):
        refattn.attention(q, q, q, sinks=np.array([np.inf], np.float32), backend=anywhere)
