"""Train the small GPT with four mixers on the bundled text, and compare what they learn and what they cost.

The same text, sizes and number of steps for each: softmax attention, GLA, Mamba-2 and RWKV-7. Time per token is that of
a step of training and of a step of decoding behind a long text; the state is what decoding keeps for each sequence.
"""

import argparse
import importlib.util
import time

import numpy as np

import refattn
from refattn.models import corpus
from refattn.models.gpt import Config
from refattn.models.train import AdamW, held_out_loss, initial, learning_rate, loss_and_gradients, windows

MIXERS = {"attention": "softmax", "gla": "GLA", "mamba2": "Mamba-2", "rwkv7": "RWKV-7"}


def numbers_kept(state):
    """How many numbers a layer's state, a tuple of arrays within tuples, or its cache of keys and values, holds."""
    if isinstance(state, refattn.KVCache):
        return state.k.size + state.v.size
    return sum(numbers_kept(x) for x in state) if isinstance(state, tuple) else state.size


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--behind", type=int, default=1000, help="tokens before the decoded ones")
    parser.add_argument("--backend", choices=refattn.backends(), help="numba where it is installed, unless given")
    chosen = parser.parse_args(arguments)
    chosen.backend = chosen.backend or ("numba" if importlib.util.find_spec("numba") else "numpy")
    text = corpus.text()
    learn, held_out = corpus.split(text)
    results = {}
    print(f"{chosen.steps} steps of {chosen.batch} x {chosen.context} characters, backend {chosen.backend}")
    print(f"{'mixer':10}{'parameters':>12}{'before':>9}{'after':>9}{'train':>12}{'decode':>12}{'state':>12}")
    for mixer, name in MIXERS.items():
        sizes = {"width": chosen.width, "layers": chosen.layers, "heads": 4, "kv_heads": 4, "hidden": 2 * chosen.width}
        sizes |= {"head_dim": chosen.width // 4, "context": chosen.context}
        gpt = initial(Config(corpus.vocabulary(text), **sizes, mixer=mixer))
        tokens, asked = gpt.encode(learn), gpt.encode(held_out[: 40 * chosen.context + 1])
        before = held_out_loss(gpt, asked, backend=chosen.backend)
        rng, optimizer = np.random.default_rng(0), AdamW(gpt.parameters)
        loss_and_gradients(gpt, windows(tokens, 1, chosen.context + 1, rng), backend=chosen.backend)  # compiles
        start = time.perf_counter()
        for step in range(chosen.steps):
            batch = windows(tokens, chosen.batch, chosen.context + 1, rng)
            _, gradients = loss_and_gradients(gpt, batch, backend=chosen.backend)
            optimizer.step(gradients, learning_rate((step + 1) / chosen.steps, peak=3e-3))
        training = (time.perf_counter() - start) / (chosen.steps * chosen.batch * chosen.context)
        after = held_out_loss(gpt, asked, backend=chosen.backend)

        cache = gpt.new_cache(chosen.behind + 50)
        gpt.logits(tokens[: chosen.behind], cache=cache, backend=chosen.backend)
        start = time.perf_counter()
        for n in range(50):
            gpt.logits(tokens[chosen.behind + n : chosen.behind + n + 1], cache=cache, backend=chosen.backend)
        decoding = (time.perf_counter() - start) / 50
        kept = 4 * sum(numbers_kept(state) for state in cache)
        count = sum(x.size for x in gpt.parameters.values())
        print(
            f"{name:10}{count:>12,}{before:>9.3f}{after:>9.3f}{training * 1e6:>9.1f} µs{decoding * 1e6:>9.0f} µs"
            f"{kept / 1024:>8.1f} KiB",
            flush=True,
        )
        results[name] = (before, after, training, decoding, kept)
    for name, (before, after, *_) in results.items():
        assert after < before, name
    return results


if __name__ == "__main__":
    main()
