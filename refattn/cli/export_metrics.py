"""``refattn export-metrics``: the metrics of a small workload on the bundled GPT, served or written."""

import argparse
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files as resources
from typing import Any

from refattn.arrays import check_count
from refattn.cli import files
from refattn.cli.calibrate import load
from refattn.costs.machine import need
from refattn.dispatch import REFERENCE
from refattn.watch.labels import backend_label

NAME = "export-metrics"
HELP = "serve or write the Prometheus metrics of a small workload on the bundled GPT"

PORT = 9464
REQUESTS = 8
THREADS = 4
PROMPTS = ("def attention(", "softmax", "    return ", "import numpy as np\n\n\ndef ", "# The keys and values that")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    group = parser.add_argument_group("the workload")
    group.add_argument(
        "--requests", type=int, default=REQUESTS, metavar="N", help=f"texts to generate (default: {REQUESTS})"
    )
    group.add_argument("--tokens", type=int, default=20, metavar="N", help="characters of each (default: 20)")
    group.add_argument("--backend", default=REFERENCE, metavar="NAME", help=f"who computes (default: {REFERENCE})")
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="of `refattn calibrate`: also how measured times compare with predicted ones",
    )
    group = parser.add_argument_group("a server, if nothing is written; it generates for others too: POST /generate")
    group.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1, this machine only")
    group.add_argument("--port", type=int, metavar="N", help=f"default: {PORT}; 0 takes a free one")
    group.add_argument("--seconds", type=float, metavar="S", help="serve for so long (default: until interrupted)")
    group = parser.add_argument_group("what is written instead (- is standard output)")
    group.add_argument("--once", action="store_true", help="print the metrics after the workload, and serve nothing")
    group.add_argument("--out", metavar="FILE", help="write them there")
    group.add_argument("--dashboard", metavar="FILE", help="write the dashboard for Grafana")
    group.add_argument("--alerts", metavar="FILE", help="write the alert rules for Prometheus")


def run(args: argparse.Namespace) -> int:
    """Write what is asked for, or serve; everything that can be refused is refused before the first computation."""
    shipped = {"dashboard.json": args.dashboard, "alerts.yml": args.alerts}
    once = args.once or args.out is not None
    if once and (args.port is not None or args.seconds is not None):
        raise ValueError("export-metrics: --once and --out serve nothing; wanted them without --port and --seconds")
    check_count("export-metrics", "--requests", args.requests, least=0)
    check_count("export-metrics", "--tokens", args.tokens)
    if args.seconds is not None and not (math.isfinite(args.seconds) and args.seconds >= 0):
        raise ValueError(f"export-metrics: --seconds is {args.seconds}; wanted 0 or more")
    out = files.STDOUT if args.out is None else args.out
    files.check_writable({"--out": out if once else None, "--dashboard": args.dashboard, "--alerts": args.alerts})
    serves = not once and (args.port is not None or args.seconds is not None or not any(shipped.values()))
    if once or serves:
        need("prometheus_client", "monitor", "export-metrics")
        backend_label(args.backend)
    text = _text(args) if once else ""
    service = _service(args, PORT if args.port is None else args.port) if serves else None
    for name, path in shipped.items():
        if path is not None:
            files.write(path, resources("refattn.watch.data").joinpath(name).read_text(encoding="utf-8"))
    if once:
        files.write(out, text)
    if service is not None:
        _serve(service, args)
    return 0


def _service(args: argparse.Namespace, port: int) -> Any:
    from refattn.watch.service import MOST_TOKENS, Service

    if args.tokens > MOST_TOKENS:
        raise ValueError(f"export-metrics: --tokens is {args.tokens}; wanted at most {MOST_TOKENS}")
    predicted = None if args.calibration is None else load(args.calibration)[0]
    return Service(backend=args.backend, host=args.host, port=port, predicted=predicted, all_parts=True)


def _text(args: argparse.Namespace) -> str:
    from prometheus_client import generate_latest

    with _service(args, 0) as service:
        _work(service, args, threading.Event())
        return generate_latest(service.registry).decode()


def _serve(service: Any, args: argparse.Namespace) -> None:
    stop = threading.Event()
    end = math.inf if args.seconds is None else time.monotonic() + args.seconds
    with service, ThreadPoolExecutor(1) as worker:
        print(f"metrics at {service.url}/metrics", flush=True)
        work = worker.submit(_work, service, args, stop)
        try:
            while time.monotonic() < end:
                time.sleep(min(0.1, max(0.0, end - time.monotonic())))
                if work.done():
                    work.result()  # raises what it raised
        finally:
            stop.set()


def _work(service: Any, args: argparse.Namespace, stop: threading.Event) -> None:
    """Generate the texts, a few at a time."""

    def one(n: int) -> None:
        if not stop.is_set():
            asked = {"prompt": PROMPTS[n % len(PROMPTS)], "tokens": args.tokens, "temperature": 0.8, "seed": n}
            service.generate(asked)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(args.requests)))
