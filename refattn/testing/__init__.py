"""The kit that judges attention kernels: any kernel, in any language, against a float64 oracle, without a tolerance.

``check(kernel, Contract(...))`` is the whole of it; the rest are its parts, ways to bring a kernel before it, and the
conformance of refattn's own backends.
"""

from refattn.testing.adapters import (
    from_ctypes,
    from_dlpack,
    from_layout,
    from_subprocess,
    isolated,
    serve,
    to_numpy,
)
from refattn.testing.audit import audit
from refattn.testing.audit_report import AuditReport
from refattn.testing.cases import Case, case, cases
from refattn.testing.compare import compare
from refattn.testing.conformance import check_backend
from refattn.testing.contract import Contract
from refattn.testing.diagnose import diagnose
from refattn.testing.faults import KernelFault
from refattn.testing.gradcheck import GradCheck, gradcheck
from refattn.testing.infer import Inference, infer_contract, xray
from refattn.testing.kit import check, checks
from refattn.testing.parametrize import parametrize_with_checks
from refattn.testing.reports.json_ import load as load_report
from refattn.testing.reports.terminal import show
from refattn.testing.vectors import check_vectors, export_vectors
from refattn.testing.verdicts import Diagnosis, Picture, Report, Result, Waiver
from refattn.testing.waivers import WaiverRule, apply_waivers, load_waivers

__all__ = [
    "AuditReport",
    "Case",
    "Contract",
    "Diagnosis",
    "GradCheck",
    "Inference",
    "KernelFault",
    "Picture",
    "Report",
    "Result",
    "Waiver",
    "WaiverRule",
    "apply_waivers",
    "audit",
    "case",
    "cases",
    "check",
    "check_backend",
    "check_vectors",
    "checks",
    "compare",
    "diagnose",
    "export_vectors",
    "from_ctypes",
    "from_dlpack",
    "from_layout",
    "from_subprocess",
    "gradcheck",
    "infer_contract",
    "isolated",
    "load_report",
    "load_waivers",
    "parametrize_with_checks",
    "serve",
    "show",
    "to_numpy",
    "xray",
]
