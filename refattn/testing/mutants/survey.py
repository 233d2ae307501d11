"""Which mutants does the kit let pass? See `survivors`."""

from collections.abc import Hashable
from typing import Any

from refattn.testing.contract import Contract
from refattn.testing.kit import check
from refattn.testing.mutants import mutants


def survivors(op: str, dtype: str, part: int = 0, parts: int = 1, level: str = "quick") -> list[str]:
    """Return the mutants that pass in a dtype though they are not argued to be equivalent there.

    Parameters
    ----------
    op : str
        The operation.
    dtype : str
        Of the arrays.
    part, parts : int
        Take every `parts`-th mutant from `part` on, so that processes can share the work.
    level : str
        Of the checks.

    Returns
    -------
    list of str
        Their names.
    """
    cache: dict[Hashable, Any] = {}
    left = []
    for mutant in mutants(op)[part::parts]:
        if dtype in mutant.equivalent:
            continue
        contract = Contract(op=op, dtype=dtype)
        if check(mutant.kernel(), contract, level, fail_fast=True, cache=cache, timeout=5).ok:
            left.append(f"{op}: {mutant.name} ({dtype})")
    return left
