"""The cases that say what every operation does, and the check that a backend does it.

Try a backend with ``python -m refattn.testing --backend NAME``.
"""

from refattn.testing.cases import Case, case, cases
from refattn.testing.comparison import Wrong, compare
from refattn.testing.conformance import Report, Verdict, check_backend

__all__ = ["Case", "Report", "Verdict", "Wrong", "case", "cases", "check_backend", "compare"]
