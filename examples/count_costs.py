"""Count what a block of BERT-base costs, by hand and by `refattn.costs`, and where attention overtakes the rest."""

import numpy as np

from refattn import costs, masks

N, D, H, d, F, S = 1000, 768, 12, 64, 3072, 4  # tokens, width, heads, width of a head, ffn, bytes of a float32
block = costs.Transformer(layers=1, d_model=D, heads=H, ffn=F)

# One head's scores are N x N numbers, and every head has its own: 4 MB, and 48 MB a layer.
assert N * N * S == 4_000_000
assert block.attention_matrix_bytes(seq=N) == H * N * N * S == 48_000_000

# FLOPs: 2 a multiply-add. Two products of each token with matrices around attention, two of each pair inside it.
pairs = int(np.tri(N, dtype=bool).sum())
assert costs.pairs(masks.causal(), N, N) == pairs == N * (N + 1) // 2
flops = block.forward_flops(seq=N)
assert flops["qkvo"] == 4 * 2 * N * D * D
assert flops["ffn"] == 2 * 2 * N * D * F
assert flops["scores"] == flops["values"] == 2 * H * pairs * d

# Five times the tokens: 25 times the scores, but the projections and the ffn grow 5 times only.
short, long = (block.forward_flops(seq=n, causal=False) for n in (2_000, 10_000))
grown = {part: long[part] / short[part] for part in ("scores", "ffn", "total")}
print("from 2,000 to 10,000 tokens: " + ", ".join(f"{part} {times:.2f} times" for part, times in grown.items()))
assert grown["scores"] == 25 and round(grown["total"], 2) == 11.05

# Attention costs as much as everything else at 6 D tokens, at twice that where a mask hides half of the pairs.
crossing = block.crossover_length(causal=False), block.crossover_length(causal=True)
print(f"as much as the rest from {crossing[0]:,} tokens on, causal from {crossing[1]:,}")
assert crossing == (6 * D, 12 * D - 1)
