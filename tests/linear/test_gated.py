"""Linear attention with decays: every form says the same, whatever the lengths, heads, cuts and gates."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import dispatch
from refattn.testing import check_backend
from tests.mistakes import gated

GATES = {
    "simple_gla": "HT",
    "gated_linear_attention": "HTD",
    "retention": "H",
    "lightning_attention": "H",
    "hgrn2": "HTD",
}
every = pytest.mark.parametrize("name", GATES)
quickly = settings(max_examples=25, deadline=None, derandomize=True)


def form(name, suffix=""):
    return getattr(refattn, name + suffix)


def problem(name, seed, batch, heads, T, D=3, Dv=2):
    """Return (q, k, v, gates) or (q, gates, v), and a state; some gates are -inf and some 0."""
    rng = np.random.default_rng(seed)
    H, Hk, Hv = [(h,) for h in heads] or [()] * 3
    q, k, v = (rng.normal(size=(*batch, *h, T, d)) for h, d in ((H, D), (Hk, D), (Hv, Dv)))
    shape = {"HT": v.shape[:-1], "HTD": (*v.shape[:-1], D), "H": Hv or (1,)}[GATES[name]]
    g = -2 * rng.exponential(size=shape) * (rng.random(shape) < 0.8)
    g[rng.random(shape) < 0.15] = -np.inf
    state = rng.normal(size=(*batch, *Hv, D, Dv))
    return ((q, g, v) if name == "hgrn2" else (q, k, v, g)), state


def cut(name, args, t):
    """Return the arguments of the tokens `t`; gates of a head stay as they are."""
    gates = {"HT": np.s_[..., t], "HTD": np.s_[..., t, :], "H": ...}[GATES[name]]
    n = 1 if name == "hgrn2" else 3
    return tuple(x[gates] if i == n else x[..., t, :] for i, x in enumerate(args))


def token_by_token(name, args, state, scale):
    """The recurrence written out for one head, in Python."""
    q, g = args[0], args[1 if name == "hgrn2" else 3]
    k = 1 - np.exp(g) if name == "hgrn2" else args[1]
    v, S, o = args[2], state.copy(), []
    for t in range(len(q)):
        a = np.exp(g if GATES[name] == "H" else g[t])
        S = (S.T * a).T + np.outer(k[t], v[t])
        o.append(scale * S.T @ q[t])
    return np.array(o), S


def same(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def same_results(a, b):
    same(a.o, b.o)
    same(a.state, b.state)


heads_of_some = st.sampled_from([(), (1, 1, 1), (2, 2, 2), (4, 1, 2), (1, 1, 3), (2, 2, 4)])
batches = st.sampled_from([(), (2,), (2, 1)])


@every
def test_one_head_is_the_recurrence(name):
    args, state = problem(name, 0, (), (), 7)
    scale = 1.0 if name == "hgrn2" else 3**-0.5
    o, last = token_by_token(name, args, state, scale)
    for suffix in ("", "_recurrent", "_chunked"):
        found = form(name, suffix)(*args, initial_state=state)
        same(found.o, o)
        same(found.state, last)


@every
@quickly
@given(data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), chunk=st.integers(1, 10))
def test_three_forms(name, data, seed, T, chunk):
    heads = data.draw(heads_of_some)
    args, state = problem(name, seed, data.draw(batches) if heads else (), heads, T)
    options = {"initial_state": state} if seed % 2 else {}
    parallel = form(name)(*args, **options)
    same_results(form(name, "_recurrent")(*args, **options), parallel)
    same_results(form(name, "_chunked")(*args, **options, chunk=chunk), parallel)
    assert parallel.o.shape[:-2] == (max(args[0].shape[:-2], args[2].shape[:-2]))
    assert np.isfinite(parallel.o).all()


@every
@quickly
@given(
    data=st.data(), seed=st.integers(0, 99), T=st.integers(0, 9), suffix=st.sampled_from(["", "_recurrent", "_chunked"])
)
def test_split_and_resumed(name, data, seed, T, suffix):
    args, state = problem(name, seed, (2,), (2, 2, 2), T)
    at = data.draw(st.integers(0, T))
    whole = form(name, suffix)(*args, initial_state=state)
    first = form(name, suffix)(*cut(name, args, slice(0, at)), initial_state=state)
    rest = form(name, suffix)(*cut(name, args, slice(at, T)), initial_state=first.state)
    same(np.concatenate([first.o, rest.o], axis=-2), whole.o)
    same(rest.state, whole.state)


@every
@quickly
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), chunk=st.integers(1, 5))
def test_packed_sequences_are_a_loop(name, seed, lengths, chunk):
    borders = np.cumsum([0, *lengths])
    args, _ = problem(name, seed, (), (4, 2, 2), borders[-1])
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(len(lengths), 2, 3, 2))
    do, dstate = rng.normal(size=(4, borders[-1], 2)), rng.normal(size=states.shape)
    tokens = [slice(a, b) for a, b in itertools.pairwise(borders)]
    for suffix, options in (("", {}), ("_recurrent", {}), ("_chunked", {"chunk": chunk})):
        packed = form(name, suffix)(*args, initial_state=states, cu_seqlens=borders, **options)
        for n, t in enumerate(tokens):
            alone = form(name, suffix)(*cut(name, args, t), initial_state=states[n], **options)
            same(packed.o[:, t], alone.o)
            same(packed.state[n], alone.state)
    g = form(name, "_vjp")(do, *args, initial_state=states, cu_seqlens=borders, dstate=dstate)
    alone = [
        form(name, "_vjp")(do[:, t], *cut(name, args, t), initial_state=states[n], dstate=dstate[n])
        for n, t in enumerate(tokens)
    ]
    for field in ("dq", "dv"):
        same(getattr(g, field), np.concatenate([getattr(one, field) for one in alone], axis=-2))
    same(g.dinitial_state, np.stack([one.dinitial_state for one in alone]))
    if GATES[name] == "H":
        same(g.dlog_decay, sum(one.dlog_decay for one in alone))


@quickly
@given(seed=st.integers(0, 99), T=st.integers(0, 9))
def test_one_is_a_case_of_the_other(seed, T):
    (q, k, v, g), state = problem("retention", seed, (2,), (4, 2, 2), T)
    per_token = np.broadcast_to(g[:, None], (2, 2, T)).copy()
    per_key = np.broadcast_to(per_token[..., None], (2, 2, T, 3)).copy()
    want = refattn.retention(q, k, v, g, initial_state=state)
    same_results(refattn.simple_gla(q, k, v, per_token, initial_state=state), want)
    same_results(refattn.gated_linear_attention(q, k, v, per_key, initial_state=state), want)
    same_results(refattn.lightning_attention_chunked(q, k, v, g, initial_state=state, chunk=2), want)
    keys = 1 - np.exp(per_key)
    gla = refattn.gated_linear_attention(q, keys, v, per_key, scale=0.3, initial_state=state)
    same_results(refattn.hgrn2(q, per_key, v, scale=0.3, initial_state=state), gla)


@every
@pytest.mark.parametrize("suffix", ["", "_recurrent", "_chunked"])
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_what_a_gate_forgets_leaves_no_trace(name, suffix, lost):
    args, state = problem(name, 0, (2,), (2, 2, 2), 6)
    at = {"H": ..., "HT": np.s_[..., 3], "HTD": np.s_[..., 3, :]}[GATES[name]]
    args[1 if name == "hgrn2" else 3][at] = -np.inf
    options = {"chunk": 2} if suffix == "_chunked" else {}
    want = form(name, suffix)(*args, initial_state=state, **options)
    args[2][..., 1, :], state[:] = lost, lost
    if GATES[name] != "H":
        args[1 if name == "hgrn2" else 3][{"HT": np.s_[..., 2], "HTD": np.s_[..., 2, :]}[GATES[name]]] = np.nan
    if name != "hgrn2":
        args[1][..., 2, :] = lost
    found = form(name, suffix)(*args, initial_state=state, **options)
    np.testing.assert_array_equal(found.o[..., 3:, :], want.o[..., 3:, :])
    np.testing.assert_array_equal(found.state, want.state)
    g = form(name, "_vjp")(np.ones_like(want.o), *args, initial_state=state)
    assert np.isfinite(g.dq[..., 3:, :]).all() and np.isfinite(g.dv[..., 3:, :]).all()
    assert (g.dlog_decay[at] == 0).all()


@pytest.mark.parametrize("name", ["gated_linear_attention", "hgrn2"])
def test_a_lost_dimension_is_lost_alone(name):
    args, state = problem(name, 3, (), (), 4)
    args[1 if name == "hgrn2" else 3][:] = -0.1
    args[1 if name == "hgrn2" else 3][2, 1] = -np.inf
    state[1] = np.nan
    for suffix in ("", "_recurrent", "_chunked"):
        found = form(name, suffix)(*args, initial_state=state)
        assert np.isnan(found.o[:2]).all() and np.isfinite(found.o[2:]).all() and np.isfinite(found.state).all()


@every
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(name, dtype):
    args, _ = problem(name, 0, (2,), (2, 2, 2), 5)
    args = tuple(x.astype(dtype) for x in args)
    wide = np.float64 if dtype == np.float64 else np.float32
    for suffix in ("", "_recurrent", "_chunked"):
        o, state = form(name, suffix)(*args)
        assert o.dtype == dtype and state.dtype == wide
    g = form(name, "_vjp")(o, *args, initial_state=state)
    assert {x.dtype for x in g if x is not None} == {np.dtype(dtype), np.dtype(wide)}
    assert g.dinitial_state.dtype == wide


@every
def test_decays_that_underflow(name):
    args, state = problem(name, 0, (), (1, 1, 1), 130)
    args = tuple(x.astype(np.float32) for x in args)
    gates = np.full_like(args[1 if name == "hgrn2" else 3], -20)
    args = (args[0], gates, args[2]) if name == "hgrn2" else (*args[:3], gates)
    for suffix in ("", "_recurrent", "_chunked"):
        o, last = form(name, suffix)(*args, initial_state=state.astype(np.float32))
        assert np.isfinite(o).all() and np.isfinite(last).all()
        own = form(name, suffix)(*cut(name, args, slice(129, 130)))
        np.testing.assert_allclose(o[:, -1:], own.o, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operation", [f"{name}{suffix}" for name in GATES for suffix in ("", "_vjp")])
def test_what_the_mistakes_are_made_from_is_right(operation):
    function = gated.backward if operation.endswith("_vjp") else gated.forward
    right = partial(function, kind=operation.removesuffix("_vjp"))
    dispatch.register("right", SimpleNamespace(**{operation: right}))
    try:
        report = check_backend("right", [operation])
    finally:
        dispatch.unregister("right")
    assert report.ok, str(report)


def test_decays_of_retention():
    same(np.exp(refattn.retention_log_decay(8)), 1 - 2.0 ** -np.arange(5, 13))
    with pytest.raises(ValueError, match="retention_log_decay: heads is 0"):
        refattn.retention_log_decay(0)


def test_decays_of_lightning():
    first, last = (refattn.lightning_log_decay(4, layer, 3) for layer in (0, 2))
    same(first, -refattn.alibi_slopes(4) * 1.00001)
    same(last, -refattn.alibi_slopes(4) * 0.00001)
    same(refattn.lightning_log_decay(4, 0, 1), first)
    with pytest.raises(ValueError, match="layer is 3; wanted less than layers = 3"):
        refattn.lightning_log_decay(4, 3, 3)


@pytest.mark.peers
@pytest.mark.parametrize("T", [1, 5, 12])
def test_lightning_as_in_transformers(T):
    torch, _, config, attention = minimax()
    layer = attention(config, 1).double()
    x = torch.randn(2, T, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = {}
    layer.norm.register_forward_hook(lambda module, args, out: seen.update(o=args[0]))
    with torch.no_grad():
        _, state = layer(x, None, None)
        qkv = layer.act_fn(layer.qkv_proj(x)).reshape(2, T, 4, 24)
    q, k, v = (y.transpose(1, 2).numpy() for y in torch.split(qkv, 8, dim=3))
    g = refattn.lightning_log_decay(4, 1, 4)
    np.testing.assert_allclose(-layer.slope_rate.numpy().reshape(-1), g, rtol=1e-4)  # its 1e-5 stands elsewhere, too
    g = -layer.slope_rate.double().numpy().reshape(-1)
    o, last = refattn.lightning_attention(q, k, v, g, scale=1.0)
    np.testing.assert_allclose(o.swapaxes(1, 2).reshape(2, T, 32), seen["o"].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, state.numpy(), rtol=1e-5, atol=1e-6)


def minimax():
    import torch
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "block_size": 4, "head_dim": 8}
    torch.manual_seed(0)
    config = MiniMaxConfig(**sizes, num_key_value_heads=4, vocab_size=8, intermediate_size=8)
    return torch, sizes, config, MiniMaxLightningAttention
