"""``refattn infer``: probe a kernel, and say which contract it keeps."""

import argparse
import sys

from refattn.cli import claims

NAME = "infer"
HELP = "find out what an attention kernel does: layout, scale, alignment of the mask, precision, ..."

EXAMPLES = """\
examples:
  refattn infer mine.flash:forward
  refattn infer kernels.py:swa --dtype float16 --toml > swa.toml && refattn check kernels.py:swa --contract swa.toml

The exit status is 1 if the kernel computes attention in no layout and with no scale that the command knows.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("kernel", metavar="MODULE:FUNCTION", help="in Python; or path/to/file.py:function")
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="of its arrays (default: float32)")
    parser.add_argument("--arrays", metavar="LIBRARY", help="it takes arrays of torch, jax.numpy, ...")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds that one call may take (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the probes (default: 0)")
    parser.add_argument("--toml", action="store_true", help="print a file for `refattn check --contract`")


def run(args: argparse.Namespace) -> int:
    """Print what was found out; return 1 if no contract fits at all."""
    from refattn.testing import adapters
    from refattn.testing.infer import infer_contract
    from refattn.testing.loading import load_object

    if args.timeout is not None and not args.timeout > 0:
        raise ValueError(f"infer: --timeout is {args.timeout:g}; wanted more than 0 seconds")
    if args.seed < 0:
        raise ValueError(f"infer: --seed is {args.seed}; wanted 0 or more")
    kernel = load_object(args.kernel)
    if args.arrays is not None:
        kernel = adapters.from_dlpack(kernel, args.arrays)
    limit = {} if args.timeout is None else {"timeout": args.timeout}
    inference = infer_contract(kernel, args.dtype, seed=args.seed, **limit)
    fits = "layout" not in [name for name, _ in inference.unknown]
    if args.toml:
        print(
            "\n".join(f"# unknown: {name}: {' '.join(why.split())}" for name, why in inference.unknown), file=sys.stderr
        )
        print(claims.toml(inference.contract), end="")
    else:
        print(inference)
        if fits:
            arrays = "" if args.arrays is None else f" --arrays {args.arrays}"
            print(
                f"\nto hold it to this: refattn infer {args.kernel} --dtype {args.dtype}{arrays} --toml > contract.toml"
            )
            print(f"                    refattn check {args.kernel}{arrays} --contract contract.toml")
    return int(not fits)
