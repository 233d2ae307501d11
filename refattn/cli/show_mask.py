"""``refattn show-mask "EXPR"``: which query may look at which key, drawn in characters and counted."""

import argparse
import math

import numpy as np

from refattn.arrays import check_count
from refattn.cli import files
from refattn.masks import EMPTY, FULL, PARTIAL, parse

NAME = "show-mask"
HELP = "draw a mask and count its pairs and tiles"

LONGEST = 131_072  # beyond this the picture of a mask without structure takes minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("mask", metavar="EXPR", help='such as "causal() & (window(16, 0) | global_tokens([0]))"')
    parser.add_argument("--t", type=int, default=64, metavar="N", help="queries and keys (default: 64)")
    parser.add_argument("--tq", type=int, metavar="N", help="queries, if not as many as keys")
    parser.add_argument("--tk", type=int, metavar="N", help="keys, if not as many as queries")
    parser.add_argument("--block", type=int, default=64, metavar="N", help="side of the tiles counted (default: 64)")
    parser.add_argument("--svg", metavar="FILE", help="write the picture as SVG, too")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="most columns of the picture (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Print the picture, then the counts over all of the mask's patterns."""
    Tq = args.t if args.tq is None else args.tq
    Tk = args.t if args.tk is None else args.tk
    for option, n in (("queries", Tq), ("keys", Tk), ("--block", args.block), ("--width", args.width)):
        check_count("show-mask", option, n)
    if max(Tq, Tk) > LONGEST:
        raise ValueError(f"show-mask: {Tq} queries and {Tk} keys; wanted at most {LONGEST} of each")
    mask = parse(args.mask)
    files.check_writable({"--svg": args.svg})
    picture = mask.picture(Tq, Tk, args.width)
    pairs, scores = mask.pairs(Tq, Tk), math.prod(mask.lead) * Tq * Tk
    kinds = np.bincount(mask.blocks(Tq, Tk, args.block, args.block).kinds().ravel(), minlength=3)
    step = max(1, -(-max(Tq, Tk) // args.width))
    if args.svg is not None:
        files.write(args.svg, mask.svg(Tq, Tk))
    if args.svg == files.STDOUT:
        return 0
    print(picture)
    print()
    print(repr(mask))
    if step > 1:
        print(f"picture  {step} × {step} pairs a character: ░▒▓ some of them visible, █ all")
    print(f"pairs    {pairs:,} of {scores:,} visible: density {pairs / scores:.1%}".replace("%", " %"))
    tiles = f"{kinds[EMPTY]:,} empty, {kinds[PARTIAL]:,} partial, {kinds[FULL]:,} full"
    print(f"tiles    of {args.block} × {args.block}: {tiles}")
    return 0
