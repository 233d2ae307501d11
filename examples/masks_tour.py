"""Patterns that long-context models use, built from a few masks: a picture, how many pairs, how many tiles."""

from refattn.masks import (
    EMPTY,
    FULL,
    PARTIAL,
    bigbird,
    causal,
    chunked,
    document,
    fixed,
    global_tokens,
    longformer,
    strided,
    window,
)

T = 4096
halves = document([0] * (T // 2) + [1] * (T // 2))
patterns = {
    "causal, as in GPT": causal(),
    "a sliding window, as in Mistral": causal() & window(511, 0),
    "a window and four sinks, as in StreamingLLM": causal() & (window(511, 0) | global_tokens([0, 1, 2, 3])),
    "chunks, as in the local layers of Llama 4": causal() & chunked(1024),
    "strides, as in the Sparse Transformer": strided(64, 512),
    "blocks that summarise themselves, from the same paper": fixed(512, 64),
    "windows and global tokens, as in Longformer": longformer(255, [0, 2048]),
    "blocks: a window, the ends, random ones, as in BigBird": bigbird(256),
    "two documents packed into one sequence": causal() & halves,
}
for name, mask in patterns.items():
    kinds = mask.blocks(T, T, 64, 128).kinds()
    empty, partial, full = ((kinds == kind).sum() for kind in (EMPTY, PARTIAL, FULL))
    print(f"\n{name}\n")
    print(mask.picture(T, T, width=16))
    print(f"\n{mask.pairs(T, T) / T**2:.1%} of the pairs; tiles: {empty} empty, {partial} partial, {full} full")

either, both = causal() | window(3, 3), causal() & window(3, 3)
assert either.pairs(T, T) + both.pairs(T, T) == causal().pairs(T, T) + window(3, 3).pairs(T, T)
assert ((~either).dense(9, 9) == (~causal() & ~window(3, 3)).dense(9, 9)).all()
