"""Softmax attention against torch's scaled_dot_product_attention on random options, in float64."""

import numpy as np
import pytest

import refattn
from refattn import masks

pytestmark = pytest.mark.peers

BACKENDS = ("numpy", "numba")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")


def draw(seed):
    rng = np.random.default_rng(seed)
    Hk, G, D, Dv = (int(rng.integers(1, n)) for n in (4, 4, 70, 70))
    Tq, Tk = int(rng.integers(1, 140)), int(rng.integers(1, 140))
    q, k, v = (rng.standard_normal((2, h, t, d)) for h, t, d in ((Hk * G, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv)))
    options = {"scale": float(rng.normal())} if rng.random() < 0.5 else {}
    kind = rng.choice(["none", "causal", "bool", "bias"])
    if kind == "causal":  # torch aligns the first query with the first key, refattn the last with the last
        options["mask"] = masks.causal(offset=0)
    if kind == "bool":
        options["mask"] = rng.random((Hk * G, Tq, Tk)) < 0.4
        options["mask"][..., 0] = True  # torch answers NaN to a query that sees nothing, refattn 0
    if kind == "bias":
        options["bias"] = rng.standard_normal((2, 1, Tq, Tk))
    return q, k, v, rng.standard_normal((2, Hk * G, Tq, Dv)), options


def ask(torch, q, k, v, do, options):
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    given = {"scale": options.get("scale"), "enable_gqa": True}
    mask = options.get("mask")
    if isinstance(mask, masks.Mask):
        given["is_causal"] = True
    elif mask is not None:
        given["attn_mask"] = torch.from_numpy(mask)
    elif "bias" in options:
        given["attn_mask"] = torch.from_numpy(options["bias"])
    o = torch.nn.functional.scaled_dot_product_attention(*leaves, **given)
    o.backward(torch.from_numpy(do))
    return [o.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(40))
def test_torch_sdpa(torch, backend, seed):
    q, k, v, do, options = draw(seed)
    got = [
        refattn.attention(q, k, v, **options, backend=backend),
        *refattn.attention_vjp(do, q, k, v, **options, backend=backend)[:3],
    ]
    for ours, theirs in zip(got, ask(torch, q, k, v, do, options), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * max(1, np.abs(theirs).max()), rtol=1e-11)
