"""Every relation between calls, as checks."""

import numpy as np

from refattn.testing.attention.judge import Findings
from refattn.testing.checks import Check, Run
from refattn.testing.recurrence.cases import GATED
from refattn.testing.recurrence.family import FAMILIES
from refattn.testing.recurrence.properties import (
    Relation,
    base,
    batch_invariance,
    future,
    future_nan,
    negated_values,
    permuted_batch,
    permuted_heads,
    powers_of_values,
    repeat,
    stale_memory,
)
from refattn.testing.recurrence.properties_state import forgets, no_update, own_state, zero_state

BITS = ("deterministic",)
"""The feature of a contract without which bits cannot be compared."""


def relation_checks(op: str) -> list[Check]:
    """Return the checks that compare calls with each other."""
    family = FAMILIES[op]
    found: list[tuple[str, Relation, tuple[str, ...], tuple[str, ...]]] = [
        ("repeat", repeat, (), ()),
        ("stale_memory", stale_memory, (), BITS),
        ("permuted_batch", permuted_batch, (), BITS),
        ("batch_invariance", batch_invariance, (), ("batch_invariant", *BITS)),
        ("future", future, (), BITS),
        ("future_nan", future_nan, (), ("nan", *BITS)),
        ("negated_values", negated_values, (), BITS),
        ("powers_of_values", powers_of_values, (), BITS),
        ("zero_state", zero_state, ("initial_state",), BITS),
        ("own_state", own_state, ("initial_state",), ()),
    ]
    if any(letter in family.o for letter in "HO"):
        found.append(("permuted_heads", permuted_heads, (), BITS))
    if op not in ("linear_attention", "causal_conv1d", "rwkv4"):
        found.append(("no_update", no_update, ("initial_state",), ()))
    forgetful = op in GATED and op not in ("retention", "rwkv7")  # rwkv7 erases from the state before its decay
    keys = not family.takes("beta")  # a delta rule wants keys of length 1
    if forgetful:
        found.append(("forgets_large", forgets(1e4, keys), (), BITS))
        found.append(("forgets_nan", forgets(np.nan, keys), (), ("nan", *BITS)))
    return [as_check(f"{op}/{name}", relation, needs, features) for name, relation, needs, features in found]


def as_check(id: str, relation: Relation, needs: tuple[str, ...] = (), features: tuple[str, ...] = ()) -> Check:
    """Return a relation as a check; that NaN is forgotten, too, which few kernels see to, is for the deep level."""

    def run(r: Run) -> Findings:
        return Findings(wrong=list(relation(r, base(r.contract, r.seed))))

    return Check(id, run, needs, features, "deep" if id.endswith("/forgets_nan") else "quick")
