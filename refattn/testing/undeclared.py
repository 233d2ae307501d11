"""Is a kernel right, but in a precision that its contract does not declare?

The same outputs are judged again under contracts that declare less. If one of them makes every failure of the values
go away, and the error is about as large as it predicts, then that is what the kernel does: UNDECLARED.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.testing.attention.judge import analyse, judge
from refattn.testing.contract import Contract
from refattn.testing.verdicts import FAIL, SUSPECT, UNDECLARED, Report, Result

LIKELY = (0.45, 1.35)
"""The range of z_rms in which a declaration describes the kernel, and not merely allows it."""


def declarations(contract: Contract) -> Iterator[tuple[str, Contract]]:
    """Yield what a kernel might do without saying so, and the contract that says it."""
    for narrow in ("float16", "bfloat16"):
        if contract.dtype != narrow and (contract.dtype in ("float32", "float64") or narrow == "bfloat16"):
            yield f"P rounded to {narrow}", replace(contract, p=narrow)
            yield f"the output rounded to {narrow}", replace(contract, out=narrow)
    if contract.dtype in ("float32", "float64"):
        yield "products in tf32", replace(contract, products="tf32")
        yield "q, k, P and v rounded to bfloat16 for the products", replace(contract, products="bfloat16")
        yield "q, k, P and v rounded to float16 for the products", replace(contract, products="float16")
    if contract.dtype == "float64":
        yield "arithmetic in float32", replace(contract, products="float32", p="float32", out="float32")
    if contract.dtype in ("float16", "bfloat16"):
        yield f"q times the scale rounded to {contract.dtype}", replace(contract, q_prescaled=True)
        yield f"the normaliser summed from P in {contract.dtype}", replace(contract, l_rounded=True)
        yield f"accumulation in {contract.dtype}", replace(contract, acc=contract.dtype)
        yield "conversions that truncate", replace(contract, truncates=True)
    for narrow in ("float16", "bfloat16"):
        if contract.s != narrow:
            yield f"scores rounded to {narrow}", replace(contract, s=narrow)


def reconsider(report: Report) -> None:
    """Turn failures that one undeclared rounding explains into UNDECLARED."""
    _, contract, chosen, run = report.context
    cases = {check.id: check.case for check in chosen if check.case is not None}
    failed = [r for r in report.results if r.verdict in (FAIL, SUSPECT) and r.check in cases and r.check in run.outputs]
    normal = [r for r in failed if cases[r.check].normal][:4]
    if not normal:
        return
    declared = {"p": contract.numerics["p"], "out": contract.numerics["out"]}
    for what, other in declarations(contract):
        if not all(_explains(r, cases, run, other, contract, True) for r in normal):
            continue
        for n, r in enumerate(report.results):
            if r in failed and _explains(r, cases, run, other, contract, False):
                text = f"consistent with {what}; declared: p {declared['p']}, output {declared['out']}"
                report.results[n] = replace(r, verdict=UNDECLARED, message=f"{text}. {r.message}")
        return


def _explains(result: Result, cases, run, other: Contract, contract: Contract, closely: bool) -> bool:  # type: ignore[no-untyped-def]
    p = cases[result.check].problem(contract, run.seed)
    findings = judge(analyse(p, other), run.outputs[result.check], other)
    if findings.wrong or any(not name.endswith(("z_max", "z_rms")) for name in findings.suspect):
        return False
    if not closely:
        return True
    sizes = [x for name, x in findings.figures.items() if name.endswith("z_rms")]
    return bool(sizes) and LIKELY[0] <= max(sizes) <= LIKELY[1] and bool(np.isfinite(max(sizes)))
