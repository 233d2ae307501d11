"""A kernel that is a Python program; its argument makes it err."""

import sys

import refattn
from refattn.testing.adapters import serve

HOW = sys.argv[1] if len(sys.argv) > 1 else ""


def kernel(q, k, v, *, causal=False, window=None, scale=None, sinks=None, seqlens_k=None):
    if HOW == "raise":
        raise ValueError("no heads of 7")
    print("a kernel may print")
    mask = refattn.masks.causal() if causal else None
    if window is not None:
        mask = refattn.masks.window(*window) if mask is None else mask & refattn.masks.window(*window)
    if seqlens_k is not None:
        mask = refattn.masks.padding(seqlens_k)
    return refattn.attention(q, k, v, mask=mask, scale=scale, sinks=sinks, return_lse=True)


def backward(do, q, k, v, *, bias=None, sinks=None):
    return [x for x in refattn.attention_vjp(do, q, k, v, bias=bias, sinks=sinks) if x is not None]


serve(backward if HOW == "backward" else kernel)
