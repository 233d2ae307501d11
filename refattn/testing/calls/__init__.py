"""Which calls every operation is tried on: `FAMILIES` has one entry per operation, and a table of problems in each.

To add an operation: write the function that builds a call from a problem's name, in the file of its kind, and enter it
in the table at the end of that file.
"""

from typing import Any

from refattn.testing.calls import delta, dense, features, gated, latent, packed, rwkv, selected, sparse, ssm
from refattn.testing.calls.dense import QUICK, SIXTEEN
from refattn.testing.calls.family import Call, Family, as_float64

KINDS: tuple[Any, ...] = (dense, sparse, selected, packed, latent, gated, delta, features, ssm, rwkv)
FAMILIES: dict[str, Family] = {name: family for kind in KINDS for name, family in getattr(kind, "FAMILIES", {}).items()}

__all__ = ["FAMILIES", "QUICK", "SIXTEEN", "Call", "Family", "as_float64"]
