"""PyTorch's `scaled_dot_product_attention`: each difference by hand, and against PyTorch itself on random options."""

import inspect
import math

import numpy as np
import pytest

import refattn
from refattn.dialects.torch_sdpa import scaled_dot_product_attention as sdpa

RNG = np.random.default_rng(0)
BACKENDS = ("numpy", "numba")
WITHOUT_TORCH = "torch is not installed: python -m pip install torch==2.13.0"


def draw(*shape):
    return RNG.standard_normal(shape)


def plain(q, k, v, visible=None, bias=0.0, scale=None):
    """Attend in one line of NumPy, for inputs of equal axes and rows that see something."""
    s = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale) + bias
    p = np.exp(s) if visible is None else np.where(visible, np.exp(s), 0)
    return p / p.sum(axis=-1, keepdims=True) @ v


def test_causal_begins_at_the_top_left():
    q, k, v = draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4)
    first_keys = np.tril(np.ones((3, 5), bool))
    np.testing.assert_allclose(sdpa(q, k, v, is_causal=True), plain(q, k, v, first_keys), rtol=1e-12)
    assert not np.allclose(sdpa(q, k, v, is_causal=True), refattn.attention(q, k, v, mask=refattn.masks.causal()))


def test_one_argument_for_both_kinds_of_masks():
    q, k, v, bias = draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4), draw(3, 5)
    visible = bias > -0.5
    np.testing.assert_allclose(sdpa(q, k, v, visible), plain(q, k, v, visible), rtol=1e-12)
    np.testing.assert_allclose(sdpa(q, k, v, bias), plain(q, k, v, bias=bias), rtol=1e-12)


def test_a_row_that_sees_nothing_is_zero():
    q, k, v = draw(1, 2, 4), draw(1, 3, 4), draw(1, 3, 4)
    hidden = np.array([[False], [True]])
    assert not sdpa(q, k, v, np.broadcast_to(hidden, (2, 3)))[0, 0].any()
    assert not sdpa(q, k, v, np.broadcast_to(np.where(hidden, 0.0, -np.inf), (2, 3)))[0, 0].any()


def test_heads_are_shared_only_when_asked():
    q, k, v = draw(1, 4, 3, 2), draw(1, 2, 3, 2), draw(1, 2, 3, 2)
    with pytest.raises(ValueError, match="enable_gqa"):
        sdpa(q, k, v)
    np.testing.assert_array_equal(sdpa(q, k, v, enable_gqa=True), refattn.attention(q, k, v))


def test_keys_and_values_may_have_different_numbers_of_heads():
    q, k, v = draw(4, 3, 2), draw(2, 5, 2), draw(4, 5, 2)
    want = plain(q, k.repeat(2, axis=0), v)
    np.testing.assert_allclose(sdpa(q, k, v, enable_gqa=True), want, rtol=1e-12)


def test_axes_of_one_broadcast():
    q, k, v = draw(2, 4, 3, 2), draw(1, 4, 5, 2), draw(2, 1, 5, 2)
    np.testing.assert_allclose(sdpa(q, k, v), plain(q, k, v), rtol=1e-12)
    np.testing.assert_allclose(sdpa(q[0, 0], k[0, 0], v[0, 0]), plain(q[0, 0], k[0, 0], v[0, 0]), rtol=1e-12)


def test_dropout_is_a_mask_that_is_given():
    q, k, v, keep = draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4), RNG.random((2, 3, 5)) < 0.7
    want = refattn.attention(q, k, v, dropout_mask=keep, dropout_p=0.3)
    np.testing.assert_array_equal(sdpa(q, k, v, dropout_p=0.3, dropout_mask=keep), want)
    np.testing.assert_array_equal(sdpa(q, k, v, dropout_mask=keep), sdpa(q, k, v))  # dropout_p = 0 keeps all
    assert not sdpa(q, k, v, dropout_p=1.0).any()


def test_what_is_hidden_leaks():
    q, k, v = draw(1, 2, 4), draw(1, 3, 4), draw(1, 3, 4)
    visible = np.array([[True, True, False]])
    want = sdpa(q, k, v, visible)
    v[0, 2, 1] = np.nan
    got = sdpa(q, k, v, visible)
    assert np.isnan(got[..., 1]).all()
    np.testing.assert_array_equal(np.delete(got, 1, axis=-1), np.delete(want, 1, axis=-1))
    k[0, 2, 1] = np.nan
    assert np.isnan(sdpa(q, k, v, visible)).all()


