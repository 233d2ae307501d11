"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants.

`latent` and `latent_vjp` are right as long as `wrong` is empty, and wrong in the one way that it names.
"""

import math
from functools import partial

import numpy as np

import refattn
from refattn import masks
from refattn.arrays import compute_dtype
from refattn.results import LatentGradients

FORWARD = [
    "scale 1 / sqrt(Dn)",
    "scale 1 / sqrt(L + Dr)",
    "scale forgotten for the rotated part",
    "rotated part forgotten",
    "rotated part forgotten in lse",
    "rotated key of the first token for all",
    "w_uk transposed",
    "w_uk of the first head for all",
    "w_uv of the next head",
    "hidden latents multiplied by zero",
    "last token dropped",
    "mask of the first head for all",
    "causal aligned to the top left",
    "second sequence reads the first one's tokens",
    "blind rows are NaN",
    "lse in base 2",
    "rounded to half precision between the products",
]
BACKWARD = [
    "dc_kv without the values",
    "dc_kv without the keys",
    "dc_kv of the first head",
    "dk_rope of the first head",
    "dk_rope averaged",
    "dw_uk of the first sequence",
    "dw_uv from the rotated tokens of another head",
    "dq_rope without scale",
    "dlse ignored",
    "hidden tokens multiplied by zero in dw_uk",
    "hidden tokens multiplied by zero in dw_uv",
]


def latent(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, *, mask=None, scale=None, return_lse=False, wrong=""):
    dtype, compute = q_nope.dtype, compute_dtype(q_nope.dtype)
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (x.astype(compute) for x in (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv))
    H, Dn, Dr, L, Tk = len(w_uk), q_nope.shape[-1], q_rope.shape[-1], c_kv.shape[-1], c_kv.shape[-2]
    if wrong == "w_uk transposed":
        w_uk = w_uk.reshape(H, Dn, L).swapaxes(-1, -2)
    if wrong == "w_uk of the first head for all":
        w_uk = np.broadcast_to(w_uk[:1], w_uk.shape)
    if wrong == "rotated key of the first token for all":
        k_rope = np.broadcast_to(k_rope[..., :1, :], k_rope.shape) if Tk else k_rope
    if wrong == "second sequence reads the first one's tokens" and c_kv.ndim > 2:
        c_kv, k_rope = (np.broadcast_to(x[:1], x.shape) for x in (c_kv, k_rope))
    width = {"scale 1 / sqrt(Dn)": Dn, "scale 1 / sqrt(L + Dr)": L + Dr}.get(wrong, Dn + Dr)
    scale = 1 / math.sqrt(width) if scale is None else scale
    if wrong == "rotated part forgotten":
        q_rope = 0 * q_rope
    if wrong == "scale forgotten for the rotated part":
        q_rope = q_rope / scale
    q = np.concatenate([q_nope @ w_uk.swapaxes(-1, -2), q_rope], axis=-1)
    k = np.concatenate([c_kv, k_rope], axis=-1)[..., None, :, :]
    v = c_kv[..., None, :, :]
    mask = seen(mask, (*q.shape[:-1], Tk), wrong)
    if wrong == "hidden latents multiplied by zero":
        _, lse = refattn.attention(q, k, v, mask=mask, scale=scale, return_lse=True, backend="numpy")
        s = np.where(mask, scale * (q @ k.swapaxes(-1, -2)), -np.inf)
        o = np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None]) @ v
    else:
        o, lse = refattn.attention(q, k, v, mask=mask, scale=scale, return_lse=True, backend="numpy")
    if wrong == "rotated part forgotten in lse":
        _, lse = refattn.attention(q[..., :L], k[..., :L], v, mask=mask, scale=scale, return_lse=True, backend="numpy")
    if wrong == "rounded to half precision between the products":
        o = o.astype(np.float16).astype(compute)
    o = o @ (np.roll(w_uv, -1, axis=0) if wrong == "w_uv of the next head" else w_uv)
    if wrong == "blind rows are NaN":
        o = np.where(np.isneginf(lse)[..., None], np.nan, o)
    o, lse = o.astype(dtype), (lse / math.log(2) if wrong == "lse in base 2" else lse).astype(compute)
    return (o, lse) if return_lse else o


def seen(mask, shape, wrong):
    """Return which pairs are visible, (..., H, Tq, Tk)."""
    Tq, Tk = shape[-2:]
    if wrong == "causal aligned to the top left" and mask is not None and "causal" in repr(mask):
        mask = masks.causal(offset=0)
    mask = masks.window(None, None) if mask is None else masks.as_mask(mask)
    visible = np.broadcast_to(mask.dense(Tq, Tk), shape).copy()
    if wrong == "mask of the first head for all":
        visible = np.broadcast_to(visible[..., :1, :, :], shape)
    if wrong == "last token dropped":
        visible[..., -1:] = False
    return visible


def latent_vjp(do, q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, *, mask=None, scale=None, dlse=None, wrong=""):
    dtype, compute, Dn = q_nope.dtype, compute_dtype(q_nope.dtype), q_nope.shape[-1]
    do, q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (
        x.astype(compute) for x in (do, q_nope, q_rope, c_kv, k_rope, w_uk, w_uv)
    )
    c = c_kv[..., None, :, :]
    k_nope, v = c @ w_uk, c @ w_uv
    k = np.concatenate([k_nope, np.broadcast_to(k_rope[..., None, :, :], (*k_nope.shape[:-1], k_rope.shape[-1]))], -1)
    q = np.concatenate([q_nope, q_rope], axis=-1)
    visible = seen(mask, (*q.shape[:-1], k.shape[-2]), "")
    dlse = None if wrong == "dlse ignored" else dlse
    g = refattn.attention_vjp(do, q, k, v, mask=visible, scale=scale, dlse=dlse, backend="numpy")
    dk, dv, dq_rope = g.dk, g.dv, g.dq[..., Dn:]
    if wrong == "dq_rope without scale":
        dq_rope = dq_rope * (math.sqrt(q.shape[-1]) if scale is None else 1 / scale)
    some = visible.any(axis=-2)[..., None]
    c_seen = np.where(some, c, 0)
    of_keys = dk[..., :Dn] @ w_uk.swapaxes(-1, -2) * (0 if wrong == "dc_kv without the keys" else 1)
    of_values = dv @ w_uv.swapaxes(-1, -2) * (0 if wrong == "dc_kv without the values" else 1)
    dc = of_keys + of_values
    dc = dc[..., 0, :, :] if wrong == "dc_kv of the first head" else dc.sum(axis=-3)
    dk_rope = dk[..., Dn:]
    dk_rope = dk_rope[..., 0, :, :] if wrong == "dk_rope of the first head" else dk_rope.sum(axis=-3)
    if wrong == "dk_rope averaged":
        dk_rope = dk_rope / len(w_uk)
    dw_uk = (c if wrong == "hidden tokens multiplied by zero in dw_uk" else c_seen).swapaxes(-1, -2) @ dk[..., :Dn]
    if wrong == "dw_uv from the rotated tokens of another head":
        dv = np.roll(dv, 1, axis=-3)
    dw_uv = (c if wrong == "hidden tokens multiplied by zero in dw_uv" else c_seen).swapaxes(-1, -2) @ dv
    if wrong == "dw_uk of the first sequence" and dw_uk.ndim > 3:
        dw_uk = dw_uk[:1]
    dw_uk, dw_uv = (dw.sum(axis=tuple(range(dw.ndim - 3))) for dw in (dw_uk, dw_uv))
    found = (g.dq[..., :Dn], dq_rope, dc, dk_rope, dw_uk, dw_uv)
    return LatentGradients(*(dx.astype(dtype) for dx in found))


def rope_without_its_frequencies(x, positions, *, frequencies=None, **options):
    return refattn.rope(x, positions, **options, backend="numpy")


def rope_of_wavelengths(x, positions, *, frequencies=None, **options):
    f = None if frequencies is None else 1 / np.where(frequencies == 0, 1, frequencies)
    return refattn.rope(x, positions, frequencies=f, **options, backend="numpy")


def rope_of_float32_frequencies(x, positions, *, frequencies=None, **options):
    f = None if frequencies is None else frequencies.astype(np.float32).astype(np.float64)
    return refattn.rope(x, positions, frequencies=f, **options, backend="numpy")


def rope_of_frequencies_in_the_other_order(x, positions, *, frequencies=None, **options):
    f = None if frequencies is None else frequencies[::-1]
    return refattn.rope(x, positions, frequencies=f, **options, backend="numpy")


def rope_vjp_without_its_frequencies(dy, positions, *, frequencies=None, **options):
    return refattn.rope_vjp(dy, positions, **options, backend="numpy")


MUTANTS = {
    **{f"mla_attention: {wrong}": ("mla_attention", partial(latent, wrong=wrong)) for wrong in FORWARD},
    "mla_attention_expanded: w_uv of the next head": (
        "mla_attention_expanded",
        partial(latent, wrong="w_uv of the next head"),
    ),
    "mla_attention_expanded: last token dropped": (
        "mla_attention_expanded",
        partial(latent, wrong="last token dropped"),
    ),
    **{f"mla_attention_vjp: {wrong}": ("mla_attention_vjp", partial(latent_vjp, wrong=wrong)) for wrong in BACKWARD},
    **{
        f"rope: {mutant.__name__}": ("rope", mutant)
        for mutant in (
            rope_without_its_frequencies,
            rope_of_wavelengths,
            rope_of_float32_frequencies,
            rope_of_frequencies_in_the_other_order,
        )
    },
    "rope_vjp: rope_vjp_without_its_frequencies": ("rope_vjp", rope_vjp_without_its_frequencies),
}
