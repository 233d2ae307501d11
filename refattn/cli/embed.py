"""``refattn embed --model DIR "some text" ...``: sentence embeddings by a MiniLM, on any backend."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from refattn.arrays import Array
from refattn.models.minilm import MiniLM

NAME = "embed"
HELP = "turn texts into vectors with a MiniLM model"

SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads one text a line from standard input")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder with config.json, model.safetensors, ...")
    parser.add_argument("--backend", default=None, metavar="NAME", help="who computes (default: numpy)")
    parser.add_argument("--json", metavar="PATH", help="write every number as JSON; - prints that and nothing else")
    parser.add_argument("--similar", action="store_true", help="also the cosine similarity of each text with each")


def run(args: argparse.Namespace) -> int:
    """Embed the texts and print them."""
    texts = _read(args.texts)
    model = MiniLM.load(args.model)
    for text in texts:
        given = len(model.tokenizer.encode(text))
        if given > model.max_tokens:
            print(f"note: read {model.max_tokens} of the {given} tokens of {_short(text)}", file=sys.stderr)
    vectors = model.embed(texts, backend=args.backend)
    cosines = vectors @ vectors.T if args.similar else None  # cos = a·b, as both have length 1
    if args.json is not None:
        content = {"texts": texts, "embeddings": vectors.tolist()}
        if cosines is not None:
            content["similarities"] = cosines.tolist()
        if args.json == "-":
            print(json.dumps(content))
            return 0
        Path(args.json).write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(report(texts, vectors, cosines))
    return 0


def report(texts: list[str], vectors: Array, cosines: Array | None) -> str:
    """Return what a person reads: the first entries and the norm of each vector, and the similarities if given."""
    lines = []
    for n, (text, vector) in enumerate(zip(texts, vectors, strict=True), 1):
        entries = " ".join(f"{x:9.6f}" for x in vector[:SHOWN])
        size = f"{len(vector)} numbers, norm {np.linalg.norm(vector):.6f}"
        lines += [f"{n:>3} {_short(text)}", f"    [{entries} ...]  {size}"]
    if cosines is not None:
        lines += ["", "cosine similarity", "    " + " ".join(f"{n:>6}" for n in range(1, len(texts) + 1))]
        lines += [f"{n:>3} " + " ".join(f"{x:6.3f}" for x in row) for n, row in enumerate(cosines, 1)]
    return "\n".join(lines)


def _read(given: list[str]) -> list[str]:
    texts: list[str] = []
    for text in given:
        texts += [line for line in sys.stdin.read().splitlines() if line.strip()] if text == "-" else [text]
    if not texts:
        raise ValueError("embed: standard input holds no text")
    return texts


def _short(text: str, width: int = 60) -> str:
    return repr(text) if len(text) <= width else repr(text[:width]) + "..."
