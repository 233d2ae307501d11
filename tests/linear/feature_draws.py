"""Problems of attention by features, projections and landmarks for the tests beside this file; their derivatives."""

import numpy as np

import refattn
from refattn import LinearState, PerformerState

STEP = 1e-6
HEADS = {"2-D": (), "one each": (2, 2, 2), "more query heads": (4, 1, 2), "more value heads": (2, 1, 4)}


def draw(name, seed=0, batch=(), heads=(), T=7, D=3, Dv=2, sequences=None, state=True):
    """The arrays of a call and its other keywords; `sequences` packed ones have states of their own."""
    rng = np.random.default_rng(seed)
    H, Hk, Hv = [(h,) for h in heads] or [()] * 3
    x = {n: rng.normal(size=(*batch, *h, T, d)) for n, h, d in (("q", H, D), ("k", Hk, D), ("v", Hv, Dv))}
    lead = (*(batch if sequences is None else (sequences,)), *Hv)
    M = {"linear": D, "performer": 5, "cosformer": 2 * D}.get(name, 0)
    S, z, m = rng.normal(size=(*lead, M, Dv)), rng.uniform(0.5, 1.5, (*lead, M)), np.asarray(rng.normal(size=lead))
    if name == "performer":
        x["projection"] = rng.normal(size=(M, D))
    if name in ("linear", "performer", "cosformer") and state:
        x["initial_state"] = PerformerState(S, z, m) if name == "performer" else LinearState(S, z)
    return x, {"length": 40} if name == "cosformer" else {}


def form(name, suffix=""):
    return getattr(refattn, f"{name}_attention{suffix}")


def part(x, t):
    """The arrays of the tokens `t`, without a state."""
    return {n: y[..., t, :] if n in ("q", "k", "v", "do") else y for n, y in x.items() if n != "initial_state"}


def assert_same(x, y, rtol=1e-9, atol=1e-11):
    for a, b in zip(leaves(x), leaves(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def leaves(x):
    """The arrays of a tree of tuples; None has none."""
    if isinstance(x, tuple):
        return [y for branch in x for y in leaves(branch)]
    return [] if x is None else [x]


def each(function, *trees):
    """The tree of what the function says of the arrays."""
    if isinstance(trees[0], tuple):
        return type(trees[0])(*(each(function, *branches) for branches in zip(*trees, strict=True)))
    return function(*trees)


def inner(x, y):
    return sum((a * b).sum() for a, b in zip(leaves(x), leaves(y), strict=True))


def assert_vjp(name, x, options, seed=1):
    """Compare <cotangents, J dx> by central differences with <gradients, dx>, for all inputs together and each."""
    rng, forward = np.random.default_rng(seed), form(name)
    result = forward(**x, **options)
    cotangents = each(lambda y: rng.normal(size=y.shape), result)
    do, more = cotangents if isinstance(cotangents, tuple) else (cotangents, None)
    g = form(name, "_vjp")(do, **x, **options, **({} if more is None else {"dstate": more}))
    for n, y in x.items():
        for a, b in zip(leaves(getattr(g, f"d{n}")), leaves(y), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, n
    every = {n: each(lambda y: rng.normal(size=y.shape), y) for n, y in x.items()}
    for only in (None, *x):
        dx = {n: each(lambda y, share=only in (None, n): share * y, d) for n, d in every.items()}
        ahead, behind = (
            forward(**{n: each(lambda a, b, s=sign: a + s * STEP * b, y, dx[n]) for n, y in x.items()}, **options)
            for sign in (1, -1)
        )
        left = (inner(cotangents, ahead) - inner(cotangents, behind)) / (2 * STEP)
        terms = [a * b for n, d in dx.items() for a, b in zip(leaves(getattr(g, f"d{n}")), leaves(d), strict=True)]
        size = 1 + sum(abs(term).sum() for term in terms)
        assert abs(left - sum(term.sum() for term in terms)) < 3e-7 * size, only


def softmax_attention(q, k, v, causal, scale=None):
    mask = refattn.masks.causal() if causal else None
    return refattn.attention(q, k, v, mask=mask, scale=scale)
