"""``refattn profile MODEL``: where the time of a model goes on this machine, component by component."""

import argparse
import dataclasses
import math
from pathlib import Path

from refattn import costs, dispatch
from refattn.cli import console, files, profile_report
from refattn.cli.calibrate import load
from refattn.costs import machine
from refattn.costs.mechanisms import Softmax
from refattn.costs.names import PHASES, mechanism_named, unknown
from refattn.costs.units import size
from refattn.models.gpt import GPT
from refattn.models.minilm import MiniLM
from refattn.watch import needs
from refattn.watch.network import Network
from refattn.watch.profile import profile
from refattn.watch.roofs import measure_rates

NAME = "profile"
HELP = "run a model and say where its time goes: per component, against this machine's limits"

SECONDS = 10.0
MINILM = "minilm-l6"
"""Whose sizes `minilm` has without a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="gpt (bundled), minilm, a name of `refattn cost --list`, or a config.json",
    )
    group = parser.add_argument_group("what runs")
    group.add_argument("--model-dir", metavar="DIR", help="of minilm: the folder with its weights (default: random)")
    group.add_argument("--mechanism", metavar="M", help="a name, or a mask such as 'window(255, 0)', in every layer")
    group.add_argument("--layers", type=int, metavar="N", help="the first N (default: what time and memory allow)")
    group.add_argument("--seq", type=int, default=512, metavar="N", help="tokens of a sequence (default: 512)")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    group.add_argument(
        "--phase", default="prefill", metavar="P", help="prefill, decode (one token after the others), or train"
    )
    group.add_argument("--backend", default=dispatch.REFERENCE, metavar="B", help="of mixing (default: numpy)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and of the input")
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help=f"of the rounds (default: {SECONDS:g})"
    )
    group.add_argument("--rounds", type=int, metavar="N", help="so many, however long they take")
    group.add_argument("--calibration", metavar="FILE", help="that `refattn calibrate` wrote: the machine's limits")
    group = parser.add_argument_group("where the results go, beside the table (- is standard output)")
    group.add_argument("--json", metavar="PATH", help="every number with its unit and kind")
    group.add_argument("--csv", metavar="PATH", help="a line per component")
    group.add_argument("--html", metavar="PATH", help="one page")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write.

    Everything that can be refused is refused before the first parameter is drawn.
    """
    outputs = {"--json": args.json, "--csv": args.csv, "--html": args.html}
    table, bar = console.consoles(table_to_stderr=files.STDOUT in outputs.values())
    _check_numbers(args)
    weights, m, causal = _model(args)
    layers = _layers(args, m, causal, drawn=weights is None)
    files.check_writable(outputs)
    calibration = None if args.calibration is None else load(args.calibration)[0]

    facts = machine.facts(sorted({dispatch.REFERENCE, args.backend}))  # before our own work counts as load
    with console.progress(bar) as tick:
        network = weights
        if network is None:
            network = Network.random(
                m, layers=layers, seed=args.seed, causal=causal, tick=lambda text, share: tick(text, 0.2 * share)
            )
        found = profile(
            network, batch=args.batch, seq=args.seq, phase=args.phase, backend=args.backend, rounds=args.rounds,
            seconds=args.seconds, seed=args.seed, tick=lambda text, share: tick(text, 0.2 + 0.8 * share),
            rates=None if calibration is None else measure_rates(args.backend, calibration),
        )  # fmt: skip
    profile_report.show(found, facts, table)
    if args.json is not None:
        files.write(args.json, profile_report.to_json(found, facts))
    if args.csv is not None:
        files.write(args.csv, profile_report.to_csv(found))
    if args.html is not None:
        from refattn.cli import profile_page

        files.write(args.html, profile_page.html(found, facts))
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("seq", "batch", "layers", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"profile: --{name} is {value}; wanted 1 or more")
    if args.seed < 0:
        raise ValueError(f"profile: --seed is {args.seed}; wanted 0 or more")
    if not (math.isfinite(args.seconds) and args.seconds >= 0):
        raise ValueError(f"profile: --seconds is {args.seconds}; wanted 0 or more")
    if args.phase not in PHASES:
        raise unknown("phase", args.phase, PHASES)
    known = [*dispatch.backends(), dispatch.AUTO]
    if args.backend not in known:
        raise unknown("backend", args.backend, known)
    if args.model_dir is not None and args.model != "minilm":
        raise ValueError(f"profile: --model-dir is of minilm; the model is {args.model}")


def _model(args: argparse.Namespace) -> tuple[Network | None, costs.Transformer, bool]:
    """Return a network with weights, or None where they are to be drawn; its sizes; whether it is causal."""
    mechanism = None if args.mechanism is None else mechanism_named(args.mechanism)
    network: Network | None = None
    fits = mechanism is None or type(mechanism) is Softmax
    if args.model == "gpt":
        network = Network.from_gpt(GPT.bundled(), mechanism if fits else None)
    elif args.model_dir is not None:
        network = Network.from_minilm(MiniLM.load(args.model_dir), mechanism if fits else None)
    if network is not None:
        m, causal = network.sizes, network.causal
    else:
        m = _sizes(args.model)
        causal = m.logits
    if mechanism is not None and (network is None or not fits):
        # its weights would be those of another mechanism
        network, m = None, dataclasses.replace(m, mechanism=mechanism)
    if network is not None and args.layers is not None and args.layers < m.layers:
        network = dataclasses.replace(
            network, sizes=needs.first_layers(m, args.layers), layers=network.layers[: args.layers]
        )
    return network, m, causal


def _sizes(name: str) -> costs.Transformer:
    if name == "minilm":
        return dataclasses.replace(costs.preset(MINILM), name="minilm")
    if name.endswith(".json"):
        return costs.from_config(Path(name))
    known = ["gpt", "minilm", *costs.PRESETS]
    if name not in known:
        raise unknown("model", name, known)
    return costs.preset(name)


def _layers(args: argparse.Namespace, m: costs.Transformer, causal: bool, drawn: bool) -> int:
    """Return how many layers run; ValueError where they cannot, or do not fit into memory."""
    if args.layers is not None and args.layers > m.layers:
        raise ValueError(f"profile: --layers is {args.layers}; the model has {m.layers}")
    needs.check(needs.first_layers(m, 1), causal, args.batch, args.seq, args.phase, args.backend)
    if m.experts is not None and any(m.has_experts(n) for n in range(args.layers or m.layers)):
        raise ValueError(
            f"profile: {m.name or args.model} has experts, which are counted but not run; see refattn cost"
        )
    layers = args.layers or m.layers
    if drawn and args.layers is None:
        layers = needs.fitting(m, args.batch, args.seq, args.phase, args.backend, args.seconds / 8)
    part, free = needs.first_layers(m, layers), machine.free_memory()
    needs.check(part, causal, args.batch, args.seq, args.phase, args.backend)
    needed = needs.weight_bytes(part, args.phase) + needs.needed_bytes(
        part, args.batch, args.seq, args.phase, args.backend
    )
    if free is not None and needed > free:
        raise ValueError(f"profile: {layers} layers need about {size(needed)}; {size(free)} are free")
    return layers
