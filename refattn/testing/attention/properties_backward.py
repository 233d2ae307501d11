"""Relations between calls of a backward kernel: what is linear, what adds up, and what must be exactly zero."""

from collections.abc import Iterator

import numpy as np

from refattn.testing.attention import properties
from refattn.testing.attention.judge import analyse, where
from refattn.testing.attention.problem import Problem
from refattn.testing.attention.relations import Relation, as_check, changed, times
from refattn.testing.checks import Check, Run


def linear_in_do(run: Run, p: Problem) -> Iterator[str]:
    """Twice the cotangent gives twice the gradients: to the bit, but where float16 underflows on the way."""
    once, twice = run.session.call(p), run.session.call(changed(p, do=times(p.do, 2, run)))
    parts = run.kept("whole", lambda: analyse(p, run.contract).parts)
    for name in ("dq", "dk", "dv"):
        allowed = 2 * parts[name].bound if run.contract.numerics["p"] == "float16" else 0
        off = (np.abs(twice[name] - 2 * once[name]) > allowed) & (np.abs(once[name]) > 1e-3)
        if off.any():
            yield f"{name} is not linear in do in {off.sum()} of {off.size} places, {where(off)}"


def no_cotangent(run: Run, p: Problem) -> Iterator[str]:
    """A cotangent of zero gives zero."""
    out = run.session.call(changed(p, do=times(p.do, 0, run)))
    for name in ("dq", "dk", "dv"):
        if (out[name] != 0).any():
            yield f"{name} is not zero where do is"


def summed_over_group(run: Run, p: Problem) -> Iterator[str]:
    """The gradient of a shared key head is the sum of those that copies of it get."""
    group = p.q.shape[1] // p.k.shape[1]
    copies = changed(p, k=np.repeat(p.k, group, 1), v=np.repeat(p.v, group, 1))
    shared, own = run.session.call(p), run.session.call(copies)
    parts = run.kept("group", lambda: (analyse(p, run.contract).parts, analyse(copies, run.contract).parts))
    for name in ("dk", "dv"):
        B, _, T, D = own[name].shape
        each = (B, p.k.shape[1], group, T, D)
        allowed = parts[0][name].bound + parts[1][name].bound.reshape(each).sum(axis=2)
        off = np.abs(own[name].reshape(each).sum(axis=2) - shared[name]) > allowed
        if off.any():
            yield f"{name} is not the sum over its query heads in {off.sum()} places, {where(off)}"


def some_queries(run: Run, p: Problem) -> Iterator[str]:
    """Dq of a subset of queries is that of the whole; dk and dv of two halves of the queries add up to it."""
    n = run.contract.seq_multiple * 30
    rows = [np.s_[:, :, :n], np.s_[:, :, n:]]
    problems = [changed(p, q=p.q[part], do=p.do[part]) for part in rows if p.do is not None]
    halves, whole = [run.session.call(half) for half in problems], run.session.call(p)
    known = run.kept("halves", lambda: [analyse(x, run.contract).parts for x in [*problems, p]])
    for half, parts, part in zip(halves, known[:2], rows, strict=True):
        off = np.abs(half["dq"] - whole["dq"][part]) > parts["dq"].bound + known[2]["dq"].bound[part]
        if off.any():
            yield f"dq of some queries is not that among all in {off.sum()} places"
    for name in ("dk", "dv"):
        allowed = known[0][name].bound + known[1][name].bound + known[2][name].bound
        off = np.abs(halves[0][name] + halves[1][name] - whole[name]) > allowed
        if off.any():
            yield f"{name} of two halves of the queries does not add up in {off.sum()} places, {where(off)}"


def relation_checks() -> list[Check]:
    """Return the checks of a backward kernel that compare calls with each other."""
    found: list[tuple[str, Relation, tuple[str, ...], tuple[str, ...]]] = [
        ("repeat", properties.repeat, (), ()),
        ("stale_memory", properties.stale_memory, (), ()),
        ("linear_in_do", linear_in_do, (), ()),
        ("no_cotangent", no_cotangent, (), ()),
        ("permuted_heads", properties.permuted_heads, (), ()),
        ("permuted_batch", properties.permuted_batch, (), ()),
        ("batch_invariance", properties.one_of_the_batch, (), ("batch_invariant",)),
        ("grouped_heads", properties.grouped_heads, (), ("gqa",)),
        ("summed_over_group", summed_over_group, (), ("gqa",)),
        ("hidden_causal", properties.hidden_keys({"causal": True, "q_offset": -20}), ("causal", "q_offset"), ()),
        ("hidden_window", properties.hidden_keys({"causal": True, "window": (30, 0)}), ("causal", "window"), ()),
        ("hidden_seqlens", properties.hidden_keys({"seqlens_k": np.array([60, 150], np.int32)}), ("seqlens_k",), ()),
        ("some_queries", some_queries, (), ()),
    ]
    return [as_check(f"attention_vjp/{name}", relation, needs, features) for name, relation, needs, features in found]
