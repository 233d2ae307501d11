"""Kernels that are wrong in one place: what a test of attention must notice.

`kernel.py`, `backward.py`, `recurrence.py` and `recurrence_ssm.py` are correct. A mutant is a patch of their source;
the other files are the catalogue.
"""

from refattn.testing.mutants import (
    gradients,
    meaning,
    memory,
    recurrence_ssm_catalogue,
    rounding,
    softmax,
    tiling,
    visibility,
)
from refattn.testing.mutants.patch import Mutant, correct

__all__ = ["MUTANTS", "Mutant", "correct", "mutants"]

MUTANTS: tuple[Mutant, ...] = (
    *meaning.MUTANTS,
    *visibility.MUTANTS,
    *tiling.MUTANTS,
    *softmax.MUTANTS,
    *rounding.MUTANTS,
    *memory.MUTANTS,
    *gradients.MUTANTS,
    *recurrence_ssm_catalogue.ALL,
)
"""All of them; the names are unique within an operation."""


def mutants(op: str | None = None, group: str | None = None) -> tuple[Mutant, ...]:
    """Return the mutants of an operation, of a group, or of both.

    Parameters
    ----------
    op : str, optional
        "attention", "attention_vjp"; all unless given.
    group : str, optional
        "tiles", "precision", ...; all unless given.

    Returns
    -------
    tuple of Mutant
        In the order of the catalogue.

    Raises
    ------
    ValueError
        If there is no such operation or no such group.

    Examples
    --------
    >>> {mutant.group for mutant in mutants("attention_vjp")}
    {'backward'}
    """
    for name, wanted in (("op", op), ("group", group)):
        known = sorted({getattr(mutant, name) for mutant in MUTANTS})
        if wanted is not None and wanted not in known:
            raise ValueError(f"mutants: {name} is {wanted!r}; wanted one of {', '.join(known)}")
    return tuple(mutant for mutant in MUTANTS if op in (None, mutant.op) and group in (None, mutant.group))
