"""``refattn check``: judge a kernel, in whatever language; see `refattn.testing`."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refattn.cli import claims, verdict

if TYPE_CHECKING:
    from refattn.testing.contract import Contract

NAME = "check"
HELP = "judge an attention kernel: in Python, a C library, a program, or a backend"
LEVELS = ("quick", "standard", "deep")
LEVEL = "standard"

EXAMPLES = """\
examples:
  refattn check mine.flash:forward --dtype bfloat16 --level quick
  refattn check kernels.py:swa --causal --window 127 0 --html report.html
  refattn check mine.torch_kernels:flash --arrays torch --dtype float16
  refattn check --library ./libflash.so --symbol flash --signature "q k v o lse B H Hk Tq Tk D Dv scale causal"
  refattn check --command ./runner --takes causal,window
  refattn check --backend numba

A Python kernel is called as kernel(q, k, v, **options) with arrays (B, H, T, D) and returns o or (o, lse); for
--op attention_vjp, kernel(do, q, k, v, **options) returns (dq, dk, dv). It gets the options that its signature names.
The exit status is 0 if every check passed, 1 if one failed or none ran, 2 if the request makes no sense.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("the kernel, one of")
    group.add_argument("kernel", nargs="?", metavar="MODULE:FUNCTION", help="in Python; or path/to/file.py:function")
    group.add_argument("--command", metavar="COMMAND", help="a program that answers on its standard output")
    group.add_argument("--library", metavar="FILE", help="a shared library, with --symbol and --signature")
    group.add_argument("--backend", metavar="NAME", help="a backend of refattn, every operation of it")
    group = parser.add_argument_group("how it is called")
    group.add_argument("--arrays", metavar="LIBRARY", help="a Python kernel takes arrays of torch, jax.numpy, ...")
    group.add_argument("--takes", metavar="A,B", help="the options that the program of --command understands")
    group.add_argument("--symbol", metavar="NAME", help="the function in --library")
    group.add_argument("--signature", metavar="TEXT", help='its arguments, such as "q k v o B H Hk Tq Tk D Dv scale"')
    group.add_argument("--isolate", action="store_true", help="in a process of its own, so that a crash is a verdict")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds that one call may take (default: 20)")
    claims.add_arguments(parser)
    group = parser.add_argument_group("what is checked")
    group.add_argument("--level", choices=LEVELS, default=LEVEL, help=f"how much (default: {LEVEL})")
    group.add_argument(
        "--only", action="append", metavar="PATTERN", help="the checks of this name: a part of it, or * and ?"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the numbers that are drawn (default: 0)")
    group.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    verdict.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Judge, print and write; return 1 if a check failed or none ran.

    Everything that can be refused is refused before the first check.
    """
    _check_arguments(args)
    rules = verdict.prepare(args)
    if args.backend is not None:
        from refattn.testing import check_backend

        judged: Any = check_backend(args.backend, level=args.level)
        return verdict.finish(judged, args, rules)
    from refattn.testing import kit

    contract = claims.contract_of(args)
    ids = [check.id for check in kit.checks(contract, args.level)]
    wanted = set(verdict.chosen(ids, args.only)) if args.only else set(ids)
    kernel, contract = load(args, contract)
    limit = {} if args.timeout is None else {"timeout": args.timeout}
    try:
        with verdict.progress(len(wanted)) as tell:
            report = kit.check(
                kernel,
                contract,
                args.level,
                seed=args.seed,
                only=wanted.__contains__,
                fail_fast=args.fail_fast,
                on_result=lambda result: tell(f"{result.check} {result.verdict}"),
                **limit,
            )
        return verdict.finish(report, args, rules)
    finally:
        verdict.close(kernel)


def load(args: argparse.Namespace, contract: "Contract") -> "tuple[Callable[..., Any], Contract]":
    """Return the kernel on NumPy arrays in the contract's layout, and the contract with the options that it takes."""
    from refattn.testing import adapters, kit
    from refattn.testing.loading import load_object, nearest

    known = kit.operation(contract.op).options
    limit = {} if args.timeout is None else {"timeout": args.timeout}
    if args.command is not None:
        takes = [name.strip() for name in (args.takes or "").split(",") if name.strip()]
        for name in takes:
            if name not in known:
                raise LookupError(f"check: --takes: {contract.op} has no option {name!r}{nearest(name, known)}")
        inputs = ("do", "q", "k", "v") if contract.op == "attention_vjp" else None
        kernel = adapters.from_subprocess(args.command, options=takes, inputs=inputs, **limit)
        if contract.options is None:
            contract = replace(contract, options=tuple(takes))
    elif args.library is not None:
        kernel = adapters.from_ctypes(args.library, args.symbol, args.signature, layout=contract.layout)
        contract = replace(contract, layout="bhtd")  # the adapter has seen to it
    else:
        kernel = load_object(args.kernel)
        if args.arrays is not None:
            kernel = adapters.from_dlpack(kernel, args.arrays)
    if args.isolate:
        kernel = adapters.isolated(kernel, **limit)
    return kernel, contract


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError unless the options name one kernel and belong together."""
    kinds = ("kernel", "command", "library", "backend")
    given = [kind for kind in kinds if getattr(args, kind) is not None]
    names = ["MODULE:FUNCTION" if kind == "kernel" else f"--{kind}" for kind in given]
    if len(given) != 1:
        got = f"got {' and '.join(names)}" if given else "got none; see refattn check --help"
        raise ValueError(f"check: wanted one kernel: MODULE:FUNCTION, --command, --library or --backend; {got}")
    belongs = {"takes": "command", "symbol": "library", "signature": "library", "arrays": "kernel"}
    for option, kind in belongs.items():
        if getattr(args, option) is not None and given != [kind]:
            owner = "a Python kernel" if kind == "kernel" else f"--{kind}"
            raise ValueError(f"check: --{option} belongs to {owner}, not to {names[0]}")
    if args.library is not None and (args.symbol is None or args.signature is None):
        raise ValueError("check: --library wants --symbol and --signature, too")
    if args.isolate and args.command is not None:
        raise ValueError("check: --isolate is for kernels in this process; --command is one of its own")
    if args.backend is not None:
        others = (*claims.OPTIONS, "isolate", "timeout", "only", "fail_fast")
        set_ones = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name) not in (None, False)]
        if set_ones or args.seed != 0:
            what = ", ".join(set_ones or ["--seed"])
            raise ValueError(f"check: a backend has its own cases; {what} does not go with --backend")
    if args.timeout is not None and not args.timeout > 0:
        raise ValueError(f"check: --timeout is {args.timeout:g}; wanted more than 0 seconds")
    if args.seed < 0:
        raise ValueError(f"check: --seed is {args.seed}; wanted 0 or more")
