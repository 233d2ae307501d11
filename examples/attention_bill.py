"""The bill of one block of BERT-base at some lengths: what attention takes of it, and what a window would save."""

from dataclasses import replace

from refattn import costs
from refattn.costs.units import count, size
from refattn.watch.verdict import limit

block = costs.Transformer(layers=1, d_model=768, heads=12)
window = replace(block, mechanism=costs.Softmax(window=256))

print("tokens   scores   FLOPs    attention   at most   window of 256")
bills = {}
for tokens in (500, 1_000, 2_000, 10_000):
    flops = block.forward_flops(seq=tokens, causal=False)
    share = (flops["scores"] + flops["values"]) / flops["total"]
    saved = flops["total"] / window.forward_flops(seq=tokens, causal=False)["total"]
    bills[tokens] = (block.attention_matrix_bytes(seq=tokens), flops, share, saved)
    print(
        f"{tokens:6,}   {size(bills[tokens][0])}   {count(flops['total'])}   {share:6.1%}      "
        f"{limit(share):.2f}×     {saved:.2f}×"
    )

# A head of 1,000 tokens has 4 MB of scores, 12 heads have 48 MB; twice the tokens have four times as much.
assert bills[1_000][0] == 12 * 4_000_000 and bills[2_000][0] == 4 * bills[1_000][0]
# Five times the tokens: 25 times the scores, but 11.05 times the block.
assert bills[10_000][1]["scores"] == 25 * bills[2_000][1]["scores"]
assert round(bills[10_000][1]["total"] / bills[2_000][1]["total"], 2) == 11.05
# Nothing that is done about attention saves more than Amdahl's limit.
assert all(1 <= saved <= limit(share) for _, _, share, saved in bills.values())
