"""Which calls every operation is tried on: `FAMILIES` has one entry per operation, and a table of problems in each.

To add an operation: write the function that builds a call from a problem's name, in the file of its kind, and enter it
in the table at the end of that file.
"""

from refattn.testing.calls import dense, latent, packed, selected, sparse
from refattn.testing.calls.dense import QUICK, SIXTEEN
from refattn.testing.calls.family import Call, Family, as_float64

FAMILIES: dict[str, Family] = {
    name: family for kind in (dense, sparse, selected, packed, latent) for name, family in kind.FAMILIES.items()
}

__all__ = ["FAMILIES", "QUICK", "SIXTEEN", "Call", "Family", "as_float64"]
