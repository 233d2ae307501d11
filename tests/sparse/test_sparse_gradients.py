"""The derivatives of the sparse forms against central differences in float64: <do, J dx> = <Jᵀ do, dx>."""

import numpy as np
import pytest

import refattn
from refattn import masks

RNG = np.random.default_rng(0)
STEP = 1e-6


def normal(*shape):
    return RNG.normal(size=shape)


def problem(batch=(2,), H=4, Hk=2, Tq=6, Tk=9, D=4, Dv=3):
    heads, kv_heads = ((H,), (Hk,)) if H else ((), ())
    return {
        "q": normal(*batch, *heads, Tq, D),
        "k": normal(*batch, *kv_heads, Tk, D),
        "v": normal(*batch, *kv_heads, Tk, Dv),
    }


SOME = RNG.random((2, 4, 6, 9)) < 0.4
SOME[..., 2, :] = False
LAYOUT = RNG.random((4, 2, 3)) < 0.6

# (form, shapes, float inputs besides q, k, v, other arguments)
PROBLEMS = {
    "local": ("local_attention", {}, {}, {"left": 2, "right": 1}),
    "local with sinks": ("local_attention", {"Tq": 12}, {"sinks": normal(4)}, {"left": 1, "right": 0, "softcap": 0.9}),
    "dilated": ("dilated_attention", {"Hk": 1}, {}, {"window": 1, "step": 3, "scale": -0.7}),
    "strided": ("strided_attention", {"batch": ()}, {"sinks": normal(4)}, {"local": 2, "stride": 3}),
    "fixed": ("fixed_attention", {"batch": (1, 2)}, {}, {"block": 3, "summary": 2}),
    "random": ("random_attention", {}, {}, {"n_keys": 3}),
    "random per head": ("random_attention", {}, {"sinks": normal(4)}, {"n_keys": 3, "per_head": True}),
    "global": ("global_attention", {"batch": (), "H": 0}, {"sinks": normal(1)}, {"indices": [4, 0]}),
    "bigbird": ("bigbird_attention", {}, {"sinks": normal(4)}, {"block_size": 2, "n_random": 1}),
    "bigbird per head": (
        "bigbird_attention",
        {},
        {},
        {"block_size": 2, "n_window": 1, "n_random": 1, "per_head": True},
    ),
    "block sparse": ("block_sparse_attention", {}, {"sinks": normal(4)}, {"layout": LAYOUT, "block_size": 3}),
    "longformer": ("longformer_attention", {}, {"sinks": normal(4)}, {"window": 1, "global_indices": (5, 0)}),
    "longformer with its own queries": (
        "longformer_attention",
        {},
        {"q_global": normal(2, 4, 2, 4)},
        {"window": 1, "global_indices": (5, 3)},
    ),
    "longformer with its own projections": (
        "longformer_attention",
        {},
        {
            "q_global": normal(2, 4, 3, 4),
            "k_global": normal(2, 2, 9, 4),
            "v_global": normal(2, 2, 9, 3),
            "sinks": normal(4),
        },
        {"window": 1, "global_indices": (5, 3, 0), "softcap": 1.3},
    ),
    "sparse": ("sparse_attention", {}, {}, {"mask": masks.causal()}),
    "sparse with blind rows": ("sparse_attention", {}, {"sinks": normal(4), "bias": normal(4, 1, 9)}, {"mask": SOME}),
    "sparse with a bias of keys": ("sparse_attention", {}, {"bias": normal(9)}, {"mask": SOME}),
    "sparse with a bias of one": ("sparse_attention", {}, {"bias": np.array(0.3)}, {"mask": SOME[0]}),
    "sparse with everything": (
        "sparse_attention",
        {},
        {"sinks": normal(4), "bias": normal(2, 1, 6, 1)},
        {
            "mask": masks.random(4, heads=4),
            "softcap": 1.2,
            "scale": 0.8,
            "dropout_mask": RNG.random((2, 4, 6, 9)) < 0.6,
            "dropout_p": 0.4,
        },
    ),
}


def moved(forward, inputs, dx):
    """Return the derivative of the results in the direction dx."""
    ahead = forward({name: x + STEP * dx[name] for name, x in inputs.items()})
    behind = forward({name: x - STEP * dx[name] for name, x in inputs.items()})
    with np.errstate(invalid="ignore"):  # -inf - -inf of rows that see nothing
        return [np.nan_to_num((a - b) / (2 * STEP)) for a, b in zip(ahead, behind, strict=True)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_derivative_agrees_with_central_differences(name):
    form, shapes, extra, own = PROBLEMS[name]
    inputs = problem(**shapes) | extra
    o, lse = getattr(refattn, form)(**inputs, **own, return_lse=True)
    do, dlse = normal(*o.shape), normal(*lse.shape)
    g = getattr(refattn, f"{form}_vjp")(do, **inputs, **own, dlse=dlse)._asdict()
    assert {name for name, dx in g.items() if dx is not None} == {f"d{name}" for name in inputs}

    def forward(inputs):
        return getattr(refattn, form)(**inputs, **own, return_lse=True)

    for only in (None, *inputs):  # all inputs together, then each by itself
        dx = {name: normal(*x.shape) if only in (None, name) else np.zeros(x.shape) for name, x in inputs.items()}
        left = sum((d * m).sum() for d, m in zip((do, dlse), moved(forward, inputs, dx), strict=True))
        right = sum((g[f"d{name}"] * d).sum() for name, d in dx.items())
        size = 1 + sum(abs(g[f"d{name}"] * d).sum() for name, d in dx.items())
        assert abs(left - right) < 2e-7 * size, (only, left, right)


def test_the_check_can_fail():
    inputs = problem()
    dx = {name: normal(*x.shape) for name, x in inputs.items()}
    o = refattn.local_attention(**inputs, left=2, right=0)
    do = normal(*o.shape)
    g = refattn.local_attention_vjp(do, **inputs, left=3, right=0)._asdict()  # of another window
    (m,) = moved(lambda inputs: [refattn.local_attention(**inputs, left=2, right=0)], inputs, dx)
    assert abs((do * m).sum() - sum((g[f"d{name}"] * d).sum() for name, d in dx.items())) > 1e-3
