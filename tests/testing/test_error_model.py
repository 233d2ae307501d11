"""The error model: the oracle is right, the bound holds and is not absurd, sigma is the size of real errors."""

import numpy as np
import pytest

import refattn
from refattn.testing import Contract, check
from refattn.testing.attention.backward import backward_errors, gradients, slopes
from refattn.testing.attention.cases import CASES
from refattn.testing.attention.forward import Units, forward_errors
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.oracle import truth
from refattn.testing.attention.problem import problem
from refattn.testing.backends import mask_of
from refattn.testing.formats import UNIT, decode, encode, round_to
from refattn.testing.mutants import correct
from refattn.testing.session import Session
from refattn.testing.verdicts import PASS, UNDECLARED


def to(x, name, truncates=False):
    """Round float32 numbers to a format, or cut them off."""
    if name in (None, "float32"):
        return x
    if not truncates:
        return round_to(x, name).astype(np.float32)
    if name == "float16":
        near = x.astype(np.float16)
        return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float16(0)), near).astype(np.float32)
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).reshape(x.shape)


def summed(a, b, acc):
    """Return a @ b, summed in one format one term after the other."""
    if acc == "float32":
        return a @ b
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for n in range(a.shape[-1]):
        total = to(total + to(a[..., n, None] * b[..., n, None, :], acc), acc)
    return total


def simple(contract):
    """Return attention in one pass over all keys, in the precision that a contract declares."""
    n = contract.numerics
    lower, cut = n["products"], n["truncates"]
    dtype = contract.dtype

    def kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, bias=None, mask=None, sinks=None):
        group, (B, H, Tq, D), Tk = q.shape[1] // k.shape[1], q.shape, k.shape[2]
        q, k, v = (to(decode(x, dtype, np.float32), lower) for x in (q, k, v))
        k, v = (np.repeat(x, group, axis=1) for x in (k, v))
        scale = np.float32(D**-0.5 if scale is None else scale)
        if n["q_prescaled"]:
            q, scale = to(q * scale, dtype), np.float32(1)
        s = scale * summed(q, k.swapaxes(-1, -2), n["acc"])
        if softcap is not None:
            s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
        s = s if bias is None else s + bias
        s = to(s, n["s"])
        ahead = np.arange(Tq)[:, None] + (Tk - Tq) - np.arange(Tk)
        visible = np.ones((B, H, Tq, Tk), bool) & (True if mask is None else mask)
        left, right = (None, None) if window is None else window
        visible &= (ahead >= (0 if causal else -Tk)) & (ahead <= (Tq + Tk if left is None else left))
        visible &= ahead >= (-Tq - Tk if right is None else -right)
        s = np.where(visible, s, -np.inf).astype(np.float32)
        m = s.max(axis=-1, keepdims=True, initial=-np.inf)
        m = m if sinks is None else np.maximum(m, sinks[:, None, None])
        m = np.where(np.isneginf(m), np.float32(0), m)
        e = np.exp(s - m)
        p = to(e, n["p"], cut)
        l = (p if n["l_rounded"] else e).sum(axis=-1, keepdims=True)
        l = l if sinks is None else l + np.exp(sinks[:, None, None] - m)
        o = to(summed(p, v, n["acc"]) / np.where(l == 0, 1, l), n["out"], cut)
        return encode(o, dtype, contract.uint16), (m + np.log(l))[..., 0].astype(np.float32)

    return kernel


DECLARED = {
    "tf32": {"products": "tf32"},
    "acc tf32": {"acc": "tf32"},
    "bfloat16 products": {"products": "bfloat16"},
    "p bfloat16": {"p": "bfloat16"},
    "p float16": {"p": "float16"},
    "out bfloat16": {"out": "bfloat16"},
    "out float16": {"out": "float16"},
    "s bfloat16": {"s": "bfloat16"},
    "s float16": {"s": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "bf16 q_prescaled": {"dtype": "bfloat16", "q_prescaled": True},
    "bf16 s": {"dtype": "bfloat16", "s": "bfloat16"},
    "bf16 l_rounded": {"dtype": "bfloat16", "l_rounded": True},
    "bf16 truncates": {"dtype": "bfloat16", "truncates": True},
    "bf16 p float32": {"dtype": "bfloat16", "p": "float32"},
    "fp16": {"dtype": "float16"},
    "fp16 q_prescaled": {"dtype": "float16", "q_prescaled": True},
    "fp16 s": {"dtype": "float16", "s": "float16"},
    "fp16 l_rounded": {"dtype": "float16", "l_rounded": True},
    "fp16 truncates": {"dtype": "float16", "truncates": True},
    "fp16 p float32": {"dtype": "float16", "p": "float32"},
    "fp16 acc": {"dtype": "float16", "acc": "float16"},
    "bf16 acc fp16": {"dtype": "bfloat16", "acc": "float16"},
    "all": {"dtype": "bfloat16", "q_prescaled": True, "s": "bfloat16", "l_rounded": True, "truncates": True},
}
