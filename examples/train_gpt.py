"""Train the bundled GPT with this project's own derivatives: a few minutes on two cores, one command.

Ctrl-C ends the training early and still leaves a valid checkpoint.
"""

import argparse
import hashlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import refattn
from refattn.models import corpus
from refattn.models.gpt import GPT, Config
from refattn.models.train import AdamW, held_out_loss, initial, learning_rate, loss_and_gradients, windows

DATA = Path(__file__).resolve().parents[1] / "refattn" / "models" / "data"
LIMIT = 1_500_000  # bytes, of the checkpoint


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seconds", type=float, default=280.0, help="stop here, if the steps take longer")
    parser.add_argument("--backend", choices=refattn.backends(), help="numba where it is installed, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DATA / "gpt.npz")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--text", type=Path, help="another text to learn (default: the bundled one)")
    parser.add_argument("--asked", type=int, help="held-out characters to compute the loss on (default: all)")
    chosen = parser.parse_args(arguments)
    chosen.whole = chosen.steps >= parser.get_default("steps") and chosen.seconds >= parser.get_default("seconds")
    chosen.backend = chosen.backend or ("numba" if can_use("numba") else "numpy")
    return chosen


def can_use(backend: str) -> bool:
    """Whether the backend is there and covers the derivative of attention."""
    q = np.zeros((1, 1, 2), np.float32)
    return refattn.explain("attention_vjp", q, q, q, q).reasons.get(backend, "absent") is None


@contextmanager
def reporting(steps: int) -> Iterator[Callable[[int, float, float], None]]:
    """Yield a function of step, loss and seconds: a bar on a terminal, if rich is there; else a line now and then."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task("training", total=steps)
            yield lambda step, loss, _: bar.update(task, completed=step, description=f"loss {loss:.3f}")
        return

    def line(step: int, loss: float, seconds: float) -> None:
        if step % max(1, steps // 20) == 0:
            print(f"step {step:5} of {steps}  loss {loss:.3f}  {seconds:4.0f} s", flush=True)

    yield line


def train(gpt: GPT, tokens: np.ndarray, chosen: argparse.Namespace) -> tuple[int, bool]:
    """Return the steps done, and whether Ctrl-C ended them."""
    rng = np.random.default_rng(chosen.seed)
    optimizer = AdamW(gpt.parameters)
    start, step, smooth = time.monotonic(), 0, float("nan")
    with reporting(chosen.steps) as report:
        try:
            while step < chosen.steps and time.monotonic() - start < chosen.seconds:
                progress = max((step + 1) / chosen.steps, (time.monotonic() - start) / chosen.seconds)
                batch = windows(tokens, chosen.batch, gpt.config.context + 1, rng)
                loss, gradients = loss_and_gradients(gpt, batch, backend=chosen.backend)
                optimizer.step(gradients, learning_rate(progress, peak=chosen.rate))
                step += 1
                smooth = loss if step == 1 else 0.95 * smooth + 0.05 * loss
                report(step, smooth, time.monotonic() - start)
        except KeyboardInterrupt:
            print(f"interrupted after {step} steps")
            return step, True
    return step, False


def main(arguments: list[str] | None = None) -> dict[str, float]:
    chosen = options(arguments)
    text = corpus.text() if chosen.text is None else chosen.text.read_text(encoding="utf-8")
    learn, held_out = corpus.split(text)
    held_out = held_out[: chosen.asked]
    unigram, bigram = corpus.unigram_loss(learn, held_out), corpus.bigram_loss(learn, held_out)
    gpt = initial(Config(corpus.vocabulary(text)), chosen.seed)
    asked = gpt.encode(held_out)
    before = held_out_loss(gpt, asked[:1000], backend=chosen.backend)
    parameters = sum(x.size for x in gpt.parameters.values())
    print(f"text: {len(learn)} characters to learn from, {len(held_out)} held out, {len(set(text))} different")
    print(f"model: {parameters} parameters; attention by {chosen.backend}")

    start = time.monotonic()
    steps, interrupted = train(gpt, gpt.encode(learn), chosen)
    seconds = time.monotonic() - start
    gpt.save(chosen.out)
    gpt = GPT.load(chosen.out)  # what counts is what the file holds, rounded to float16
    after = held_out_loss(gpt, asked, backend=chosen.backend)
    losses = {"unigram": unigram, "bigram": bigram, "before": before, "held_out": after}
    gpt.record = {
        **{name: round(loss, 4) for name, loss in losses.items()},
        **{"steps": steps, "seconds": round(seconds), "batch": chosen.batch, "rate": chosen.rate},
        **{"seed": chosen.seed, "backend": chosen.backend},
        "corpus_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    gpt.save(chosen.out)
    size = chosen.out.stat().st_size

    print("nats per held-out character:")
    print(f"  unigram {unigram:.4f}\n  bigram  {bigram:.4f}\n  GPT     {after:.4f}  (before training {before:.4f})")
    print(f"{chosen.out}: {parameters} parameters, {size} bytes, {steps} steps in {seconds:.0f} s")
    assert size <= LIMIT
    assert interrupted or after < (min(unigram, bigram) if chosen.whole else before)
    return losses


if __name__ == "__main__":
    main()
