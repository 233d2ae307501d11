"""Relations that hold between calls of a forward kernel, to the bit.

They need no oracle, and so find what an oracle cannot: a workspace that keeps something of the last call, a neighbour
in the batch that matters, a hidden value that leaks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn.testing.attention import properties_near as near
from refattn.testing.attention.judge import where
from refattn.testing.attention.oracle import visible_pairs
from refattn.testing.attention.problem import Problem
from refattn.testing.attention.relations import Relation, as_check, base, changed, differ, put, times
from refattn.testing.checks import Check, Run
from refattn.testing.formats import decode


def repeat(run: Run, p: Problem) -> Iterator[str]:
    """The same call gives the same bits, and a result outlives the next call."""
    first = run.session.call(p)
    kept = {name: x.tobytes() for name, x in first.parts.items()}
    for _ in range(5 if run.contract.deterministic else 1):
        again = run.session.call(p)
        if run.contract.deterministic:
            yield from differ(again, first)
    if kept != {name: x.tobytes() for name, x in first.parts.items()}:
        yield "a later call wrote to an earlier result"


def stale_memory(run: Run, p: Problem) -> Iterator[str]:
    """Calls of the same shapes and of larger ones with other numbers and options leave nothing behind."""
    first = run.session.call(p)
    loud = changed(p, q=times(p.q, -2, run), k=times(p.k, 4, run), v=times(p.v, 1024, run))
    run.session.call(loud)
    big = base(run, 3, 8, 4, 140, 300)
    run.session.call(changed(big, v=times(big.v, 1024, run)))
    if run.session.takes("causal"):
        run.session.call(p.with_options(causal=True))
    if run.session.takes("mask"):
        run.session.call(p.with_options(mask=np.zeros((1, 1, 1, p.k.shape[2]), bool)))
    yield from differ(run.session.call(p), first)
    small = base(run, 1, 2, 1, 33, 47)
    alone = run.session.call(small)
    run.session.call(loud)
    yield from differ(run.session.call(small), alone)


def changes_of_options(run: Run, p: Problem) -> Iterator[str]:
    """A mask that changes between calls of the same shapes is seen to change."""
    rng = np.random.default_rng(run.seed)
    masks = [rng.random((1, 1, p.q.shape[2], p.k.shape[2])) < share for share in (0.5, 0.5)]
    first, second = (run.session.call(p.with_options(mask=m)) for m in masks)
    if not any(True for _ in differ(first, second)):
        yield "two masks give the same result"
    yield from differ(run.session.call(p.with_options(mask=masks[0])), first)


def powers_of_values(run: Run, p: Problem) -> Iterator[str]:
    """o(64 v) = 2 o(32 v): exponents shift and mantissas stay."""
    a = run.session.call(changed(p, v=times(p.v, 64, run)))
    b = run.session.call(changed(p, v=times(p.v, 32, run)))
    x, y = a["o"], 2 * b["o"]
    off = (x != y) & (np.abs(y) > 1e-3)
    if off.any():
        yield f"o(64 v) is not 2 o(32 v) in {off.sum()} of {off.size} places, {where(off)}"


def powers_of_scores(run: Run, p: Problem) -> Iterator[str]:
    """o(2q, k/2) = o(q, k)."""
    small = np.abs(decode(p.k, run.contract.dtype)) < 2.0**-10  # half of it might not be exact
    p = changed(p, k=np.where(small, np.zeros(1, p.k.dtype), p.k))
    yield from differ(run.session.call(changed(p, q=times(p.q, 2, run), k=times(p.k, 0.5, run))), run.session.call(p))


def negated_values(run: Run, p: Problem) -> Iterator[str]:
    """o(-v) = -o(v)."""
    a, b = run.session.call(changed(p, v=times(p.v, -1, run))), run.session.call(p)
    off = a["o"] != -b["o"]
    if off.any():
        yield f"o(-v) is not -o(v) in {off.sum()} of {off.size} places, {where(off)}"


def permuted_heads(run: Run, p: Problem) -> Iterator[str]:
    """Heads in another order give the results in that order."""
    H, Hk = p.q.shape[1], p.k.shape[1]
    group = H // Hk
    kv = np.arange(Hk)[::-1]
    heads = (kv[:, None] * group + np.arange(group)).ravel()
    do = None if p.do is None else p.do[:, heads]
    turned = run.session.call(changed(p, q=p.q[:, heads], k=p.k[:, kv], v=p.v[:, kv], do=do))
    plain = run.session.call(p)
    for name in plain.parts:
        order = kv if name in ("dk", "dv") else heads
        off = turned.bits(name) != plain.bits(name)[:, order]
        if off.any():
            yield f"{name} depends on the order of heads in {off.sum()} of {off.size} places"


def permuted_batch(run: Run, p: Problem) -> Iterator[str]:
    """Sequences in another order give the results in that order."""
    turned = changed(p, q=p.q[::-1], k=p.k[::-1], v=p.v[::-1], do=None if p.do is None else p.do[::-1])
    yield from differ(run.session.call(turned), run.session.call(p), also=slice(None, None, -1))


def one_of_the_batch(run: Run, p: Problem) -> Iterator[str]:
    """A sequence alone gives the bits that it gives beside others."""
    many = base(run, 5, 4, 2, 70, 150)
    whole = run.session.call(many)
    for n in (0, 3):
        part = slice(n, n + 1)
        alone = changed(
            many, q=many.q[part], k=many.k[part], v=many.v[part], do=None if many.do is None else many.do[part]
        )
        yield from differ(run.session.call(alone), whole, also=part)


def grouped_heads(run: Run, p: Problem) -> Iterator[str]:
    """Key heads that are shared give what copies of them give."""
    group = p.q.shape[1] // p.k.shape[1]
    copies = changed(p, k=np.repeat(p.k, group, 1), v=np.repeat(p.v, group, 1))
    shared, own = run.session.call(p), run.session.call(copies)
    for name in shared.parts:
        if name not in ("dk", "dv"):
            off = shared.bits(name) != own.bits(name)
            if off.any():
                yield f"{name} of shared heads is not that of copied ones in {off.sum()} of {off.size} places"


POISONS = (("1e4", 1e4), ("nan", np.nan), ("inf", np.inf))


def hidden_keys(options: dict[str, Any]) -> Relation:
    """What no query sees changes no bit, be it NaN, and gets no gradient."""

    def relation(run: Run, p: Problem) -> Iterator[str]:
        p = p.with_options(**options)
        plain = run.session.call(p)
        seen = np.asarray(visible_pairs(p, run.contract).any(axis=(1, 2)))
        for name in ("dk", "dv"):
            if name in plain.parts and any((plain[name][b, :, ~seen[b]] != 0).any() for b in range(len(seen))):
                yield f"{name} of keys that nobody sees is not zero"
        for what, value in POISONS:
            if not run.contract.nan and what != "1e4":
                continue
            k, v = p.k, p.v
            for b in range(len(seen)):
                at = (b, slice(None), ~seen[b])
                k, v = put(k, at, value, run), put(v, at, value, run)
            for text in differ(run.session.call(changed(p, k=k, v=v)), plain):
                yield f"{what} in hidden keys: {text}"

    return relation


def future(run: Run, p: Problem) -> Iterator[str]:
    """Later tokens change no bit of earlier rows."""
    p = p.with_options(causal=True)
    plain = run.session.call(p)
    cut = p.k.shape[2] * 2 // 3
    later = np.random.default_rng(run.seed).standard_normal(p.k[:, :, cut:].shape) * 3
    k, v = put(p.k, np.s_[:, :, cut:], later, run), p.v.copy()
    v[:, :, cut:] = put(v[:, :, cut:], ..., 17.0, run)
    rows = ~visible_pairs(p, run.contract)[..., cut:].any(axis=(0, 1, 3))
    at = np.s_[:, :, rows]
    yield from differ(run.session.call(changed(p, k=k, v=v)), plain, at, at)


def nan_query(run: Run, p: Problem) -> Iterator[str]:
    """A NaN in a query makes its row NaN, and no other."""
    out = run.session.call(changed(p, q=put(p.q, (0, 0, 5, 3), np.nan, run)))
    o = out["o"]
    rows = np.asarray(np.isnan(o).any(axis=-1))
    if not np.isnan(o[0, 0, 5]).all():
        yield "the NaN of a query is swallowed"
    if "lse" in out.parts and run.contract.lse is not None and not np.isnan(out["lse"][0, 0, 5]):
        yield f"lse of a query that is NaN is {out['lse'][0, 0, 5]}"
    rows[0, 0, 5] = False
    if rows.any():
        yield f"the NaN of one query reaches {rows.sum()} other rows, {where(rows)}"


def nan_value(run: Run, p: Problem) -> Iterator[str]:
    """A NaN in a value that all see reaches its channel in every row of its heads, and nothing else."""
    last = p.k.shape[1] - 1
    v = put(put(p.v, (0, 0, 9, 3), np.nan, run), (1, last, 71, 5), np.nan, run)
    o = run.session.call(changed(p, v=v))["o"]
    group = p.q.shape[1] // p.k.shape[1]
    want = np.zeros(o.shape, bool)
    want[0, :group, :, 3] = want[1, last * group :, :, 5] = True
    if (np.isnan(o) != want).any():
        lost, stray = (want & ~np.isnan(o)).sum(), (np.isnan(o) & ~want).sum()
        yield f"a NaN in a value that is seen is swallowed in {lost} places and reaches {stray} that do not see it"


def relation_checks() -> list[Check]:
    """Return the checks of a forward kernel that compare calls with each other."""
    found: list[tuple[str, Relation, tuple[str, ...], tuple[str, ...]]] = [
        ("repeat", repeat, (), ()),
        ("stale_memory", stale_memory, (), ()),
        ("changes_of_options", changes_of_options, ("mask",), ()),
        ("powers_of_values", powers_of_values, (), ()),
        ("powers_of_scores", powers_of_scores, (), ()),
        ("negated_values", negated_values, (), ()),
        ("permuted_heads", permuted_heads, (), ()),
        ("permuted_batch", permuted_batch, (), ()),
        ("batch_invariance", one_of_the_batch, (), ("batch_invariant",)),
        ("grouped_heads", grouped_heads, (), ("gqa",)),
        ("hidden_causal", hidden_keys({"causal": True, "q_offset": -20}), ("causal", "q_offset"), ()),
        ("hidden_window", hidden_keys({"causal": True, "window": (30, 0)}), ("causal", "window"), ()),
        ("hidden_seqlens", hidden_keys({"seqlens_k": np.array([60, 150], np.int32)}), ("seqlens_k",), ()),
        ("future", future, ("causal",), ()),
        ("nan_query", nan_query, (), ("nan",)),
        ("nan_value", nan_value, (), ("nan",)),
        ("permuted_keys", near.permuted_keys, (), ()),
        ("split_keys", near.split_keys, ("num_splits",), ()),
        ("merged_halves", near.merged_halves, (), ("lse",)),
        ("some_queries", near.some_queries, (), ()),
        ("decoded", near.decoded, ("causal",), ()),
        ("shifted_logits", near.shifted_logits, ("bias",), ()),
        ("hull", near.hull, (), ()),
    ]
    return [as_check(f"attention/{name}", relation, needs, features) for name, relation, needs, features in found]