REFUSED = {
    "a mask with is_causal": ({"attn_mask": np.ones((3, 3), bool), "is_causal": True}, ValueError, "is_causal"),
    "an integer mask": ({"attn_mask": np.ones((3, 3), int)}, TypeError, "bool or float"),
    "a mask of one axis": ({"attn_mask": np.ones(3, bool)}, ValueError, r"\(\.\.\., Tq, Tk\)"),
    "a mask that does not fit": ({"attn_mask": np.ones((3, 4), bool)}, ValueError, "has shape"),
    "dropout without a mask": ({"dropout_p": 0.5}, ValueError, "without a dropout_mask"),
    "a probability above one": ({"dropout_p": 1.5, "dropout_mask": np.ones((3, 3), bool)}, ValueError, "dropout_p"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    options, error, message = REFUSED[what]
    x = np.ones((1, 3, 2))
    with pytest.raises(error, match=message):
        sdpa(x, x, x, **options)


def test_what_torch_refuses_about_shapes_is_refused():
    x = np.ones((1, 3, 2))
    with pytest.raises(ValueError, match="no multiple"):
        sdpa(np.ones((3, 3, 2)), np.ones((2, 3, 2)), np.ones((2, 3, 2)), enable_gqa=True)
    with pytest.raises(ValueError, match="axis of heads"):
        sdpa(x[0], x[0], x[0], enable_gqa=True)
    with pytest.raises(TypeError, match="dtypes differ"):
        sdpa(x, x, x.astype(np.float32))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason=WITHOUT_TORCH)


def random_call(seed):
    """Return (query, key, value, options) for one of the many ways to call it."""
    rng = np.random.default_rng(seed)
    Hk, G, D, Dv = (int(rng.integers(1, n)) for n in (4, 4, 20, 20))
    Tq, Tk, B, H = int(rng.integers(1, 24)), int(rng.integers(1, 24)), int(rng.integers(1, 3)), Hk * G
    lead_q, lead_k = (B, H), (B, Hk)
    options = {"scale": [None, 0.3, -0.7][seed % 3]}
    form = ["gqa", "uneven", "broadcast", "3-D", "2-D"][rng.integers(5)]
    lead_v = lead_k
    if form in ("gqa", "uneven"):
        options["enable_gqa"] = True
        lead_v = (B, H) if form == "uneven" else lead_k
    if form == "broadcast":
        lead_k, lead_v = (1, H), (B, 1)
    if form in ("3-D", "2-D"):
        lead_q, lead_k, lead_v = ((H,),) * 3 if form == "3-D" else ((),) * 3
    q, k, v = (rng.standard_normal(shape) for shape in ((*lead_q, Tq, D), (*lead_k, Tk, D), (*lead_v, Tk, Dv)))
    kind = rng.choice(["none", "causal", "bool", "float", "-inf"])
    lead = lead_q[: rng.integers(len(lead_q) + 1)]
    mask_shape = (*(1 for _ in lead_q[len(lead) :]), Tq, Tk) if not lead else (*lead_q[:-1], 1, Tq, Tk)
    if kind == "causal":
        options["is_causal"] = True
    elif kind == "bool":
        options["attn_mask"] = rng.random(mask_shape) < 0.3  # some rows see nothing
    elif kind in ("float", "-inf"):
        mask = rng.standard_normal(mask_shape)
        options["attn_mask"] = np.where(mask < 0.5, -np.inf, mask) if kind == "-inf" else mask
    return q, k, v, options


def in_torch(torch, x):
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


@pytest.mark.peers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(60))
def test_equals_torch(torch, seed, backend):
    *qkv, options = random_call(seed)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(in_torch(torch, x) for x in qkv), **{name: in_torch(torch, x) for name, x in options.items()}
    ).numpy()
    ours = sdpa(*qkv, **options, backend=backend)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * max(1, np.abs(theirs).max()))


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["MATH", "FLASH_ATTENTION"])
def test_rows_that_see_nothing_are_zero_in_torch(torch, kind):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (draw(1, 1, 2, 4) for _ in range(3))
    hidden = np.array([[False, False], [True, False]])
    with sdpa_kernel(getattr(SDPBackend, kind)):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(x) for x in (q, k, v)), attn_mask=torch.from_numpy(hidden)
        ).numpy()
    np.testing.assert_allclose(sdpa(q, k, v, hidden), theirs, rtol=1e-12)
    assert not theirs[0, 0, 0].any()


@pytest.mark.peers
def test_torch_has_two_answers_to_a_mask_with_causal(torch):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (draw(1, 1, 3, 4) for _ in range(3))
    visible = np.array([[True, True, True], [False, True, True], [True, False, True]])
    ask = torch.nn.functional.scaled_dot_product_attention
    given = [torch.from_numpy(x) for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="should not be set when is_causal"):
        ask(*given, attn_mask=torch.from_numpy(visible), is_causal=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = ask(*given, attn_mask=torch.from_numpy(visible), is_causal=True).numpy()
    np.testing.assert_allclose(fused, sdpa(q, k, v, visible & np.tril(np.ones((3, 3), bool))), rtol=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": np.tril(np.ones((4, 4), bool))}], ids=str)
def test_what_is_hidden_leaks_as_in_torch(torch, where, bad, options, backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (draw(1, 1, 4, 3) for _ in range(3))
    (k if where == "key" else v)[0, 0, 3, 1] = bad
    with sdpa_kernel(SDPBackend.MATH):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(x) for x in (q, k, v)), **{name: in_torch(torch, x) for name, x in options.items()}
        ).numpy()
    assert np.isnan(theirs).any()
    with np.errstate(invalid="ignore"):
        ours = sdpa(q, k, v, **options, backend=backend)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


@pytest.mark.peers
@pytest.mark.parametrize("what", ["an integer mask", "a mask that does not fit"])
def test_torch_refuses_what_is_refused(torch, what):
    x = torch.ones((1, 1, 3, 2), dtype=torch.float64)
    with pytest.raises(RuntimeError):
        torch.nn.functional.scaled_dot_product_attention(x, x, x, torch.from_numpy(REFUSED[what][0]["attn_mask"]))


@pytest.mark.peers
def test_torch_has_the_same_arguments(torch):
    head = torch.nn.functional.scaled_dot_product_attention.__doc__.split("->")[0]
    theirs = [part.split("=")[0].strip() for part in head[head.index("(") + 1 : head.index(")")].split(",")]
    ours = [name for name in inspect.signature(sdpa).parameters if name not in ("dropout_mask", "backend")]
    assert ours == theirs
