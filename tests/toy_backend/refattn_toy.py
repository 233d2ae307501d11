"""A third party's backend: attention without any of the options but two, and nothing else."""

import math

import numpy as np

RANK = 1
LIMITS = {
    f"attention({argument})": "this is a toy"
    for argument in ("mask", "bias", "softcap", "sinks", "dropout_mask", "return_lse")
}


def attention(
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    scale=None,
    softcap=None,
    sinks=None,
    dropout_mask=None,
    dropout_p=0.0,
    return_lse=False,
):
    """As `refattn.attention`, one query at a time."""
    H, Hk = (q.shape[-3], k.shape[-3]) if q.ndim > 2 else (1, 1)
    k, v = (x if x.ndim == 2 else np.repeat(x, H // Hk, axis=-3) for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    o = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    for i in range(q.shape[-2]):
        s = scale * (k @ q[..., i, :, None])[..., 0]
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        o[..., i, :] = (p[..., None, :] @ v)[..., 0, :] / p.sum(axis=-1, keepdims=True)
    return o
