"""The comparator alone, for people who have a harness of their own; see `compare`."""

from collections.abc import Mapping
from typing import Any

from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.problem import problem
from refattn.testing.contract import ATTENTION_OPTIONS, Contract
from refattn.testing.faults import KernelFault
from refattn.testing.session import Session
from refattn.testing.verdicts import FAIL, PASS, SUSPECT, Result

ARRAYS = ("q", "k", "v", "do")


def compare(
    got: Any, inputs: Mapping[str, Any], contract: Contract | None = None, *, statistics: bool = False
) -> Result:
    """Hold a result that you computed against the float64 oracle.

    Parameters
    ----------
    got : array, or tuple of arrays
        o, or (o, lse); for attention_vjp (dq, dk, dv), then dbias and dsinks if bias and sinks were given.
    inputs : mapping
        "q" (B, H, Tq, D), "k" (B, Hk, Tk, D), "v" (B, Hk, Tk, Dv), for attention_vjp "do", and the options of the call,
        such as "causal": True.
    contract : Contract, optional
        What was to be computed, and in which precision; that of `refattn.attention` in float32 unless given.
    statistics : bool
        Whether the arrays were drawn from a standard normal distribution: then the statistics of the error and the
        score tests speak, too. There are no fresh seeds here to confirm them.

    Returns
    -------
    Result
        PASS, FAIL (beyond the sound bound, NaN, a wrong shape) or SUSPECT (statistics), with what was measured in
        `figures`, where it went wrong in `message`, and maps in `pictures`.

    Raises
    ------
    TypeError, ValueError
        For inputs that the kit does not know, or that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import attention
    >>> rng = np.random.default_rng(0)
    >>> x = {name: rng.standard_normal((1, 2, 9, 8)).astype(np.float32) for name in "qkv"}
    >>> compare(attention(**x), x).verdict
    'PASS'
    >>> compare(attention(**x) * np.float32(1.001), x).verdict
    'FAIL'
    """
    contract = Contract() if contract is None else contract
    if contract.op not in ("attention", "attention_vjp"):
        raise ValueError(f"compare: contract.op is {contract.op!r}; wanted attention or attention_vjp")
    wanted = ARRAYS if contract.op == "attention_vjp" else ARRAYS[:3]
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise ValueError(f"compare: inputs lack {', '.join(missing)}; wanted {', '.join(wanted)} and options")
    known = (*ARRAYS, *ATTENTION_OPTIONS, "dlse")
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise TypeError(f"compare: inputs name {', '.join(unknown)}; wanted some of {', '.join(known)}")
    for name in wanted:
        if getattr(inputs[name], "ndim", None) != 4:
            got_shape = getattr(inputs[name], "shape", type(inputs[name]).__name__)
            raise ValueError(f"compare: {name} is {got_shape}; wanted an array of 4 axes (B, H, T, D)")
    _check_sizes(inputs)
    options = {name: x for name, x in inputs.items() if name not in ARRAYS}
    arrays = [inputs[name] for name in ("q", "k", "v")]
    p = problem(contract, *arrays, do=inputs.get("do") if "do" in wanted else None, normal=statistics, **options)
    id = f"{contract.op}/compared"
    try:
        output = Session(lambda *_: got, contract).checked(got, p, [])
    except KernelFault as fault:
        return Result(id, FAIL, str(fault))
    findings = judge(analyse(p, contract), output, contract)
    verdict = FAIL if findings.wrong else SUSPECT if findings.suspect else PASS
    message = "\n".join([*findings.wrong, *findings.suspect.values()])
    return Result(id, verdict, message, findings.figures, pictures=tuple(findings.pictures))


def _check_sizes(inputs: Mapping[str, Any]) -> None:
    q, k, v = (tuple(inputs[name].shape) for name in ("q", "k", "v"))
    fits = q[0] == k[0] == v[0] and k[1:3] == v[1:3] and q[3] == k[3] and k[1] > 0 and q[1] % k[1] == 0
    if not fits:
        raise ValueError(
            f"compare: q {q}, k {k}, v {v} do not fit; wanted (B, H, Tq, D), (B, Hk, Tk, D), (B, Hk, Tk, Dv), Hk | H"
        )
    if "do" in inputs and tuple(inputs["do"].shape) != (*q[:3], v[3]):
        raise ValueError(f"compare: do {tuple(inputs['do'].shape)} does not fit; wanted {(*q[:3], v[3])}")
