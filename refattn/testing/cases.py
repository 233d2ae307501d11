"""Named calls of every operation, each reproducible from its id: ``case("attention/causal/float32")``.

The id is ``operation/problem/dtype``, and the seed of what is drawn is the id itself. `calls` has the tables.
"""

import importlib.util
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.testing.calls import FAMILIES, Call

DTYPES = ("float32", "float64", "float16", "bfloat16")
LEVELS = ("quick", "standard")


@dataclass(frozen=True)
class Case:
    """One call of one operation."""

    operation: str
    problem: str
    """Its name in the operation's table; ``+`` begins the variant."""
    dtype: str

    @property
    def id(self) -> str:
        """What `case` takes."""
        return f"{self.operation}/{self.problem}/{self.dtype}"

    def call(self, again: int = 0) -> Call:
        """Return the arguments (args, kwargs); another `again` gives other numbers in the same shapes."""
        rng = np.random.default_rng([zlib.crc32(self.id.encode()), again])
        return FAMILIES[self.operation].build(self.problem, rng, array_dtype(self.dtype))


def array_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of that name; bfloat16 needs the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def dtypes_here() -> tuple[str, ...]:
    """Return the dtypes that can be tried here: bfloat16 only where ml_dtypes is installed."""
    return DTYPES if importlib.util.find_spec("ml_dtypes") else DTYPES[:-1]


def cases(operation: str, level: str = "standard") -> list[Case]:
    """Return the cases of one operation.

    Parameters
    ----------
    operation : str
        Its name.
    level : str
        "quick" takes a choice of problems in float32 and bfloat16, "standard" takes all in every dtype.

    Returns
    -------
    list of Case
        In the order of the tables; empty for an operation that has none.

    Raises
    ------
    ValueError
        For another level.

    Examples
    --------
    >>> cases("rope", "quick")[0].id
    'rope/plain/float32'
    """
    if level not in LEVELS:
        raise ValueError(f"cases: level is {level!r}; wanted one of {', '.join(LEVELS)}")
    if operation not in FAMILIES:
        return []
    family, found = FAMILIES[operation], []
    for name in family.names:
        for dtype in dtypes_here():
            if level == "quick" and (name not in family.quick or dtype not in ("float32", "bfloat16")):
                continue
            if dtype in ("float32", "float64") or name in family.sixteen:
                found.append(Case(operation, name, dtype))
    return found


def case(id: str) -> Case:
    """Return the case of that id.

    Parameters
    ----------
    id : str
        ``operation/problem/dtype``, as failures print it.

    Returns
    -------
    Case
        The same call on every machine.

    Raises
    ------
    LookupError
        If there is none.

    Examples
    --------
    >>> args, kwargs = case("attention/grouped_6_2/float32").call()
    >>> [x.shape for x in args]
    [(2, 6, 65, 16), (2, 2, 65, 16), (2, 2, 65, 16)]
    """
    operation, problem, dtype = [*id.split("/"), "", ""][:3]
    if operation not in FAMILIES or problem not in FAMILIES[operation].names or dtype not in DTYPES:
        raise LookupError(f"no case {id!r}; an id is operation/problem/dtype, such as attention/causal/float32")
    return Case(operation, problem, dtype)
