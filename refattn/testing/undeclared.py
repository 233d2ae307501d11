"""Is a kernel right, but in a precision that its contract does not declare?

The same outputs are judged again under contracts that declare less. If every normal problem that failed is right under
one of them, its error being as large as that one expects, then that is what the kernel does: UNDECLARED. Where several
describe it, the one that allows most of the other results is taken, then the one under which the errors are likeliest.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.arrays import Array
from refattn.testing.attention.backward import backward_errors, gradients, slopes
from refattn.testing.attention.cases import Case
from refattn.testing.attention.forward import SHARE, Units, forward_errors
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.oracle import declared_lse, declared_output, truth
from refattn.testing.attention.problem import Problem
from refattn.testing.checks import Run, perform
from refattn.testing.contract import Contract
from refattn.testing.session import Output, Session
from refattn.testing.verdicts import FAIL, PASS, SUSPECT, UNDECLARED, Report

LIKELY = (0.45, 1.35)
"""The range of z_rms in which a declaration may describe a kernel, and does not merely allow what it does."""
CLOSE = (0.65, 1.3)
"""The same where the kernel contradicts its contract: another explanation is at hand, that it is wrong."""
ROUNDING = 0.05
"""No rounding that the kit knows of makes an error of this share of the result."""
MOST = 4
"""How many normal problems the statistics are taken from."""


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
    by_id = {check.id: check for check in chosen}
    cases = {id: check.case for id, check in by_id.items() if isinstance(check.case, Case)}
    bad = [r for r in report.results if r.verdict in (FAIL, SUSPECT)]
    failed = [r.check for r in bad if r.check in cases and r.check in run.outputs]
    failed.sort(key=lambda id: sum(x.size for x in run.outputs[id].parts.values()))
    normal = [id for id in failed if cases[id].normal][:MOST]
    if not normal:
        return

    def output(id: str) -> tuple[Problem, Output]:
        return cases[id].problem(contract, run.seed), run.outputs[id]

    others = (output(id) for id in failed if not cases[id].normal)
    found = _described([output(id) for id in normal], itertools.islice(others, 2 * MOST), contract)
    if found is None:
        return
    what, other = found
    again = Run(Session(run.session.kernel, other, run.seed, run.session.timeout))
    text = f"consistent with {what}; the contract declares {_declared(contract, other)}"
    for n, r in enumerate(report.results):
        if r not in bad:
            continue
        if r.check in cases and r.check in run.outputs:
            right = _right(*output(r.check), other)
        else:
            right = r.check not in cases and perform(by_id[r.check], again).verdict == PASS
        if right:
            report.results[n] = replace(r, verdict=UNDECLARED, message=f"{text}. {r.message}")


def _described(
    normal: list[tuple[Problem, Output]], others: Iterator[tuple[Problem, Output]], contract: Contract
) -> tuple[str, Contract] | None:
    """Return the declaration that describes the errors of all normal problems, and allows most of the others."""
    likely = []
    with np.errstate(all="ignore"):
        sizes = _Sizes(*normal[0], contract)
        if not sizes.share <= ROUNDING:
            return None
        for what, other in declarations(contract):
            likelihood = sizes.likelihood(other)
            if likelihood is None:
                continue
            rest = [_Sizes(*one, contract).likelihood(other) for one in normal[1:]]
            if None not in rest and all(_right(p, output, other, CLOSE) for p, output in normal):
                likely.append((likelihood, what, other))
    if len(likely) > 1:
        some = list(others)
        allowed = {what: sum(_right(p, output, other) for p, output in some) for _, what, other in likely}
        likely.sort(key=lambda entry: (allowed[entry[1]], entry[0]), reverse=True)
    return likely[0][1:] if likely else None


class _Sizes:
    """The errors of one output, to hold against what a declaration expects of them."""

    def __init__(self, p: Problem, output: Output, contract: Contract) -> None:
        self.p, self.contract, self.steps = p, contract, None if p.do is None else slopes(p, contract)
        self.t = truth(p, contract) if self.steps is None else self.steps.t
        right = {"o": declared_output(p, contract, self.t)} if self.steps is None else gradients(p, self.steps)
        self.errors: dict[str, Array] = {name: output[name] - x for name, x in right.items()}
        self.share = max(_rms(e) / max(_rms(right[name]), 1e-300) for name, e in self.errors.items())
        if "lse" in output.parts and contract.lse == "natural":
            self.errors["lse"] = output["lse"] - declared_lse(contract, p, self.t)
        self.declared = self._sigma(contract)

    def _sigma(self, contract: Contract) -> dict[str, Array]:
        if self.steps is not None:
            return {n: e["sigma"] for n, e in backward_errors(self.p, contract, self.steps).items()}
        t, u, errors = self.t, Units.of(contract), forward_errors(self.t, contract)
        p2 = t.p**2
        of_acc = u.acc * (np.abs(np.where(t.blind, 0, t.lse)) + np.abs(t.m[..., 0]) + 1)
        of_q = SHARE * (u.q**2 + u.products**2) * (t.q * (t.scale * (t.p * t.slope) @ t.k)) ** 2  # one for all keys
        lse = np.sqrt((p2 * (errors["e2"] + SHARE * u.l**2)).sum(axis=-1) + of_q.sum(axis=-1) + of_acc**2)
        return {"o": errors["sigma"], "lse": lse}

    def likelihood(self, other: Contract) -> float | None:
        """Return the mean logarithm of the density of the errors; None if they are not of the size expected."""
        sigma = self._sigma(other)
        z = {
            name: np.asarray(np.where(np.isfinite(e), e, 0) / sigma[name], np.float64)
            for name, e in self.errors.items()
        }
        if not CLOSE[0] <= max(_rms(x) for name, x in z.items() if name != "lse") <= CLOSE[1]:
            return None
        if "lse" in z and not self._plausible(z["lse"], sigma["lse"], other):
            return None
        return -sum(float((np.log(sigma[n]) + x**2 / 2).sum()) for n, x in z.items())

    def _plausible(self, z: Array, sigma: Array, other: Contract) -> bool:
        """Say whether the error of lse is one of the roundings that `other` declares."""
        size = _rms(z)
        if other.numerics["acc"] != self.contract.numerics["acc"] or _rms(sigma) <= 3 * _rms(self.declared["lse"]):
            return size <= 4  # the deviation of sums is not well known
        cancels = abs(z.mean()) <= 5 * size / np.sqrt(z.size)  # as roundings to nearest do
        return 0.6 <= size <= 2 and bool(cancels)


def _rms(x: Array) -> float:
    finite = x[np.isfinite(x)]
    return float(np.sqrt((finite**2).mean())) if finite.size else 0.0


def _right(p: Problem, output: Output, other: Contract, closely: tuple[float, float] | None = None) -> bool:
    """Say whether an output is right under another contract, and its z_rms in the range of `closely`, if given."""
    findings = judge(analyse(p, other), output, other)
    no_matter: tuple[str, ...] = ("z_max", "z_rms")
    if other.acc in ("float16", "bfloat16"):
        no_matter += ("row_scale", "normaliser")  # sums in 16 bits are off by a factor in each row
    if findings.wrong or any(not name.endswith(no_matter) for name in findings.suspect):
        return False
    if closely is None:
        return True
    sizes = [x for name, x in findings.figures.items() if name.endswith("z_rms")]
    return bool(sizes) and closely[0] <= max(sizes) <= closely[1]


def _declared(contract: Contract, other: Contract) -> str:
    """Say what the contract declares where the other differs."""
    own, theirs = contract.numerics, other.numerics
    names = {"p": "P in", "out": "an output in", "products": "products of operands in", "s": "scores in"}
    names |= {"acc": "accumulation in"}
    words = []
    for name, value in own.items():
        if value == theirs[name] or (name == "p" and own["products"] != theirs["products"]):
            continue
        words.append(f"{names[name]} {value or own['acc']}" if name in names else f"{name}={value}")
    return ", ".join(words)
