"""The gated delta rule and KDA against transformers' Qwen3-Next and Kimi Linear, derivatives included (by autograd)."""

import warnings

import numpy as np
import pytest

import refattn
from tests.linear.test_delta import draw

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")


@pytest.fixture(scope="module")
def theirs(torch):
    """Name -> their function; q, k, v, g, beta with tokens before heads."""
    pytest.importorskip("transformers", reason="transformers is missing: python -m pip install transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.kimi_linear import modeling_kimi_linear as kimi
        from transformers.models.qwen3_next import modeling_qwen3_next as qwen
    return {
        "gated_delta_rule_chunked": qwen.torch_chunk_gated_delta_rule,
        "gated_delta_rule_recurrent": qwen.torch_recurrent_gated_delta_rule,
        "kda_chunked": kimi.chunk_kimi_delta_attention,
        "kda_recurrent": kimi.recurrent_kimi_delta_attention,
    }


def unit(x):
    """What their use_qk_l2norm_in_kernel does to queries and keys."""
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6)


def problem(name, heads):
    x = draw(1, T=21, D=4, batch=(2,), heads=heads)
    x["log_decay"] = x.pop("log_decays") if name.startswith("kda") else x["log_decay"]
    x.pop("log_decays", None)
    return {n: y.astype(np.float32) for n, y in x.items()}


def call(torch, function, x, **options):
    """Call one of theirs with leaves that want gradients; return the leaves, o (..., H, T, Dv) and the state."""
    leaves = {n: torch.from_numpy(np.array(y)).requires_grad_() for n, y in x.items()}
    turned = [leaves[n].transpose(1, 2) for n in ("q", "k", "v", "log_decay", "beta")]
    o, state = function(*turned, initial_state=leaves["initial_state"], output_final_state=True, **options)
    return leaves, o.transpose(1, 2), state


NAMES = ("gated_delta_rule_chunked", "gated_delta_rule_recurrent", "kda_chunked", "kda_recurrent")
HEADS = {name: [(2, 2, 2)] + [(2, 2, 4)] * name.startswith("gated") for name in NAMES}


@pytest.mark.parametrize(("name", "heads"), [(name, heads) for name in NAMES for heads in HEADS[name]])
@pytest.mark.parametrize("normalise", [False, True])
def test_transformers(torch, theirs, name, heads, normalise):
    x = problem(name, heads)
    chunk = {"chunk_size": 8} if "chunked" in name else {}
    leaves, o, state = call(torch, theirs[name], x, use_qk_l2norm_in_kernel=normalise, **chunk)
    ours = x | {"q": unit(x["q"]), "k": unit(x["k"])} if normalise else x
    for form in ("", "_recurrent", "_chunked"):
        got = getattr(refattn, name.rpartition("_")[0] + form)(**ours)
        np.testing.assert_allclose(got.o, o.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.state, state.detach().numpy(), rtol=1e-4, atol=1e-5)
    if not normalise:
        do, dstate = np.cos(got.o), np.sin(got.state)
        ((o * torch.from_numpy(do)).sum() + (state * torch.from_numpy(dstate)).sum()).backward()
        g = getattr(refattn, name.rpartition("_")[0] + "_vjp")(do, **x, dstate=dstate)
        for n, leaf in leaves.items():
            np.testing.assert_allclose(getattr(g, f"d{n}"), leaf.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=n)


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_of_minus_infinity_is_nan_in_their_chunks(torch, theirs, name):
    """Their chunked forms take differences of cumulative sums, -inf - -inf; the pages say so."""
    x = problem(name, (2, 2, 2))
    x["log_decay"][:, :, 5] = -np.inf
    _, o, _ = call(torch, theirs[name], x)
    assert np.isnan(o.detach().numpy()).any() == ("chunked" in name)
    assert np.isfinite(getattr(refattn, name)(**x).o).all()
