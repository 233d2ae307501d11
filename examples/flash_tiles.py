"""What flash attention moves between slow and fast memory, tile by tile, beside what the matrices would take."""

import numpy as np

import refattn
from refattn.masks import causal, window

T, D, MiB = 1024, 64, 2**20
rng = np.random.default_rng(0)
q, k, v = (rng.normal(size=(T, D)).astype(np.float32) for _ in range(3))
inputs = q.nbytes + k.nbytes + v.nbytes
print(f"T = {T}, D = {D}, float32: q, k, v hold {inputs / MiB:.2f} MiB; s and p, each written and read, move 16 MiB")
print("mask                       tile_q  tiles  moved (MiB)  operations per byte")

for mask in (None, causal(), causal() & window(127, 0)):
    want = refattn.attention(q, k, v, mask=mask)
    for tile_q in (32, 64, 128, 256):
        steps = []
        o, lse = refattn.flash_attention(q, k, v, mask=mask, tile_q=tile_q, on_tile=steps.append)
        scores = sum((step.i.stop - step.i.start) * (step.j.stop - step.j.start) for step in steps)
        tiles = sum(step.j.stop > step.j.start for step in steps)
        moved = sum(step.read + step.written for step in steps)
        print(f"{mask or 'all visible'!s:<27}{tile_q:>6}{tiles:>7}{moved / MiB:>13.2f}{4 * D * scores / moved:>21.1f}")
        assert abs(o - want).max() < 1e-5
    assert moved < 16 * MiB / 4  # with tiles of 256 queries
