"""``refattn serve-plan``: what a device can serve of a model, and whether a promise is kept at a rate of requests."""

import argparse

from refattn.cli import console, files, serve_plan_report

NAME = "serve-plan"
HELP = "plan a service: how many requests fit, how fast they get tokens, and at which rate a promise is kept"

PROMISES = ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95")
COUNTS = (
    ("--devices", 1, "that share the work; what they tell each other is not modelled"),
    ("--max-batch", 256, "requests that may run at once"),
    ("--pass-tokens", 8192, "tokens of one prefill pass"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    group = parser.add_argument_group("the model and the device")
    group.add_argument("--model", required=True, metavar="NAME", help="of `refattn cost --list`, or a config.json")
    group.add_argument("--hw", required=True, metavar="NAME", help="of `refattn cost --list`, or a calibration")
    for option, default, text in COUNTS:
        group.add_argument(option, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    group.add_argument("--dtype", default="bfloat16", metavar="T", help="of products (default: bfloat16)")
    group.add_argument("--weight-dtype", metavar="T", help="of weights, where not that")
    group.add_argument("--kv-dtype", metavar="T", help="of keys and values, where not that")
    group.add_argument(
        "--utilisation", type=float, default=0.9, metavar="U", help="share of memory that may be used (default: 0.9)"
    )
    group.add_argument(
        "--efficiency", type=float, default=1.0, metavar="E", help="share of the device's rates reached (default: 1)"
    )
    group = parser.add_argument_group("the requests")
    forms = "512, uniform:64..2048, lognormal:median=300,p95=2000,max=8192, a.csv or a.csv:COLUMN"
    group.add_argument("--lengths", required=True, metavar="L", help=f"tokens of prompts: {forms}")
    group.add_argument("--output", default="128", metavar="L", help="tokens of answers, likewise (default: 128)")
    group.add_argument("--rps", type=float, required=True, metavar="R", help="requests a second, Poisson")
    group = parser.add_argument_group("what is promised, in seconds")
    for name in PROMISES:
        what = "to the first token" if name.startswith("ttft") else "from token to token"
        group.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="S", help=f"{what}, {name[-3:]}")
    group = parser.add_argument_group("the simulation")
    group.add_argument("--requests", type=int, default=1000, metavar="N", help="of a run, at least (default: 1000)")
    group.add_argument("--seeds", type=int, default=5, metavar="N", help="runs (default: 5)")
    group = parser.add_argument_group("where the results go, beside the table (- is standard output)")
    group.add_argument("--json", metavar="PATH", help="every number with its unit and kind")
    group.add_argument("--csv", metavar="PATH", help="a line per row of the table")


def run(args: argparse.Namespace) -> int:
    """Plan, print and write; return 1 if a promise is broken, or the model does not fit.

    Everything that can be refused is refused before the first file is written.
    """
    from refattn.cli.cost_model import device, named
    from refattn.costs.serving import serve_plan

    outputs = {"--json": args.json, "--csv": args.csv}
    table, bar = console.consoles(table_to_stderr=files.STDOUT in outputs.values())
    files.check_writable(outputs)
    m, on = named(args.model), device(args.hw)
    promised = {name: getattr(args, name) for name in PROMISES if getattr(args, name) is not None}
    with console.progress(bar) as tick:
        plan = serve_plan(
            m,
            on=on,
            lengths=args.lengths,
            requests_per_second=args.rps,
            slo=promised,
            output=args.output,
            dtype=args.dtype,
            weight_dtype=args.weight_dtype,
            kv_dtype=args.kv_dtype,
            devices=args.devices,
            utilisation=args.utilisation,
            efficiency=args.efficiency,
            max_batch=args.max_batch,
            pass_tokens=args.pass_tokens,
            requests=args.requests,
            seeds=args.seeds,
            tick=tick,
        )
    texts = {}
    if args.json is not None:
        texts[args.json] = serve_plan_report.to_json(plan)
    if args.csv is not None:
        texts[args.csv] = serve_plan_report.to_csv(plan)
    serve_plan_report.show(plan, table)
    for path, text in texts.items():
        files.write(path, text)
    return int(not plan.fits or plan.meets is False)
