"""Golden vectors: what every operation should return, in files that any language reads, and the check of its answers.

`export_vectors` writes them, `check_vectors` judges what another program made of them. ``INCLUDE`` is the folder of
refattn_vectors.h, a reader in one C header.
"""

from pathlib import Path

from refattn.testing.vectors.check import check_vectors
from refattn.testing.vectors.export import export_vectors
from refattn.testing.vectors.manifest import Entry, Vectors

INCLUDE = Path(__file__).parent
"""The folder of refattn_vectors.h, for the compiler's -I."""

__all__ = ["INCLUDE", "Entry", "Vectors", "check_vectors", "export_vectors"]
