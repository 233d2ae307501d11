"""RWKV-4 against transformers' loop in PyTorch, derivatives included (by autograd)."""

import warnings

import numpy as np
import pytest

import refattn
from refattn import Rwkv4State

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")


@pytest.fixture(scope="module")
def theirs(torch):
    pytest.importorskip("transformers", reason="transformers is missing: python -m pip install transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu
    return rwkv_linear_attention_cpu


@pytest.mark.parametrize("size", [1.0, 40.0])
@pytest.mark.parametrize("given", [False, True])
def test_transformers(torch, theirs, size, given):
    """Their parameter is the log of the rate."""
    rng = np.random.default_rng(0)
    k, v = (rng.normal(size=(2, 21, 5)).astype(np.float32) for _ in range(2))
    time_decay, u, num, m, do = (rng.normal(size=s).astype(np.float32) for s in (5, 5, (2, 5), (2, 5), k.shape))
    k = size * k
    den = rng.uniform(0.5, 2, (2, 5)).astype(np.float32)
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in (time_decay, u, k, v)]
    first = [torch.from_numpy(x) for x in (num, den, m)] if given else None
    o, last = theirs(*leaves, state=first, return_state=True)
    ours = Rwkv4State(num, den, m) if given else None
    w = np.exp(time_decay)
    for form in (refattn.rwkv4, refattn.rwkv4_recurrent):
        got = form(w, u, k, v, initial_state=ours)
        np.testing.assert_allclose(got.o, o.detach().numpy(), rtol=1e-4, atol=1e-5)
        for x, y in zip(got.state, last, strict=True):
            np.testing.assert_allclose(x, y.detach().numpy(), rtol=1e-4, atol=1e-5)
    (o * torch.from_numpy(do)).sum().backward()
    g = refattn.rwkv4_vjp(do, w, u, k, v, initial_state=ours)
    for x, leaf in zip((g.dw * w, g.du, g.dk, g.dv), leaves, strict=True):
        np.testing.assert_allclose(x, leaf.grad.numpy(), rtol=1e-3, atol=1e-4)
