"""Which checks a contract rules out, and why: each is listed as NOT RUN with the reason."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.testing.attention.cases import Case
from refattn.testing.attention.problem import wide_arrays
from refattn.testing.contract import Contract
from refattn.testing.formats import LARGEST
from refattn.testing.session import Session

if TYPE_CHECKING:
    from refattn.testing.checks import Check

EXACT = (
    *("stale_memory", "changes_of_options", "powers_of_values", "powers_of_scores", "negated_values"),
    *("permuted_heads", "permuted_batch", "batch_invariance", "grouped_heads", "linear_in_do"),
    *("hidden_causal", "hidden_window", "hidden_seqlens", "future"),
)
"""The relations that compare bits, which takes a kernel that repeats them."""
MOVING = ("permuted_keys", "merged_halves", "some_queries", "nan_value")
"""Those in which tokens stand elsewhere than in the call they are compared with, or all keys must be seen."""
POSITIONAL = ("causal", "window", "alibi_slopes", "q_offset", "seqlens_k", "mask", "bias")
"""The options to which it matters where a token stands."""


def ruled_out(check: "Check", session: Session) -> str | None:
    """Return why the contract rules the check out, or None."""
    missing = [name for name in check.needs if not session.takes(name)]
    if missing:
        return f"the kernel does not take {', '.join(missing)}"
    refused = [name for name in check.features if not getattr(session.contract, name)]
    if refused:
        return f"the contract says {refused[0]}=False"
    return _contradicted(check, session) or _senseless(check, session.contract) or _overflows(check, session)


def _contradicted(check: "Check", session: Session) -> str | None:
    """Return which option the check gives a value that it never has."""
    contract = session.contract
    fixed = [name for name in check.needs if name in contract.always and name not in (contract.options or ())]
    if not fixed or not contract.op.startswith("attention"):
        return None
    built: Any = {"causal": True}  # what checks without a case pass, when they pass it
    if check.case is not None:
        built = check.case.problem(replace(contract, always={}), session.seed).options
    other = [name for name in fixed if not np.array_equal(built.get(name), contract.always[name])]
    return f"{other[0]} is always {contract.always[other[0]]!r}" if other else None


def _senseless(check: "Check", contract: Contract) -> str | None:
    """Return why a relation between calls does not hold under the contract, though its options are taken."""
    name = check.id.rpartition("/")[2]
    if check.case is not None or not contract.op.startswith("attention"):
        return None
    held = {option: x for option, x in contract.always.items() if x is not None and x is not False}
    placed = [option for option in POSITIONAL if option in held]
    if name in MOVING and placed:
        return f"{placed[0]} is always {contract.always[placed[0]]!r}: tokens may not change places"
    if name == "powers_of_scores" and _underflows(contract):
        return "numbers on the way to the scores are rounded to float16, and small ones lose digits"
    if name == "some_queries" and contract.seq_multiple > 2:
        return f"the contract says seq_multiple={contract.seq_multiple}: there are too few queries to take some of them"
    if name == "decoded" and contract.causal != "bottom_right":
        return f"the contract says causal={contract.causal!r}: a query by itself would see the first key only"
    if name in EXACT and not contract.deterministic:
        return "the contract says deterministic=False, and this compares bits"
    return None


def _overflows(check: "Check", session: Session) -> str | None:
    """Return which step of a case goes beyond the range of float16, if the contract has one in it."""
    contract, n = session.contract, session.contract.numerics
    if "float16" not in (n["s"], n["acc"], n["products"]) or not isinstance(check.case, Case):
        return None
    p = check.case.problem(contract, session.seed)
    if 0 in (*p.q.shape, *p.k.shape):
        return None
    q, k, v = (np.nan_to_num(np.abs(x), posinf=0) for x in wide_arrays(p, contract))
    products = (q @ k.swapaxes(-1, -2)).max()
    sizes = {"an operand": max(q.max(), k.max(), v.max()) if n["products"] == "float16" else 0}
    if n["acc"] == "float16":
        sizes |= {"a product": products, "a sum": v.sum(axis=-2).max()}
    if n["s"] == "float16":
        sizes["a score"] = products * abs(p.options.get("scale", p.q.shape[-1] ** -0.5))
    for what, size in sizes.items():
        if size > LARGEST["float16"]:
            return f"{what} may reach {size:.2g}, beyond the range of float16"
    return None


def _underflows(contract: Contract) -> bool:
    n = contract.numerics
    prescaled = n["q_prescaled"] and contract.dtype == "float16"
    return prescaled or "float16" in (n["s"], n["products"], n["acc"])
