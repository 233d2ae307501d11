"""A backend of one's own in a few lines, and what the conformance kit finds in it, and in one with a mistake."""

import math
from types import SimpleNamespace

import numpy as np

import refattn
from refattn.testing import check_backend

NOT_COVERED = ("mask", "bias", "softcap", "sinks", "dropout_mask")


def attention(q, k, v, *, mask=None, bias=None, scale=None, softcap=None, sinks=None, dropout_mask=None,
              dropout_p=0.0, return_lse=False, share=np.repeat):  # fmt: skip
    """Attend in float64, whatever comes in. What `LIMITS` excludes and what is malformed never gets here."""
    if q.ndim > 2:
        k, v = (share(x, q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    s = np.einsum("...id,...jd->...ij", q.astype(float), k.astype(float))
    s *= 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    lse = np.logaddexp.reduce(s, axis=-1, initial=-np.inf)
    o = (np.exp(s - lse[..., None]) @ v.astype(float)).astype(q.dtype)
    return (o, lse.astype(np.promote_types(q.dtype, np.float32))) if return_lse else o


def wrong(*args, **kwargs):
    return attention(*args, **kwargs, share=lambda x, n, axis: np.concatenate([x] * n, axis))  # head h reads h % Hk


limits = {f"attention({argument})": "this is an example" for argument in NOT_COVERED}
for name, function in (("mine", attention), ("wrong", wrong)):
    refattn.register(name, SimpleNamespace(attention=function, LIMITS=limits, RANK=-1))
    report = check_backend(name, ["attention"])
    print(f"{name}: {report.count('PASS')} checks passed, {report.count('NOT RUN')} refused as announced,", end=" ")
    print(f"{len(report.failures)} failed")
    for failure in report.failures[:3]:
        print(f"  {failure.check}: {failure.message.splitlines()[0]}")
    assert report.ok == (name == "mine")
