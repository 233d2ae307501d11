"""What latent attention means: two orders of the same products, one short cache for all heads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks

NAMES = ("q_nope", "q_rope", "c_kv", "k_rope", "w_uk", "w_uv")
BOTH = (refattn.mla_attention, refattn.mla_attention_expanded)


def draw(seed=0, batch=(2,), H=3, Tq=4, Tk=6, Dn=5, Dr=2, L=7, Dv=4):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, H, Tq, Dn), (*batch, H, Tq, Dr), (*batch, Tk, L), (*batch, Tk, Dr), (H, L, Dn), (H, L, Dv))
    return dict(zip(NAMES, (rng.normal(size=shape) for shape in shapes), strict=True))


@pytest.mark.parametrize("operation", BOTH)
def test_the_paper_written_out(operation):
    x = draw()
    o, lse = operation(**x, mask=masks.causal(), return_lse=True)
    for b, h, i in np.ndindex(o.shape[:-1]):
        scores, values = [], []
        for j in range(i + 6 - 4 + 1):
            k = np.concatenate([x["c_kv"][b, j] @ x["w_uk"][h], x["k_rope"][b, j]])  # eq. 42-44
            q = np.concatenate([x["q_nope"][b, h, i], x["q_rope"][b, h, i]])
            scores.append(q @ k / np.sqrt(5 + 2))  # eq. 46: sqrt(d_h + d_h^R)
            values.append(x["c_kv"][b, j] @ x["w_uv"][h])  # eq. 45
        p = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(o[b, h, i], p @ np.array(values), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[b, h, i], np.log(np.exp(scores).sum()), rtol=1e-12)


sizes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "batch": st.sampled_from([(), (1,), (2,), (2, 1)]),
        "H": st.integers(1, 4),
        "Tq": st.integers(0, 5),
        "Tk": st.integers(0, 6),
        "Dn": st.integers(1, 6),
        "Dr": st.integers(0, 4),
        "L": st.integers(1, 9),
        "Dv": st.integers(1, 5),
    }
)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(sizes, st.sampled_from([None, "causal", "random"]), st.sampled_from([None, 0.0, 0.7, -1.3]))
def test_absorbed_is_expanded(sizes, kind, scale):
    x = draw(**sizes)
    shape = (sizes["H"], sizes["Tq"], sizes["Tk"])
    mask = {"causal": masks.causal(), "random": np.random.default_rng(1).random(shape) < 0.4}.get(kind)
    absorbed, expanded = (f(**x, mask=mask, scale=scale, return_lse=True) for f in BOTH)
    for a, b in zip(absorbed, expanded, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_identity_projections_are_multi_query_attention():
    x = draw(H=3, Dn=7, L=7, Dv=7, Dr=2)
    x["w_uk"] = x["w_uv"] = np.broadcast_to(np.eye(7), (3, 7, 7))
    q, k = (np.concatenate(pair, -1) for pair in ((x["q_nope"], x["q_rope"]), (x["c_kv"], x["k_rope"])))
    want = refattn.attention(q, k[:, None], x["c_kv"][:, None])
    np.testing.assert_allclose(refattn.mla_attention(**x), want, rtol=1e-12)


def test_rotated_parts_know_only_distances():
    x, (here, there) = draw(Tq=6, Dr=4), (np.arange(6), np.arange(6) + 1000)
    at = [
        refattn.mla_attention(
            **x | {"q_rope": refattn.rope(x["q_rope"], t), "k_rope": refattn.rope(x["k_rope"][:, None], t)[:, 0]}
        )
        for t in (here, there)
    ]
    np.testing.assert_allclose(*at, rtol=1e-9)
    assert abs(at[0] - refattn.mla_attention(**x)).max() > 0.01


@pytest.mark.parametrize("operation", BOTH)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_hidden_tokens_influence_nothing(operation, poison):
    x = draw()
    mask = masks.padding([4, 0])
    want = operation(**x, mask=mask, return_lse=True)
    for name in ("c_kv", "k_rope"):
        x[name] = x[name].copy()
        x[name][0, 4:], x[name][1] = poison, poison
    for got, same in zip(operation(**x, mask=mask, return_lse=True), want, strict=True):
        np.testing.assert_array_equal(got, same)
    assert (want[0][1] == 0).all() and np.isneginf(want[1][1]).all()


@pytest.mark.parametrize("operation", BOTH)
def test_blind_rows_are_zero_whatever_the_weights_hold(operation):
    x = draw()
    x["w_uv"] = np.full_like(x["w_uv"], np.nan)
    o = operation(**x, mask=masks.padding([6, 0]))
    assert np.isnan(o[0]).all() and (o[1] == 0).all()


@pytest.mark.parametrize("operation", BOTH)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(operation, dtype):
    x = {name: y.astype(dtype) for name, y in draw().items()}
    o, lse = operation(**x, return_lse=True)
    want, _ = operation(**{name: y.astype(np.float64) for name, y in x.items()}, return_lse=True)
    assert o.dtype == dtype and lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(o, want, rtol=4 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


def test_a_numpy_scale_does_not_widen():
    x = {name: y.astype(np.float32) for name, y in draw().items()}
    assert refattn.mla_attention(**x, scale=np.float64(0.3)).dtype == np.float32


GRADIENTS = {
    "plain": ({}, {}),
    "one sequence": ({"batch": ()}, {"mask": masks.causal()}),
    "two batch axes": ({"batch": (2, 2)}, {"scale": 0.4}),
    "no rotated part": ({"Dr": 0}, {}),
    "blind rows": ({"Tq": 6}, {"mask": masks.causal(-2)}),
    "padding": ({}, {"mask": masks.padding([4, 0])}),
    "per head": ({}, {"mask": np.random.default_rng(5).random((3, 4, 6)) < 0.5}),
    "no tokens": ({"Tk": 0}, {}),
}


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("name", GRADIENTS)
def test_vjp_by_central_differences(name, form):
    shapes, options = GRADIENTS[name]
    x, rng, step = draw(**shapes), np.random.default_rng(7), 1e-6
    o, lse = form(**x, **options, return_lse=True)
    do, dlse = rng.normal(size=o.shape), rng.normal(size=lse.shape)
    g = refattn.mla_attention_vjp(do, **x, **options, dlse=dlse)._asdict()

    def total(**inputs):
        o, lse = form(**inputs, **options, return_lse=True)
        return (do * o).sum() + (dlse * np.where(np.isneginf(lse), 0, lse)).sum()

    for only in NAMES:
        assert g[f"d{only}"].shape == x[only].shape and g[f"d{only}"].dtype == x[only].dtype
        d = rng.normal(size=x[only].shape)
        moved = total(**x | {only: x[only] + step * d}) - total(**x | {only: x[only] - step * d})
        assert abs(moved / (2 * step) - (g[f"d{only}"] * d).sum()) < 1e-7 * (1 + abs(g[f"d{only}"] * d).sum()), only


def test_hidden_tokens_have_no_gradient_and_leave_none():
    x, mask = draw(), masks.padding([4, 0])
    do = np.random.default_rng(3).normal(size=(2, 3, 4, 4))
    want = refattn.mla_attention_vjp(do, **x, mask=mask)
    x["c_kv"][0, 4:], x["k_rope"][1] = np.nan, np.inf
    got = refattn.mla_attention_vjp(do, **x, mask=mask)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (got.dc_kv[0, 4:] == 0).all() and (got.dc_kv[1] == 0).all() and (got.dk_rope[1] == 0).all()


@pytest.mark.parametrize("name", ["w_uk", "w_uv"])
def test_hidden_tokens_have_no_gradient_whatever_the_weights_hold(name):
    x = draw()
    x[name] = np.full_like(x[name], np.nan)
    g = refattn.mla_attention_vjp(np.ones((2, 3, 4, 4)), **x, mask=masks.padding([4, 0]))
    assert np.isnan(g.dc_kv[0, :4]).all() and (g.dc_kv[0, 4:] == 0).all() and (g.dc_kv[1] == 0).all()


def test_a_token_hidden_from_one_head_only_leaves_that_head_alone():
    x, mask = draw(), np.ones((3, 4, 6), bool)
    mask[1, :, 2] = False
    x["c_kv"][:, 2] = np.nan
    g = refattn.mla_attention_vjp(np.ones((2, 3, 4, 4)), **x, mask=mask)
    assert np.isfinite(g.dw_uk[1]).all() and np.isfinite(g.dw_uv[1]).all()
    assert np.isnan(g.dw_uk[0]).all() and np.isfinite(g.dq_nope[:, 1]).all()


def test_decoding_token_by_token_is_one_pass():
    x = draw(Tq=6)
    whole = refattn.mla_attention_expanded(**x, mask=masks.causal())
    for t in range(6):
        now = {name: x[name][:, :, t : t + 1] for name in ("q_nope", "q_rope")}
        cache = {name: x[name][:, : t + 1] for name in ("c_kv", "k_rope")}
        np.testing.assert_allclose(
            refattn.mla_attention(**x | now | cache)[:, :, 0], whole[:, :, t], rtol=1e-11, atol=1e-13
        )


def deepseek(torch, version):
    """Return a tiny attention layer of transformers in float64, its input, and its angles."""
    from importlib import import_module

    name = f"deepseek_v{version}"
    package = import_module(f"transformers.models.{name}.modeling_{name}")
    config = getattr(import_module(f"transformers.models.{name}.configuration_{name}"), f"DeepseekV{version}Config")(
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        num_hidden_layers=1,
        attn_implementation="eager",
    )
    torch.manual_seed(version)
    layer = getattr(package, f"DeepseekV{version}Attention")(config, layer_idx=0).double().eval()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    return layer, x, torch.arange(9)[:, None] * 10000.0 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)


@pytest.mark.peers
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("operation", BOTH)
def test_transformers_deepseek(monkeypatch, operation, version):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    layer, x, angle = deepseek(torch, version)
    # Both round the softmax to float32, and version 2 the rotation too, whatever the dtype: here they do not.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda s, dim, dtype: s.softmax(dim))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    causal = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    cos, sin = (torch.cat([f(angle)] * 2, -1)[None] for f in (torch.cos, torch.sin))
    angles = (cos, sin) if version == 3 else torch.polar(torch.ones_like(angle), angle)[None]
    with torch.no_grad():
        theirs, _ = layer(hidden_states=x, attention_mask=causal, position_embeddings=angles)
        q = layer.q_proj(x).view(2, 9, 3, 10).transpose(1, 2).numpy()
        down = layer.kv_a_proj_with_mqa(x)
        c_kv, k_rope = layer.kv_a_layernorm(down[..., :8]).numpy(), down[..., 8:].numpy()
    up = layer.kv_b_proj.weight.detach().numpy().reshape(3, 11, 8).swapaxes(-1, -2)  # (H, L, Dn + Dv)
    t = np.arange(9)
    ours = operation(
        q[..., :6],
        refattn.rope(q[..., 6:], t, interleaved=True),
        c_kv,
        refattn.rope(k_rope[:, None], t, interleaved=True)[:, 0],
        up[..., :6],
        up[..., 6:],
        mask=masks.causal(),
    )
    ours = ours.swapaxes(1, 2).reshape(2, 9, 15) @ layer.o_proj.weight.detach().numpy().T
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-10)
