"""``refattn generate``: let the bundled GPT continue a text."""

import argparse

from refattn.models.gpt import GPT

NAME = "generate"
HELP = "let a small GPT, trained on this project's own text, continue a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="characters to add (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="X", help="0 takes the likeliest (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest characters only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text (default: 0)")
    parser.add_argument("--backend", metavar="NAME", help="who computes (default: numpy)")
    parser.add_argument("--checkpoint", metavar="PATH", help="an npz that GPT.save wrote (default: the bundled one)")


def run(args: argparse.Namespace) -> int:
    """Print the prompt, and each character that follows it as it comes."""
    gpt = GPT.bundled() if args.checkpoint is None else GPT.load(args.checkpoint)
    waiting = [args.prompt]  # a refused call prints nothing

    def show(character: str) -> None:
        print(*waiting, character, sep="", end="", flush=True)
        waiting.clear()

    gpt.generate(
        args.prompt,
        args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
        on_character=show,
        backend=args.backend,
    )
    print(*waiting)
    return 0
